"""How far attacks that take hours have come, on disk: a run that is killed goes on with the batch that it was at.

Every batch of images is attacked from a random start of its own, so that what is done does not depend on when it was
stopped.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bundle.canonical import canonical_json
from bundle.errors import OptionError, first_line
from bundle.files import leftovers, write_text
from bundle.progress import Work
from robustness.adaptive import AdaptiveAttack, attack_both
from robustness.defended import Defended
from robustness.suites import Suite
from training.pixels import from_bytes

CHOSEN = "suite "  # begins the keys of what was chosen, not measured
BATCH, GPU_BATCH = 16, 64  # images; what a kill costs at most
Success = npt.NDArray[np.bool_]


class Journal:
    """Outcomes of finished batches, by whatever decides them. Without a path it lasts as long as the process."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.done: dict[str, str] = {}
        if path is None or not path.is_file():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.done = {str(key): str(bits) for key, bits in found.items()}
            if any(set(bits) - set("01") for key, bits in self.done.items() if not key.startswith(CHOSEN)):
                raise ValueError("outcomes are no text of 0 and 1")
        except (OSError, ValueError, AttributeError, RecursionError) as problem:
            raise self._unreadable(problem) from None

    def close(self) -> None:
        """All is told elsewhere by now; what killed writers left goes too."""
        if self.path is None:
            return
        for left in leftovers(self.path.parent):
            if left.name.startswith(f".{self.path.name}."):
                left.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def outcome(self, key: str, count: int) -> Success | None:
        """Of a batch of so many images, (count,), or None where it is not finished."""
        bits = self.done.get(key, "")
        return np.array([bit == "1" for bit in bits]) if len(bits) == count else None

    def note(self, key: str, outcome: Success) -> None:
        """A finished batch, on disk at once."""
        self._keep(key, "".join("01"[int(each)] for each in outcome))

    def chosen(self, told: Mapping[str, Any], network: nn.Module, choose: Callable[[], Suite]) -> Suite:
        """What of a suite was chosen for the time that is allowed, at the first start: the clock says another one each
        time, and what is finished would be for nothing. `told` and the network's weights decide.
        """
        key = CHOSEN + key_of(told, network)
        if key not in self.done:
            self._keep(key, json.dumps(asdict(choose())))
        try:
            kept: dict[str, Any] = json.loads(self.done[key])
            plain: Any = {name: tuple(each) if isinstance(each, list) else each for name, each in kept.items()}
            return Suite(**plain)
        except (ValueError, TypeError, AttributeError, RecursionError) as problem:
            raise self._unreadable(problem) from None

    def _unreadable(self, problem: BaseException) -> OptionError:
        return OptionError(f"the progress in {self.path} cannot be read ({first_line(problem)})", hint="Remove it.")

    def _keep(self, key: str, value: str) -> None:
        self.done[key] = value
        if self.path is not None:
            write_text(self.path, json.dumps(self.done, indent=0) + "\n")


def success(
    attack: AdaptiveAttack,
    defended: Defended,
    part: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
    seed: int,
    journal: Journal,
    work: Work | None = None,
) -> Success:
    """Which images (n, H, W, 3) with labels (n,) the attack gets past network and detector: (n,)."""
    images, labels = part
    device, found = next(defended.parameters()).device, []
    state, size = _digest(defended), GPU_BATCH if device.type == "cuda" else BATCH
    for start in range(0, len(labels), size):
        batch, known = images[start : start + size], labels[start : start + size]
        told = {**asdict(attack), "seed": seed, "batch": start, "defended": state}
        pictures = hashlib.sha256(batch.tobytes() + known.tobytes()).hexdigest()
        key = key_of({**told, "images": pictures})
        outcome = journal.outcome(key, len(known))
        if outcome is None:
            generator = torch.Generator().manual_seed(seed + start)
            pixels, truth = from_bytes(torch.from_numpy(batch).to(device)), torch.from_numpy(known).to(device)
            outcome = attack_both(attack, defended, pixels, truth, generator).fooled.cpu().numpy()
            journal.note(key, outcome)
        found.append(outcome)
        if work is not None:
            work.advance(len(known))
    return np.concatenate(found)


def key_of(told: Mapping[str, Any], *modules: nn.Module) -> str:
    """Of what is measured: all that decides the outcome, the least change of whose weights makes another."""
    digest = hashlib.sha256(canonical_json(told).encode())
    for module in modules:
        _add_weights(digest, module)
    return digest.hexdigest()


def _add_weights(digest: "hashlib._Hash", module: nn.Module) -> None:
    tensors: Mapping[str, Any] = module.state_dict()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())


def _digest(defended: Defended) -> str:
    """Of weights and detector."""
    digest = hashlib.sha256(defended.head.encode())
    _add_weights(digest, defended)
    for name, rows in defended.detector.calibration_rows.items():
        digest.update(name.encode() + rows.tobytes())
    return digest.hexdigest()
