"""Several processes that train one network: how they start, what they share, and how their errors come home."""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bundle import errors
from bundle.errors import FieldmarkError, MissingExtra, OptionError, TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Lightning Fabric's words for where to compute and in which precision."""

    accelerator: str = "auto"
    precision: str = "32-true"
    devices: int = 1
    workers: int = 2  # processes that decode images when the set does not fit in memory

    def fabric(self) -> "Fabric":
        """Raises OptionError for what this machine does not have."""
        try:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies.ddp import DDPStrategy
            from lightning_fabric.utilities.exceptions import MisconfigurationException
        except ImportError as problem:
            raise MissingExtra.named("training", "fieldmark train", problem) from None
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it repeats the options it was given
        # Unused parameters: the backbone takes no part in warm-up, the last layer is not trained before projection.
        shared = DDPStrategy(start_method="spawn", find_unused_parameters=True)
        try:
            return Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                precision=self.precision,  # type: ignore[arg-type]
                strategy=shared if self.devices > 1 else "auto",
            )
        except (ValueError, RuntimeError, TypeError, MisconfigurationException) as problem:
            hint = "Check --accelerator, --devices and --precision."
            raise OptionError(f"cannot compute there: {problem}", hint=hint) from None


def in_parallel(devices: Devices, work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(fabric, *arguments)` in as many processes as there are devices; the first one's answer. Everything passed
    must survive pickling. A FieldmarkError of any process is raised here as itself.
    """
    fabric = devices.fabric()
    if devices.devices == 1:
        return work(fabric, *arguments)
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    with tempfile.TemporaryDirectory(prefix="fieldmark-train-") as folder:
        message = Path(folder) / "error.json"
        try:
            launch: Callable[..., Any] = fabric.launch
            return launch(_guarded, work, message, *arguments)
        except (ProcessExitedException, ProcessRaisedException) as problem:
            if message.is_file():
                told = json.loads(message.read_text(encoding="utf-8"))
                raise getattr(errors, told["kind"])(told["what"], hint=told["hint"]) from None
            raise TrainingError(
                f"a training process died ({str(problem).strip().splitlines()[-1]})",
                hint="The last complete epoch is kept: the same command with --resume goes on.",
            ) from None


def _guarded(fabric: "Fabric", work: Callable[..., Any], message: Path, *arguments: Any) -> Any:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // fabric.world_size))
    try:
        return work(fabric, *arguments)
    except FieldmarkError as problem:
        told = {"kind": type(problem).__name__, "what": problem.what, "hint": problem.hint}
        temporary = message.with_suffix(f".{fabric.global_rank}")
        temporary.write_text(json.dumps(told), encoding="utf-8")
        temporary.rename(message)
        raise SystemExit(1) from None


def gathered(fabric: "Fabric", rows: Tensor) -> Tensor:
    """The rows of all processes, [processes * B, ...]; gradients flow back to each."""
    every = fabric.all_gather(rows, sync_grads=rows.requires_grad)
    if not isinstance(every, Tensor):
        raise AssertionError("a tensor gathers to a tensor")
    return every.flatten(0, 1)


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes. PyTorch's own synchronised form refuses CPUs; equal to
    nn.BatchNorm2d on the whole batch, for shares of equal size.
    """

    def forward(self, maps: Tensor) -> Tensor:
        mean_so_far, variance_so_far, counted = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training or mean_so_far is None or variance_so_far is None or counted is None:
            return super().forward(maps)
        from torch.distributed.nn.functional import all_reduce

        dimensions, processes = (0, 2, 3), dist.get_world_size()
        moments = torch.stack([maps.mean(dimensions), maps.square().mean(dimensions)])
        mean, square = all_reduce(moments) / processes
        variance = square - mean.square()
        with torch.no_grad():
            count = maps.numel() / maps.shape[1] * processes
            mean_so_far.lerp_(mean, self.momentum or 0.0)
            variance_so_far.lerp_(variance * count / (count - 1), self.momentum or 0.0)
            counted.add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        normalised: Tensor = maps * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return normalised


def share_statistics(network: nn.Module, device: torch.device) -> None:
    """Let every batch normalisation of `network` see the whole batch; its state keeps its names."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
