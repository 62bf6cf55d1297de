"""The console behind a real Envoy: a key opens, its name decides, and other sites change nothing."""

import asyncio
import base64
import dataclasses
import http.client
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

import fieldmark
from bundle.errors import OptionError
from review.cli import LOOPBACK, _server
from review.pages.access import Door, hosts_of
from review.pages.app import application
from review.pages.page import Console
from review.store.decisions import standing
from serving.envoy.console import before_console
from serving.envoy.keys import KEY_NAME, Key
from serving.envoy.options import EnvoyOptions
from serving.envoy.process import EnvoyServer, find_envoy, validate
from serving.gateway.server import free_port
from tests.review.test_pages import csrf_of
from tests.serving.envoy.door import ANN, BOB
from tests.serving.gateway.certificates import make_certificate


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificate(folder, "server", make_certificate(folder, "ca"))
    return folder


class Behind:
    """A console that listens on loopback, and an Envoy before it."""

    def __init__(self, console: Console, options: EnvoyOptions, pair: Path) -> None:
        self.console, self.options, self.pair = console, options, pair
        self.lines: list[str] = []

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.options.port}"

    def ask(
        self, path: str, key: Key | None = ANN, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text."""
        context = ssl.create_default_context(cafile=self.pair / "ca.pem")
        connection = http.client.HTTPSConnection("127.0.0.1", self.options.port, timeout=30, context=context)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["authorization"] = "Basic " + base64.b64encode(f"{key.name}:{key.secret}".encode()).decode()
        if form is not None:
            sent["content-type"] = "application/x-www-form-urlencoded"
        body = None if form is None else urlencode(form)
        connection.request("GET" if form is None else "POST", path, body=body, headers=sent)
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


@pytest.fixture
def behind(console: Console, pair: Path) -> Iterator[Behind]:
    with socket.socket() as bound:
        bound.bind((LOOPBACK, 0))
        port, outer = bound.getsockname()[1], free_port("127.0.0.1")
        names = hosts_of(LOOPBACK, port, [f"127.0.0.1:{outer}"])
        running = dataclasses.replace(console, door=Door(hosts=names, port=port, reviewer="ada", keyed=True))
        options = EnvoyOptions(
            certificate=pair / "server.pem",
            certificate_key=pair / "server.key",
            keys=(ANN, BOB),
            host="127.0.0.1",
            port=outer,
            gateway=f"127.0.0.1:{port}",
        )
        server = _server(application(running))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
        thread.start()
        made = Behind(running, options, pair)
        with EnvoyServer(options, on_log=made.lines.append, inside=before_console(options)):
            yield made
        server.should_exit = True
        thread.join(timeout=20)


def test_a_key_opens_and_its_name_is_the_reviewers(behind: Behind) -> None:
    status, headers, text = behind.ask("/")
    assert status == 200
    assert "You are <b>ann</b>" in text
    assert "content-security-policy" in headers
    assert behind.ask("/items/1/sent.img")[1]["content-type"] == "image/png"
    form = {"csrf": csrf_of(behind.ask("/")[2]), "verdict": "clean", "note": "by ann"}
    assert behind.ask("/items/1/decide", form=form, origin=f"https://{behind.name}")[0] == 303
    assert behind.ask("/items/1/decide", BOB, form, sec_fetch_site="same-origin")[0] == 403, "it is ann's form"
    form["csrf"] = csrf_of(behind.ask("/", BOB)[2])
    assert behind.ask("/items/1/decide", BOB, form, sec_fetch_site="same-origin")[0] == 303
    assert [row["reviewer"] for row in standing(behind.console.database, 1)] == ["bob", "ann"]
    assert all(key.secret not in "".join(behind.lines) for key in (ANN, BOB))


def test_nobody_says_himself_whose_key_it_is(behind: Behind) -> None:
    assert "You are <b>bob</b>" in behind.ask("/", BOB, **{KEY_NAME: "ann"})[2]
    assert behind.ask("/", None, **{KEY_NAME: "ann"})[0] == 401


@pytest.mark.parametrize(
    "key",
    [None, Key(name="ann", secret=BOB.secret), Key(name="eve", secret=ANN.secret), Key(name="ann", secret="")],
    ids=["none", "another's", "another name", "empty"],
)
def test_without_a_key_the_browser_asks_for_one(behind: Behind, key: Key | None) -> None:
    for path in ("/", "/items/1/sent.img", "/static/review.css", "/export/csv", "/nowhere"):
        status, headers, text = behind.ask(path, key)
        assert status == 401
        assert headers["www-authenticate"] == 'Basic realm="Fieldmark review"'
        assert text == "A key is needed: its name as the user, the key as the password.\n"


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"},
     {"sec_fetch_site": "same-site"}],
)  # fmt: skip
def test_another_site_changes_nothing_though_the_browser_shows_the_key(behind: Behind, headers: dict[str, str]) -> None:
    form = {"csrf": csrf_of(behind.ask("/")[2]), "verdict": "attack"}
    status, _, text = behind.ask("/items/1/decide", form=form, **headers)
    assert (status, text) == (403, "This request comes from another site, and nothing was changed.\n")
    assert standing(behind.console.database, 1) == []
    assert behind.ask("/", host="evil.example")[0] == 421


def test_no_path_leads_out_of_the_pages(behind: Behind) -> None:
    for path in ("/static/..%2faccess.py", "/static/%2e%2e/access.py", "/items/1/..%2f..%2fx.img"):
        assert behind.ask(path)[0] in (400, 404)


def test_a_console_that_is_not_there_is_a_sentence(pair: Path, console: Console) -> None:
    options = EnvoyOptions(
        certificate=pair / "server.pem", certificate_key=pair / "server.key", keys=(ANN,), host="127.0.0.1",
        port=free_port("127.0.0.1"), gateway=f"127.0.0.1:{free_port('127.0.0.1')}",
    )  # fmt: skip
    with EnvoyServer(options, inside=before_console(options)):
        status, _, text = Behind(console, options, pair).ask("/")
    assert (status, text) == (503, "The console does not answer: is 'fieldmark review' running?\n")


def written(pair: Path, folder: Path, text: str, *more: str) -> tuple[Any, Path]:
    keys = folder / "reviewers"
    keys.write_text(text)
    keys.chmod(0o600)
    out, code = folder / "envoy.json", 0
    command = ["envoy", "127.0.0.1:8020", "--console", "--out", out, "--keys", keys, *more]
    files = ["--certificate", pair / "server.pem", "--certificate-key", pair / "server.key"]
    try:
        fieldmark.main([str(word) for word in (*command, *files)])
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    return code, out


def test_the_verb_writes_what_envoy_accepts(pair: Path, tmp_path: Path) -> None:
    code, out = written(pair, tmp_path, f"ann:{ANN.secret}\nbob:{BOB.secret}\n", "--renewals", str(tmp_path / "new"))
    assert code == 0
    text = out.read_text()
    assert ANN.secret not in text, "digests stand in it"
    assert "admin" not in json.loads(text)
    command = [find_envoy(), "--mode", "validate", "-c", out]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        (f"ann:{ANN.secret}\nann:{BOB.secret}\n", (), "two keys are of ann"),
        (f"ann:{ANN.secret}\n", ("--rate", "5"), "--rate is of a gateway"),
        (f"ann:{ANN.secret}\n", ("--rate", "5"), "as often as a page needs"),
        (f"ann:{ANN.secret}\n", ("--health",), "--health is of a gateway"),
        (f"ann:{ANN.secret}\n", ("--health",), "no service whose health"),
        (f"ann:{ANN.secret}\n", ("--timeout", "5"), "only --idle-seconds ends what stands still"),
        (f"ann:{ANN.secret}\n", ("--image-bytes", "5"), "nobody sends images to a console"),
        ("", (), "holds no key"),
    ],
)
def test_what_a_consoles_door_cannot_be(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, more: tuple[str, ...], words: str
) -> None:
    code, out = written(pair, tmp_path, text, *more)
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_envoy_looks_at_it_first(pair: Path) -> None:
    options = EnvoyOptions(certificate=pair / "server.pem", certificate_key=pair / "ca.key", keys=(ANN,))
    with pytest.raises(OptionError, match="Envoy refuses this configuration"):
        validate(options, find_envoy(), inside=before_console(options))
