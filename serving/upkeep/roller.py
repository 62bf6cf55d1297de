"""Another bundle, while callers are answered: it comes up beside the one that serves, and the gateway moves.

    order --copy, verify, compare--> a Triton of its own --all networks answer--> the gateway moves --> the old one ends
                     |                         |                                      |
                     `------- refused: what answered before goes on answering, and is told why

Orders are carried out one after the other, in a thread of their own; that starts servers too, and lives as long as
they do. What is looked after meanwhile is changed in the thread that looks after it.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle import Bundle, Manifest
from bundle.errors import EndpointError, FieldmarkError, Interrupted, OptionError, RepositoryError, ServerError
from serving.triton.server import TritonServer
from serving.upkeep.gateway import GatewayProcess
from serving.upkeep.keeper import LOOK_SECONDS, STEP_SECONDS, Trouble
from serving.upkeep.source import Source
from serving.upkeep.store import Store
from serving.upkeep.watch import TritonWatch

OUT, BACK, SHADOW, STATUS = "out", "back", "shadow", "status"
THE_SHADOW = "the shadow's "
Tell = Callable[[str, dict[str, object]], None]


@dataclass(kw_only=True)
class Order:
    """What somebody wants: roll `path` out, go back, or have it answer in the shadow a `share` of the requests.

    `other_labels` allows what callers would notice. `done` holds what the order came to.
    """

    verb: str
    path: Path | None = None
    other_labels: bool = False
    share: float = 0.0
    done: "Future[dict[str, Any]]" = field(default_factory=Future)


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a roller works with.

    `make` gives a server that has not started, at a place of its own, and `end` ends one; `moved` hears which one
    answers now, `tell(event, facts)` what a person should know.
    """

    store: Store
    make: Callable[[Bundle], TritonServer]
    end: Callable[[TritonServer], None]
    moved: Callable[[TritonServer], None]
    tell: Tell


