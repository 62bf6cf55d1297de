"""Every process killed and halted: how long until all networks answer again, and who noticed meanwhile."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks.reliability.deployment import ENVOY, GATEWAY, TRITON, wait_until
from benchmarks.reliability.neighbours import neighbours
from benchmarks.reliability.rows import RECOVERY_SECONDS, Ground, Outcome, Row, Skipped, tally, whole
from benchmarks.reliability.wire import Heard, outcome
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub
from serving.processes import command_of

CALM_SECONDS = 2.0  # of neighbours' calls before a blow, and after the recovery
HALT_SECONDS = 15.0  # that the supervisor itself stands still
_NAMED = {signal.SIGKILL: ("SIGKILL",), signal.SIGSTOP: ("halted", "no answer")}  # what a true cause says
_STRUCK = {signal.SIGKILL: "kill -9", signal.SIGSTOP: "SIGSTOP"}


def strike(ground: Ground, who: str, number: signal.Signals) -> Outcome:
    """Send a signal to one process of the service, and wait until every network answers at both doors again.

    Neighbours are those who call what was not struck: the other network, where one network's worker was.
    """
    deployment, heard = ground.deployment, Heard()
    if who not in (pids := deployment.pids()):
        raise Skipped(f"there is no {who} here: {', '.join(pids)}")
    struck = who.removeprefix("worker ") if who.startswith("worker ") else None
    networks = tuple(ground.known.manifest.networks)
    others = tuple(each for each in networks if struck is not None and each != struck)
    known = ground.known
    with (
        neighbours(deployment.envoy, known, heard, networks=others or networks) as beside,
        neighbours(deployment.gateway, known, heard, networks=(struck,) if struck else networks, callers=1) as within,
    ):
        time.sleep(CALM_SECONDS)
        began = time.monotonic()
        os.kill(pids[who], number)
        wait_until(lambda: deployment.pids().get(who, pids[who]) != pids[who])
        wait_until(lambda: whole(deployment, ground))
        recovery = time.monotonic() - began
        time.sleep(CALM_SECONDS)
    causes = [str(each["cause"]) for each in deployment.events("trouble")]
    numbers: dict[str, float] = {
        "recovery_seconds": round(recovery, 1),
        "neighbours_answered": beside.answered if others else 0,
        "neighbours_failed": beside.failures if others else 0,
        "wrong_answers": beside.wrong + within.wrong,
        "texts": heard.texts,
        "leaks": len(heard.leaks),
    }
    own = within.failed if others else within.failed + beside.failed
    cause = causes[-1] if causes else "no cause"
    happened = f"answers again after {recovery:.1f} s; said: {cause}; callers of it: {tally(own) or 'nothing'}"
    if heard.leaks:
        happened += f"; over the wire: {heard.leaks[0]!r}"
    named = any(word in cause for word in _NAMED[number])
    held = (
        named
        and recovery <= RECOVERY_SECONDS
        and not any(numbers[each] for each in ("neighbours_failed", "wrong_answers", "leaks"))
    )
    return Outcome(happened=happened, held=held, numbers=numbers)


def _after_a_bad_request(ground: Ground) -> Outcome:
    deployment, heard = ground.deployment, Heard()
    with deployment.gateway.channel() as channel:
        stub: Any = FieldmarkStub(channel)
        _, status = outcome(heard, stub.Classify, v1.ClassifyRequest(image=b"bad"), timeout=10)
    with grpc.insecure_channel(deployment.facts["grpc_url"]) as channel:
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        outcome(heard, send, b"\x0a\x04full", timeout=10)
    result = strike(ground, TRITON, signal.SIGKILL)
    cause = str(deployment.events("trouble")[-1]["cause"])
    result.happened = f"after {status}: {result.happened}"
    result.held &= cause == "killed by SIGKILL"
    return result


def _supervisor_killed(ground: Ground) -> Outcome:
    deployment = ground.deployment
    pids = deployment.pids()
    commands = {pid: command_of(pid) for pid in pids.values()}
    os.kill(deployment.pid, signal.SIGKILL)
    gone = wait_until(lambda: not any(command_of(pid) == commands[pid] for pid in pids.values()), 30)
    ground.drop()
    began = time.monotonic()
    wait_until(lambda: whole(ground.deployment, ground))
    recovery = time.monotonic() - began
    return Outcome(
        happened=f"nothing of it is left after {gone:.1f} s; started again, it answers after {recovery:.1f} s",
        held=gone <= RECOVERY_SECONDS,
        numbers={"gone_seconds": round(gone, 1), "start_seconds": round(recovery, 1)},
    )


def _supervisor_halted(ground: Ground) -> Outcome:
    deployment, heard = ground.deployment, Heard()
    with neighbours(deployment.gateway, ground.known, heard) as told:
        os.kill(deployment.pid, signal.SIGSTOP)
        try:
            time.sleep(HALT_SECONDS if not ground.quick else 5.0)
        finally:
            os.kill(deployment.pid, signal.SIGCONT)
        time.sleep(CALM_SECONDS)
    numbers: dict[str, float] = {
        "neighbours_answered": told.answered,
        "neighbours_failed": told.failures,
        "wrong_answers": told.wrong,
        "leaks": len(heard.leaks),
    }
    held = not any(numbers[each] for each in ("neighbours_failed", "wrong_answers", "leaks")) and deployment.alive
    unit = Path(__file__).parents[2] / "deploy" / "fieldmark.service"
    watched = "WatchdogSec=" in unit.read_text(encoding="utf-8")
    happened = f"callers notice nothing; under systemd its watchdog {'ends' if watched else 'does not end'} it"
    return Outcome(happened=happened, held=held and watched, numbers=numbers)


def _blows() -> list[Row]:
    rows = []
    struck: dict[str, tuple[str, Callable[[Ground, signal.Signals], Outcome]]] = {
        "worker": ("one network's worker", lambda ground, number: strike(ground, "worker full", number)),
        "tritonserver": ("tritonserver", lambda ground, number: strike(ground, TRITON, number)),
        "gateway": ("the gateway", lambda ground, number: strike(ground, GATEWAY, number)),
        "envoy": ("Envoy", lambda ground, number: strike(ground, ENVOY, number)),
    }
    for name, (who, run) in struck.items():
        for number, verb in _STRUCK.items():
            suffix = "killed" if number == signal.SIGKILL else "halted"
            must = f"Replaced, and answering within {RECOVERY_SECONDS:g} s; the cause named as it is"
            if name == "worker":
                must += "; callers of the other network notice nothing"
            rows.append(
                Row(name=f"{name}-{suffix}", tried=f"{verb} of {who}", must=must, run=partial(_blow, run, number))
            )
    return rows


def _blow(run: Callable[[Ground, signal.Signals], Outcome], number: signal.Signals, ground: Ground) -> Outcome:
    return run(ground, number)


ROWS = (
    *_blows(),
    Row(
        name="killed-after-a-bad-request",
        tried="kill -9 of tritonserver after one bad request",
        must="The cause is SIGKILL, and not the request",
        run=_after_a_bad_request,
    ),
    Row(
        name="supervisor-killed",
        tried="kill -9 of `fieldmark serve` itself",
        must=f"Nothing of it is left within {RECOVERY_SECONDS:g} s, and it can be started again",
        run=_supervisor_killed,
    ),
    Row(
        name="supervisor-halted",
        tried="SIGSTOP of `fieldmark serve` itself",
        must="Callers notice nothing; systemd's watchdog ends it",
        run=_supervisor_halted,
    ),
)
