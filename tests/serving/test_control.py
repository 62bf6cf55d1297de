"""Orders over a socket, and where that socket is: what comes back for each thing that can go wrong."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import EndpointError, OptionError, ServerError
from serving.control import LONGEST_PATH, Control, tell
from serving.upkeep.place import control_path, prepare


def obey(request: dict[str, Any]) -> dict[str, Any]:
    if request["verb"] == "no":
        raise ServerError("it is refused", hint="Do without.")
    return {"heard": request}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    control = Control(tmp_path / "orders", obey)
    control.open()
    yield control.path
    control.close()
    control.close()
    assert not control.path.exists()


def test_an_order_and_its_answer(place: Path) -> None:
    assert tell(place, "do", seconds=10, path="/x") == {"heard": {"verb": "do", "path": "/x"}}
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_a_refusal_comes_back_in_its_words(place: Path) -> None:
    with pytest.raises(ServerError, match="it is refused") as refused:
        tell(place, "no", seconds=10)
    assert refused.value.hint == "Do without."


@pytest.mark.parametrize("line", [b"", b"\n", b"[]\n", b"{}\n", b"\xff\n", b"[" * 60_000 + b"\n", b'{"verb": 1}'])
@pytest.mark.hostile
def test_what_is_no_order(place: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(place))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").readline()
    assert b"no such order" in answer or b'"heard": {"verb": 1}' in answer
    assert tell(place, "do", seconds=10)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"nobody listens.*or name its --control SOCKET"):
        tell(tmp_path / "orders", "do", seconds=10)


def test_somebody_who_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        mute.bind(str(tmp_path / "orders"))
        mute.listen()
        with pytest.raises(EndpointError, match="no answer"):
            tell(tmp_path / "orders", "do", seconds=0.1)


@pytest.mark.hostile
@pytest.mark.parametrize("line", [b"hello\n", b"\xff\n", b"[]\n", b"null\n", b'"x"\n', b"7\n", b"[" * 60_000 + b"\n"])
def test_somebody_else_who_listens_there(tmp_path: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "orders"))
        other.listen()

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(line)

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        with pytest.raises(EndpointError, match="does not answer as a service"):
            tell(tmp_path / "orders", "do", seconds=10)
        answering.join(timeout=10)


def test_what_a_killed_one_left_is_no_obstacle(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / "orders"))
    control = Control(tmp_path / "orders", obey)
    control.open()
    assert tell(tmp_path / "orders", "do", seconds=10)
    control.close()


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["a file", "a folder", "a link"])
def test_what_lies_at_the_place_is_left_alone(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "orders"
    {"a file": place.touch, "a folder": place.mkdir, "a link": lambda: place.symlink_to("theirs")}[kind]()
    with pytest.raises(OptionError, match="is there already, and is no socket"):
        Control(place, obey).open()
    assert place.is_symlink() or place.exists()


def test_orders_of_another_are_not_taken_over(place: Path) -> None:
    second = Control(place, obey)
    with pytest.raises(OptionError, match="somebody listens"):
        second.open()
    second.close()
    assert tell(place, "do", seconds=10)


def test_who_ends_leaves_the_socket_of_another(tmp_path: Path) -> None:
    first, second = Control(tmp_path / "orders", obey), Control(tmp_path / "orders", obey)
    first.open()
    first.path.unlink()
    second.open()
    first.close()
    assert tell(tmp_path / "orders", "do", seconds=10)
    second.close()
    assert not second.path.exists()


@pytest.mark.hostile
def test_a_place_where_no_socket_can_be(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="too long for a socket"):
        Control(tmp_path / ("x" * LONGEST_PATH), obey).open()
    with pytest.raises(OptionError, match="no socket can be made"):
        Control(Path("/nowhere/orders"), obey).open()


def test_the_place_is_of_the_port_and_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = control_path(8010)
    assert place == tmp_path / "fieldmark" / "8010"
    prepare(place, ours=True)
    prepare(place, ours=True)
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(os.getuid()) in str(control_path(8010))


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_place_that_others_made(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "fieldmark"
    if kind == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to("theirs")
    else:
        folder.touch()
    with pytest.raises(OptionError):
        prepare(folder / "8010", ours=True)
