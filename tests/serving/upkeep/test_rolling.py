"""Another bundle under load, by a link, by a verb, and back: a real Triton, callers who try once, and none fails."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle import Bundle, tensors
from bundle.errors import RequestRefused, ServerError
from bundle.folder import sign_bundle
from serving.client.local import LocalInference
from serving.control import tell
from serving.gateway.calls import Retries
from serving.gateway.client import FieldmarkClient
from serving.processes import command_of
from tests.conftest import draw_toy
from tests.keys import write_keys
from tests.serving.gateway.gateway_thread import encode
from tests.serving.upkeep.remade import remade
from tests.serving.upkeep.served import ROOT, Served, gateway_pid, serving

pytestmark = pytest.mark.triton

Said = tuple[str, float, bool]  # (label, p-value, flag)


def between(one: Bundle, two: Bundle) -> np.ndarray:
    """A clean image that the two bundles, which differ in their alpha, do not both flag : (32, 32, 3) uint8."""
    local = LocalInference(one)
    for seed in range(200):
        image = draw_toy(seed % 5, 3000 + seed)
        p_value = float(local.infer(image[None], tensors.FULL)[tensors.P_VALUE][0])
        if one.manifest.networks[tensors.FULL].detector.alpha < p_value < 0.4:
            return image
    pytest.fail("no image lies between the two")


def said(bundle: Bundle, image: np.ndarray) -> Said:
    """What a bundle says of an image, asked in process."""
    outputs = LocalInference(bundle).infer(image[None], tensors.FULL)
    label = bundle.manifest.labels[int(outputs[tensors.PROBABILITIES][0].argmax())]
    return label, float(outputs[tensors.P_VALUE][0]), bool(outputs[tensors.IS_ADVERSARIAL][0])


class Callers:
    """Three callers of single images and one of a stream, none of which tries twice; `found` is what they were told."""

    def __init__(self, url: str, image: bytes) -> None:
        self.found: list[tuple[str, Said]] = []
        self.failed: list[str] = []
        self._url, self._image = url, image
        self._ended = threading.Event()
        work = (self._single, self._single, self._single, self._stream)
        self._threads = [threading.Thread(target=self._guarded, args=(each,)) for each in work]

    def of(self, bundle: Bundle) -> int:
        """Answers of a bundle so far."""
        return sum(bundle_id == bundle.bundle_id for bundle_id, _ in self.found)

    def _guarded(self, work: Any) -> None:
        with FieldmarkClient(self._url, retries=Retries(attempts=1)) as client:
            try:
                work(client)
            except RequestRefused as problem:
                self.failed.append(str(problem))

    def _single(self, client: FieldmarkClient) -> None:
        while not self._ended.wait(0.01):
            self._note(client.classify(self._image, network=tensors.FULL))

    def _stream(self, client: FieldmarkClient) -> None:
        def images() -> Iterator[tuple[str, bytes]]:
            while not self._ended.wait(0.02):
                yield "again", self._image

        for each in client.classify_stream(images(), network=tensors.FULL):
            if each.HasField("error"):
                self.failed.append(each.error.message)
            else:
                self._note(each.response)

    def _note(self, answer: Any) -> None:
        found = answer.adversarial
        self.found.append((answer.bundle_id, (answer.predictions[0].label, found.p_value, found.flagged)))

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


class Bundles:
    """Two good bundles that flag one image otherwise, and bad ones; all but `unsigned` are signed."""

    def __init__(self, folder: Path, make: Any) -> None:
        private, self.key = write_keys(folder)
        self.one, self.two = make(folder / "one", name="one"), make(folder / "two", name="two", alpha=0.5)
        labels = [f"another {label}" for label in self.one.manifest.labels]
        model = self.one.manifest.networks[tensors.ATTENTION_ONLY].model
        self.relabelled = remade(self.one, folder / "relabelled", labels=tuple(labels))
        self.silent = remade(self.one, folder / "silent", files={model: b"no graph"})
        self.unsigned = make(folder / "unsigned", name="unsigned").path
        self.damaged = remade(self.two, folder / "damaged")
        for path in (self.one.path, self.two.path, self.relabelled, self.silent, self.damaged):
            sign_bundle(path, private)
        with (self.damaged / self.two.manifest.networks[tensors.FULL].model).open("r+b") as stream:
            stream.seek(100)
            stream.write(b"x")
        self.image = between(self.one, self.two)
        self.says = {each.bundle_id: said(each, self.image) for each in (self.one, self.two)}


@pytest.fixture(scope="module")
def bundles(make_toy_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    made = Bundles(tmp_path_factory.mktemp("bundles"), make_toy_bundle)
    assert {flagged for _, _, flagged in made.says.values()} == {True, False}
    return made


@pytest.fixture(scope="module")
def link(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    link = tmp_path_factory.mktemp("link") / "bundle"
    link.symlink_to(bundles.one.path)
    return link


def set_anew(link: Path, target: Path) -> None:
    """As `ln -sfn` does, but in one step."""
    following = link.with_name("next")
    following.symlink_to(target)
    following.replace(link)


@pytest.fixture(scope="module")
def watching(link: Path, bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    control = tmp_path_factory.mktemp("c") / "orders"
    options = ("--watch", "--key", str(bundles.key), "--control", str(control))
    with serving(Bundle(link, bundles.one.manifest), *options) as served:
        yield served
    assert served.process.returncode == 0


def order(served: Served, verb: str, **facts: Any) -> dict[str, Any]:
    return tell(Path(served.facts["control"]), verb, seconds=120, **facts)


def test_out_and_back_and_refused_under_load(watching: Served, link: Path, bundles: Bundles) -> None:
    one, two = bundles.one, bundles.two
    refusals = {
        bundles.damaged: "does not match its SHA-256",
        bundles.unsigned: "is not signed",
        bundles.relabelled: "other labels",
        bundles.silent: "could not start",
    }
    with Callers(watching.facts["url"], encode(bundles.image)) as callers:
        watching.wait_for(lambda: callers.of(one) > 20)
        set_anew(link, two.path)
        watching.wait_for(lambda: callers.of(two) > 20)
        for path, words in refusals.items():
            with pytest.raises(ServerError, match=words):
                order(watching, "out", path=str(path))
        facts = order(watching, "back")
        assert (facts["bundle_id"], facts["previous"]) == (one.bundle_id, two.bundle_id)
        enough = callers.of(one) + 20
        watching.wait_for(lambda: callers.of(one) > enough)
        set_anew(link, bundles.damaged)
        watching.process.send_signal(signal.SIGHUP)
        watching.wait_for(lambda: len(watching.events("refused")) == 5)
        enough = len(callers.found) + 20
        watching.wait_for(lambda: len(callers.found) > enough)
    assert callers.failed == []
    assert len(callers.found) > 100
    for bundle_id, (label, p_value, flagged) in callers.found:
        expected = bundles.says[bundle_id]
        assert (label, flagged) == expected[::2], "the answer is of the bundle that it names"
        assert p_value == pytest.approx(expected[1])
    causes = zip(watching.events("refused"), (*refusals.values(), "SHA-256"), strict=True)
    assert all(words in each["cause"] for each, words in causes)
    assert [(each["before"], each["bundle_id"]) for each in watching.events("rolled")] == [
        (one.bundle_id, two.bundle_id),
        (two.bundle_id, one.bundle_id),
    ]
    assert watching.events("trouble") == []


def roll(served: Served, *arguments: str) -> "subprocess.CompletedProcess[str]":
    verb, *more = arguments
    command = [sys.executable, "-m", "fieldmark", "roll", verb, served.facts["control"], *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_what_is_refused_to_a_person_is_one_sentence(watching: Served, bundles: Bundles) -> None:
    run = roll(watching, "out", str(bundles.relabelled))
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.endswith("has other labels, which callers would notice. If they should: --other-labels.\n")
    assert roll(watching, "out", str(bundles.damaged)).returncode == 1
    shown = roll(watching, "status").stdout
    assert shown.splitlines()[0].startswith("answers   ")
    assert "refused   " in shown


def test_a_shadow_is_asked_the_same_and_its_differences_are_counted(watching: Served, bundles: Bundles) -> None:
    """Then it is rolled out, and is running already."""
    one, two = bundles.one, bundles.two
    order(watching, "out", path=str(one.path))
    run = roll(watching, "shadow", str(two.path), "--share", "1")
    assert run.returncode == 0, run.stderr
    image, same = encode(bundles.image), encode(np.full((40, 40, 3), 140, np.uint8))
    with FieldmarkClient(watching.facts["url"]) as client:
        for _ in range(3):
            assert client.classify(image, network=tensors.FULL).bundle_id == one.bundle_id
        client.classify(same, network=tensors.FULL)

    def found() -> dict[str, Any]:
        return dict(order(watching, "status")["shadow"])

    watching.wait_for(lambda: found()["same"] + found()["different"] + found()["dropped"] == 4)
    facts = found()
    assert (facts["bundle_id"], facts["label"], facts["failed"]) == (two.bundle_id, 0, 0)
    assert facts["flag"] == facts["different"] >= 1
    assert f"{facts['flag']} with another flag" in roll(watching, "status").stdout
    noted = watching.events("shadow_differs")
    assert {each["network"] for each in noted} == {tensors.FULL}
    assert len(noted) == facts["different"]
    assert order(watching, "out", path=str(two.path))["bundle_id"] == two.bundle_id
    assert "shadow" not in order(watching, "status")
    with FieldmarkClient(watching.facts["url"]) as client:
        assert client.classify(image, network=tensors.FULL).adversarial.flagged


def triton_of(served: Served) -> int:
    """Process id of the tritonserver that answers now."""
    folder = Path(served.facts["grpc_url"].removeprefix("unix:")).parent
    everyone = [int(each.name) for each in Path("/proc").glob("[0-9]*")]
    (found,) = [pid for pid in everyone if f"-address=unix:{folder.resolve()}/" in command_of(pid)]
    return found


def test_what_is_replaced_is_of_the_bundle_that_answers(watching: Served, bundles: Bundles) -> None:
    if order(watching, "status")["bundle_id"] != bundles.two.bundle_id:
        order(watching, "out", path=str(bundles.two.path))
    for find in (gateway_pid, triton_of):
        told = len(watching.events("replaced"))
        os.kill(find(watching), signal.SIGKILL)
        watching.wait_for(lambda: len(watching.events("replaced")) > told)  # noqa: B023
        watching.wait_for(lambda: watching.answers(tensors.FULL))
        with FieldmarkClient(watching.facts["url"]) as client:
            assert client.classify(encode(bundles.image), network=tensors.FULL).bundle_id == bundles.two.bundle_id


def test_nobody_else_reaches_triton(watching: Served) -> None:
    """It listens at no port; its sockets are in a folder that only its user enters."""
    place = Path(watching.facts["grpc_url"].removeprefix("unix:"))
    assert place.is_socket()
    assert place.parent.parent.stat().st_mode & 0o077 == 0
    assert listening(triton_of(watching)) == set()


def listening(pid: int) -> set[str]:
    """The TCP ports, in hexadecimal, at which a process listens."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(file))
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def test_the_metrics_of_triton_are_where_they_were_and_swallow_no_body(watching: Served) -> None:
    before = triton_of(watching)
    host, port = watching.facts["metrics_url"].split("/")[2].split(":")
    for method, path, body, expected in (
        ("GET", "/metrics", None, 200),
        ("POST", "/metrics", b"x" * 5_000_000, 501),
        ("GET", "/v2/models/full", None, 404),
        ("GET", "/metrics", None, 200),
    ):
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body)
            answer = connection.getresponse()
            assert answer.status == expected
            if expected == 200:
                assert b"nv_inference_request_success" in answer.read()
        connection.close()
    assert triton_of(watching) == before


def test_a_folder_of_bundles_begins_with_the_last_good_one(bundles: Bundles, tmp_path: Path) -> None:
    for name, path in (("v9", bundles.one.path), ("v10", bundles.two.path), ("v11", bundles.damaged)):
        (tmp_path / name).symlink_to(path)
    control = tmp_path / "orders"
    with serving(Bundle(tmp_path, bundles.two.manifest), "--watch", "--control", str(control)) as served:
        assert served.facts["bundle_id"] == bundles.two.bundle_id
        assert "SHA-256" in served.events("refused")[0]["cause"]
