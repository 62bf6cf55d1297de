"""Where to compute, and several processes that train one network: how they start, and how their errors come home.

What such processes share, step by step, is in `training.sharing`.
"""

import json
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from bundle import errors
from bundle.errors import FieldmarkError, MissingExtra, OptionError, TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


# Weights stay in float32: the heads compute in it, and a detector is fitted on what they give. Half precision proper
# would need a loss scale, one more state that a resumed run must not lose.
PRECISIONS = ("32-true", "bf16-mixed")
AUTO = "auto"
CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = {
    "avx512_bf16",
    "amx_bf16",
    "avx_ne_convert",
    "bf16",
}  # of a processor with such arithmetic; the last is ARM's


def default_precision(backbone: str, accelerator: str) -> str:
    """bfloat16 for the large backbones where the device that `accelerator` stands for computes in it, which halves the
    time; else float32.
    """
    if backbone == "small":
        return PRECISIONS[0]
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return PRECISIONS[bool(torch.cuda.is_bf16_supported())]
    try:
        words = set(CPUINFO.read_text(encoding="utf-8").split())
    except OSError:
        return PRECISIONS[0]
    return PRECISIONS[bool(words & BF16_FLAGS)]


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Lightning Fabric's words for where to compute and in which precision."""

    accelerator: str = "auto"
    precision: str = "32-true"
    devices: int = 1
    workers: int = 2  # processes that decode images when the set does not fit in memory

    def fabric(self, *, frozen_parts: bool = False) -> "Fabric":
        """Raises OptionError for what this machine does not have. `frozen_parts`: not every parameter takes part in
        every step, which processes that train together must know.
        """
        if self.precision not in PRECISIONS:
            raise OptionError(f"unknown precision {self.precision!r}", hint=f"Choose one of: {', '.join(PRECISIONS)}.")
        try:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies.ddp import DDPStrategy
            from lightning_fabric.utilities.exceptions import MisconfigurationException
        except ImportError as problem:
            raise MissingExtra.named("training", "fieldmark train", problem) from None
        _hush()
        shared = DDPStrategy(start_method="spawn", find_unused_parameters=frozen_parts)
        try:
            return Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                precision=self.precision,  # type: ignore[arg-type]
                strategy=shared if self.devices > 1 else "auto",
            )
        except (ValueError, RuntimeError, TypeError, ImportError, MisconfigurationException) as problem:
            hint = "Check --accelerator, --devices and --precision."
            raise OptionError(f"cannot compute there: {problem}", hint=hint) from None


def _hush() -> None:
    """Fabric repeats the options it was given and counts its processes aloud."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


def in_parallel(devices: Devices, work: Callable[["Fabric"], None], *, frozen_parts: bool = False) -> None:
    """`work(fabric)` in as many processes as there are devices; it must survive pickling. A FieldmarkError of any
    process is raised here as itself.
    """
    fabric = devices.fabric(frozen_parts=frozen_parts)
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    with tempfile.TemporaryDirectory(prefix="fieldmark-train-") as folder:
        message = Path(folder) / "error.json"
        try:
            launch: Callable[..., Any] = fabric.launch
            launch(_guarded, work, message)
        except (ProcessExitedException, ProcessRaisedException) as problem:
            if message.is_file():
                told = json.loads(message.read_text(encoding="utf-8"))
                raise getattr(errors, told["kind"])(told["what"], hint=told["hint"]) from None
            raise TrainingError(
                f"a training process died ({str(problem).strip().splitlines()[-1]})",
                hint="The last complete epoch is kept: the same command with --resume goes on.",
            ) from None
        finally:  # whoever stops this process stops those that it has started
            for child in multiprocessing.active_children():
                child.terminate()
                child.join()


def _guarded(fabric: "Fabric", work: Callable[["Fabric"], None], message: Path) -> None:
    _hush()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // fabric.world_size))
    try:
        work(fabric)
    except FieldmarkError as problem:
        told = {"kind": type(problem).__name__, "what": problem.what, "hint": problem.hint}
        temporary = message.with_suffix(f".{fabric.global_rank}")
        temporary.write_text(json.dumps(told), encoding="utf-8")
        temporary.rename(message)
        raise SystemExit(1) from None
    fabric.barrier()  # nobody leaves while another still talks to it
    dist.destroy_process_group()
