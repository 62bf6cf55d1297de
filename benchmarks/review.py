"""The review console before ten thousand waiting images, as a browser feels it, beside a plain file server.

Milliseconds of whole answers over one kept connection to the real verb in a process of its own; the file server hands
out the very bytes of the first page, so that what is left is the console's own work.
"""

import contextlib
import hashlib
import http.client
import http.server
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from PIL import Image

from benchmarks.record import percentiles, side_by_side
from bundle.folder import Bundle
from demo.stages import StageFailed
from serving.quarantine.entry import RECORD, Entry, LayerEvidence, place_of, write_record

ITEMS, ROUNDS, DECISIONS = 10_000, 40, 60
START = datetime(2026, 1, 1, tzinfo=UTC)


def measure_review(bundle_path: Path, items: int = ITEMS) -> dict[str, Any]:
    """First page, a later hundred rows, groups, figures, one image, a decision; the seconds until all is worked out."""
    bundle = Bundle.open(bundle_path)
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        root = Path(folder) / "quarantine"
        fill(root, bundle, items)
        with served(root, bundle_path) as browser:
            began = time.perf_counter()
            while f"{items:,} images here</p>" not in browser.get("/?state=any"):  # else it says what it is doing
                time.sleep(0.5)
            worked_out = time.perf_counter() - began
            first = browser.get("/")
            later = re.findall(r'hx-get="(/rows[^"]+)"', first)[items // 200].replace("&amp;", "&")
            with file_server(first) as files:
                answers = side_by_side(
                    {
                        "file_server": partial(files.get, "/page.html"),
                        "first_page": partial(browser.get, "/"),
                        "later_rows": partial(browser.get, later),
                        "groups": partial(browser.get, "/groups"),
                        "figures": partial(browser.get, "/figures"),
                        "one_image": partial(browser.get, "/items/1"),
                        "thumbnail": partial(browser.get, "/items/1/thumbnail.img"),
                    },
                    rounds=ROUNDS,
                )
            return {
                "items": items,
                "seconds_until_worked_out": round(worked_out, 1),
                "first_page_bytes": len(first),
                "answers": answers,
                "decision_ms": percentiles(decisions(browser, first)),
            }


def fill(root: Path, bundle: Bundle, items: int) -> None:
    """A quarantine of so many entries, of pictures that are not copies of each other."""
    random = np.random.default_rng(0)
    network = bundle.manifest.main_network
    columns = bundle.manifest.networks[network].detector.columns
    spec = bundle.manifest.image
    for number in range(items):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((spec.width, spec.height), Image.Resampling.BICUBIC).save(stream, "JPEG")
        data, when = stream.getvalue(), START + timedelta(seconds=37 * number)
        received, identity = when.isoformat(timespec="milliseconds"), hashlib.md5(data).hexdigest()
        day, stem = place_of(received, identity)
        flagged = number % 5 > 0
        entry = Entry(
            schema=1,
            id=identity,
            received=received,
            reason="flagged" if flagged else "sample",
            drawn=not flagged or number % 50 == 1,
            request_id=str(number),
            caller=f"caller-{number % 7}",
            bundle_id=bundle.bundle_id,
            network=network,
            label=bundle.manifest.labels[number % len(bundle.manifest.labels)],
            probability=0.9,
            score=float(number % 997),
            p_value=(1 + number % 40) / 801 if flagged else float(random.uniform(0.06, 1)),
            alpha=0.05,
            flagged=flagged,
            layers=tuple(
                LayerEvidence(layer=name, squared_distance=float(value))
                for name, value in zip(columns, random.lognormal(3, 1, len(columns)), strict=True)
            ),
            image=f"{stem}.jpg",
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
        )
        (root / day).mkdir(parents=True, exist_ok=True)
        (root / day / entry.image).write_bytes(data)
        (root / day / f"{stem}{RECORD}").write_bytes(write_record(entry))


class Browser:
    """One kept connection with its cookies; every answer is read whole."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.netloc, timeout=120)
        self.cookie = ""
        if parts.query:
            self.connection.request("GET", f"/?{parts.query}")
            answer = self.connection.getresponse()
            answer.read()
            self.cookie = (answer.getheader("set-cookie") or "").partition(";")[0]

    def get(self, path: str) -> str:
        """The text of an answer."""
        return self._ask("GET", path, None)

    def post(self, path: str, form: dict[str, str]) -> str:
        """The same of a form's, as htmx sends it."""
        return self._ask("POST", path, urlencode(form))

    def _ask(self, method: str, path: str, body: str | None) -> str:
        headers = {"cookie": self.cookie, "hx-request": "true" if body else "false"}
        if body:
            headers["content-type"] = "application/x-www-form-urlencoded"
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        if answer.status != 200:
            raise StageFailed(f"{path} answered {answer.status}")
        return text


@contextlib.contextmanager
def served(root: Path, bundle: Path) -> Iterator[Browser]:
    """The verb in a process of its own."""
    command = [sys.executable, "-m", "fieldmark", "review", str(root), "--bundle", str(bundle), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise StageFailed("the console did not start", hint="Its message stands above.")
        yield Browser(json.loads(line)["url"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@contextlib.contextmanager
def file_server(page: str) -> Iterator[Browser]:
    """Python's own server, of one file that holds `page`."""
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        (Path(folder) / "page.html").write_text(page, encoding="utf-8")
        handler = partial(_Quiet, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield Browser(f"http://127.0.0.1:{server.server_address[1]}")
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a kept connection, as the console's is

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


def decisions(browser: Browser, page: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Milliseconds of each of some decisions, on the disk before they are answered."""
    token = re.search(r'name="csrf" value="(\w+)"', page)
    if token is None:
        raise StageFailed("the first page holds no form")
    numbers = re.findall(r'data-id="(\d+)"', page)[:DECISIONS]
    form = {"csrf": token[1], "verdict": "attack", "state": "waiting"}
    return np.array([_milliseconds(partial(browser.post, f"/items/{number}/decide", form)) for number in numbers])


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)