class Roller:
    """Carries out orders, and those that `source` gives; `other_labels` is for these. It is a `Service`."""

    def __init__(
        self,
        watch: TritonWatch,
        gateway: GatewayProcess,
        means: Means,
        *,
        source: Source | None = None,
        other_labels: bool = False,
    ) -> None:
        self.previous: Bundle | None = None
        self.refused: dict[str, object] = {}  # the last one: of what, and why
        self._watch, self._gateway, self._means = watch, gateway, means
        self._source, self._other_labels = source, other_labels
        self._shadow: TritonWatch | None = None
        self._orders: queue.Queue[Order] = queue.Queue()
        self._here: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._working = ""  # the verb of the order in work
        self._leaving: list[TritonServer] = []
        self._ended, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="roller", daemon=True)

    @property
    def bundle(self) -> Bundle:
        """What answers now."""
        return self._watch.server.bundle

    def start(self) -> None:
        """Take orders from now on."""
        self._thread.start()

    def look(self) -> list[Trouble]:
        """Do what is to be done in this thread, and look after the shadow."""
        with contextlib.suppress(queue.Empty):
            while True:
                work, outcome = self._here.get_nowait()
                try:
                    outcome.set_result(work())
                except Exception as problem:  # for whoever waits in the other thread; this one goes on looking
                    outcome.set_exception(problem)
        return self._shadow.look() if self._shadow else []

    def look_at_once(self) -> None:
        """Look at the source anew, also at what was refused."""
        if self._source is not None:
            self._source.forget()

    def obey(self, request: dict[str, Any]) -> dict[str, Any]:
        """What an order, as it came over a socket, has come to; raises FieldmarkError. For any thread but `look`'s."""
        if request["verb"] == STATUS:
            return self.facts()
        path = request.get("path")
        order = Order(
            verb=str(request["verb"]),
            path=Path(path) if path else None,
            other_labels=bool(request.get("other_labels")) or self._other_labels,
            share=float(request.get("share", 0.0)),
        )
        self._orders.put(order)
        return order.done.result()

    def facts(self) -> dict[str, Any]:
        """What answers, what did before, what is in the shadow, what was refused last, and what is going on."""
        facts: dict[str, Any] = {"bundle_id": self.bundle.bundle_id, "name": self.bundle.manifest.name}
        facts["previous"] = self.previous.bundle_id if self.previous else ""
        facts |= {"refused": self.refused, "working": self._working}
        if (shadow := self._shadow) is not None:
            facts["shadow"] = {"bundle_id": shadow.server.bundle.bundle_id}
            with contextlib.suppress(EndpointError, ServerError):  # what it has found can be asked again
                facts["shadow"] = self._gateway.status().get("shadow", facts["shadow"])
        return facts

    def close(self) -> None:
        """Take no more orders, and give up the one in work; what answers goes on."""
        self._ended.set()

    def stop(self) -> None:
        """End the shadow, and the thread: with it the kernel ends every server that was rolled out."""
        self.close()
        if self._shadow is not None:
            self._shadow.close()
            self._means.end(self._shadow.server)
            self._shadow = None
        self._leave.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            with contextlib.suppress(queue.Empty):
                self._carry_out(self._orders.get(timeout=STEP_SECONDS))
            if self._source is not None and time.monotonic() >= due:
                due = time.monotonic() + LOOK_SECONDS
                if (found := self._source.look()) is not None:
                    self._carry_out(Order(verb=OUT, path=found, other_labels=self._other_labels))
        with contextlib.suppress(queue.Empty):
            while True:
                self._orders.get_nowait().done.set_exception(ServerError("the service is stopping"))
        self._leave.wait()

    def _carry_out(self, order: Order) -> None:
        self._working = order.verb
        try:
            carried = {OUT: self._roll_out, BACK: self._go_back, SHADOW: self._cast_shadow}.get(order.verb)
            if carried is None:
                raise OptionError(f"no order is named {order.verb[:20]!r}")
            carried(order)
            self._working = ""
            outcome = self.facts()
        except Exception as problem:  # the thread must go on: with it, every server that was rolled out would end
            told = _told(problem)
            if not self._ended.is_set() and not isinstance(told, OptionError):  # that is for who gave the order
                what = str(order.path) if order.path else order.verb
                self.refused = {"bundle": what, "cause": told.what}
                self._means.tell("refused", self.refused)
            order.done.set_exception(told)
        else:
            order.done.set_result(outcome)
        finally:
            self._working = ""
            with contextlib.suppress(Exception):  # what cannot be removed costs its place until the service ends
                self._tidy()

    def _roll_out(self, order: Order) -> None:
        bundle = self._taken(order)
        if bundle.bundle_id == self.bundle.bundle_id:
            return
        self._refuse_misfit(bundle, order)
        self._serve(bundle)

    def _go_back(self, _: Order) -> None:
        if self.previous is None:
            raise OptionError("there is no bundle to go back to: none was rolled out since the start")
        self._serve(self._means.store.take(self.previous.path))

    def _serve(self, bundle: Bundle) -> None:
        began, before = time.monotonic(), self.bundle
        if self._shadow is not None and self._shadow.server.bundle.bundle_id == bundle.bundle_id:
            old = self._in_charge(self._promote)
        else:
            server = self._started(bundle)
            try:
                old = self._in_charge(lambda: self._move(server))
            except BaseException:
                self._means.end(server)
                raise
        self.previous = before
        seconds = round(time.monotonic() - began, 1)
        self._means.tell("rolled", {"bundle_id": bundle.bundle_id, "before": before.bundle_id, "seconds": seconds})
        self._leaving.append(old)

    def _tidy(self) -> None:
        self._let_go()
        kept = (self.bundle, self.previous, self._shadow.server.bundle if self._shadow else None)
        self._means.store.keep(each.bundle_id for each in kept if each is not None)

    def _let_go(self) -> None:
        """End the servers that answer nobody any more, once they have answered what was asked of them."""
        while self._leaving:
            with contextlib.suppress(FieldmarkError):  # a gateway that has just been replaced knows no other
                self._gateway.settle()
            self._means.end(self._leaving.pop())

    def _move(self, server: TritonServer) -> TritonServer:
        self._gateway.move(server.grpc_url, server.bundle)
        self._means.moved(server)
        return self._watch.move(server)

    def _promote(self) -> TritonServer:
        """What was in the shadow answers: its server is running already."""
        if self._shadow is None:
            raise ServerError("the shadow is gone")
        server = self._shadow.server
        old = self._move(server)
        self._shadow.close()
        self._shadow = None
        with contextlib.suppress(FieldmarkError):  # then it is compared with itself until it is replaced
            self._gateway.shadow("", None, 0.0)
        return old

    def _cast_shadow(self, order: Order) -> None:
        if not order.path:
            self._end_shadow()
            return
        if not 0.0 < order.share <= 1.0:
            raise OptionError(f"a share of {order.share:g} is not between 0 and 1")
        bundle = self._taken(order)
        if bundle.bundle_id == self.bundle.bundle_id:
            raise OptionError(f"bundle {bundle.bundle_id[:12]} answers already, and needs no shadow")
        self._end_shadow()
        server = self._started(bundle)
        try:
            self._in_charge(lambda: self._begin_shadow(server, order.share))
        except BaseException:
            self._means.end(server)
            raise
        self._means.tell("shadow", {"bundle_id": bundle.bundle_id, "share": order.share})

    def _begin_shadow(self, server: TritonServer, share: float) -> None:
        self._gateway.shadow(server.grpc_url, server.bundle, share)
        self._shadow = TritonWatch(server, of=THE_SHADOW)

    def _end_shadow(self) -> None:
        def end() -> TritonServer | None:
            shadow, self._shadow = self._shadow, None
            if shadow is None:
                return None
            with contextlib.suppress(FieldmarkError):  # its next process hears of no shadow
                self._gateway.shadow("", None, 0.0)
            shadow.close()
            return shadow.server

        if (server := self._in_charge(end)) is not None:
            self._means.end(server)

    def _taken(self, order: Order) -> Bundle:
        if order.path is None:
            raise OptionError("no bundle is named")
        return self._means.store.take(order.path)

    def _refuse_misfit(self, bundle: Bundle, order: Order) -> None:
        if not order.other_labels and (what := _difference(self.bundle.manifest, bundle.manifest)):
            raise RepositoryError(
                f"{order.path} has {what}, which callers would notice", hint="If they should: --other-labels."
            )

    def _started(self, bundle: Bundle) -> TritonServer:
        """A server of the bundle, every network of which has answered; raises ServerError."""
        server = self._means.make(bundle)
        server.start(cancelled=self._ended.is_set)
        if self._ended.is_set():
            raise Interrupted("the service is stopping")
        return server

    def _in_charge(self, work: Callable[[], Any]) -> Any:
        """Have `work` done by the thread that looks after what is served, and wait for it."""
        outcome: Future[Any] = Future()
        self._here.put((work, outcome))
        while True:
            try:
                return outcome.result(timeout=STEP_SECONDS)
            except TimeoutError:
                if self._ended.is_set():
                    raise Interrupted("the service is stopping") from None


def _told(problem: Exception) -> FieldmarkError:
    """What whoever gave an order is told of a problem."""
    if isinstance(problem, FieldmarkError):
        return problem
    if isinstance(problem, OSError) and problem.filename:
        return ServerError(f"{problem.filename}: {(problem.strerror or str(problem)).lower()}")
    what = f"the order could not be carried out ({type(problem).__name__}: {str(problem)[:300]})"
    return ServerError(what, hint="What answered before goes on answering.")


def _difference(old: Manifest, new: Manifest) -> str:
    """What callers of fieldmark.v1, who send images as they are, would notice: half a sentence, empty when nothing."""
    if old.labels != new.labels:
        return "other labels"
    if missing := sorted(set(old.networks) - set(new.networks)):
        return f"no network {missing[0]!r}"
    return ""
