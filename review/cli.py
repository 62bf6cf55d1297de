"""`fieldmark review`: a console for what was flagged, on loopback; or out of it, without one."""

import asyncio
import contextlib
import getpass
import json as jsonlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console as Terminal

from bundle import Bundle
from bundle.console import say
from bundle.errors import MissingExtra, OptionError, ReviewError, ServerError
from bundle.files import lock_for_this_process
from bundle.verbs import App

if TYPE_CHECKING:
    from review.sources.source import Source
    from review.store.database import Database

app = App()

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the console listens, the names it answers to besides, and whether an Envoy stands before it."""

    port: int
    names: tuple[str, ...]
    behind_envoy: bool


@app.callback()
def verbs() -> None:
    """Keeps `review` a command of its own name while it is the only one here."""


@app.command()
def review(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="The gateway's quarantine, a folder that 'fieldmark score' has finished, or a Delta table of scores.",
        ),
    ],
    bundle: Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="The bundle that answered.")],
    db: Annotated[
        Path | None,
        typer.Option("--db", metavar="FILE", help="Where decisions are kept. Default: SOURCE-review.db, beside it."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Where the scored images lie now, if they moved.")
    ] = None,
    reviewer: Annotated[
        str | None,
        typer.Option(
            "--reviewer", metavar="NAME", help="Who decides, until another name is given; behind an Envoy keys say it."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on loopback; 0 takes any free one.")] = 0,
    behind_envoy: Annotated[
        list[str] | None,
        typer.Option(
            "--behind-envoy",
            metavar="HOST[:PORT]",
            help="An Envoy that checks keys stands before the console under this name, and says whose key it was; "
            "there is no token then. May be given more than once.",
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="FORMAT",
            help="Write what is decided and end: csv, parquet, fiftyone, "
            "label-studio, or attacks (a family for the detector's tests).",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="File or folder of --export.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the address as one line of JSON when ready.")] = False,
) -> None:
    """Look at what was flagged, decide, and make the next calibration better. Until Ctrl-C or SIGTERM.

    The page is on loopback, and its address holds a token. Decisions are kept in one SQLite file, by whom and when.
    """
    if (export is None) != (out is None):
        raise OptionError("--export and --out belong together")
    if behind_envoy and reviewer is not None:
        raise OptionError(
            "--reviewer says who decides, and --behind-envoy that keys do",
            hint="Leave --reviewer out: a key has a name.",
        )
    require_libraries()
    from review.sources.source import open_source
    from review.store.database import Database

    place = db or beside(source)
    opened = Bundle.open(bundle)
    found = open_source(source, opened, images=images)
    database = Database.open(place, source=found.place, bundle_id=opened.bundle_id)
    if export is not None and out is not None:
        _export(export, out, database, found, opened)
        return
    listening = Listening(port=port, names=tuple(behind_envoy or ()), behind_envoy=bool(behind_envoy))
    asyncio.run(_serve(database, found, opened, listening, reviewer or _user(), json))


def beside(source: str) -> Path:
    """Where decisions are kept unless somebody names a place; raises OptionError for a store that has no beside."""
    if "://" in source:
        raise OptionError(f"{source} is no folder here, so decisions need a place", hint="Name a file with --db.")
    path = Path(os.path.abspath(source))
    return path.with_name(f"{path.name}-review.db")


def require_libraries() -> None:
    """Raise MissingExtra where the pages cannot be made."""
    try:
        import jinja2  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as problem:
        raise MissingExtra.named("review", "fieldmark review", problem) from None


def _export(format: str, out: Path, database: "Database", source: "Source", bundle: Bundle) -> None:
    from review.follower import Follower
    from review.out.export import export
    from review.store.queue import DECIDED, Filter

    Follower(database, source, bundle).turn()
    made = export(format, out, database, source, bundle.manifest.image, Filter(state=DECIDED))
    terminal = Terminal()
    if made.missing:
        say(terminal, f"{made.missing:,} images are gone, or are none, and were left out")
    say(terminal, f"{format}: {made.path}")


async def _serve(
    database: "Database", source: "Source", bundle: Bundle, listening: Listening, reviewer: str, json: bool
) -> None:
    from review.evidence.look import Looker
    from review.follower import Follower
    from review.pages.access import TOKEN, Door, hosts_of
    from review.pages.app import application
    from review.pages.page import Console

    with _socket(listening.port) as bound, _alone(database.path) as alone:
        port = bound.getsockname()[1]
        door = Door(
            hosts=hosts_of(LOOPBACK, port, listening.names), port=port, reviewer=reviewer, keyed=listening.behind_envoy
        )
        follower = Follower(database, source, bundle)
        console = Console(
            database=database, source=source, follower=follower, looker=Looker(bundle), door=door, alone=alone
        )
        server = _server(application(console))
        stop = asyncio.get_running_loop().add_signal_handler
        for number in (signal.SIGINT, signal.SIGTERM):
            stop(number, setattr, server, "should_exit", True)
        follower.start()
        try:
            serving = asyncio.create_task(server.serve(sockets=[bound]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if serving.done():
                raise ServerError("the console could not start")
            url = f"http://{LOOPBACK}:{port}/"
            _announce(url if door.keyed else f"{url}?{TOKEN}={door.token}", database.path, json)
            await serving
        finally:
            follower.stop()


def _server(application: Any) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """They are ours."""
            yield

    # A phone that holds its connection open must not hold the end of the console.
    config = uvicorn.Config(
        application,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
    )
    return Server(config)


@contextlib.contextmanager
def _socket(port: int) -> Iterator[socket.socket]:
    # Of a socket that is not said to be TCP's, asyncio does not know that small packets are not to wait for each other.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((LOOPBACK, port))
        except OSError as problem:
            raise OptionError(
                f"port {port} cannot be used ({problem.strerror})", hint="Choose another, or 0 for any free one."
            ) from None
        yield bound


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other console has this database open; both may work, and each says so."""
    # In a file of its own: whoever closes the database's file lets go of SQLite's locks on it.
    lock = path.with_name(f"{path.name}-console")
    handle = os.open(lock, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        try:
            lock_for_this_process(handle, ReviewError("busy"))
        except (ReviewError, OSError):
            yield False
        else:
            try:
                yield True
            finally:
                lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _announce(url: str, database: Path, json: bool) -> None:
    if json:
        sys.stdout.write(jsonlib.dumps({"url": url, "database": str(database), "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
        return
    say(Terminal(), f"console    {url}", f"decisions  {database}", "Ctrl-C stops it; what was decided is kept.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without names
        return "reviewer"
