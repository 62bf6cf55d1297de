"""A training run on disk: what was asked (run.json), where it stands (state.pt), what came out (model.pt).

run.json        config, labels, dataset, versions, results; plain JSON
bad.csv         path and reason of each image that was left out, where there are any
state.pt        everything needed to go on: weights, optimiser, epoch, history; loaded with weights_only
model.pt        the finished network's state dict
prototypes.json which training image, and where in it, each prototype was projected onto; for networks with prototypes
tensorboard/    the curves of the run, for `tensorboard --logdir`
"""

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bundle.errors import CheckpointError, OptionError, first_line
from bundle.files import atomic_file, lock_for_this_process, sha256_of, write_text
from bundle.image import ImageSpec
from bundle.records import RecordError, from_plain, to_plain
from training.config import TrainingConfig
from training.data import Shares
from training.data.record import DatasetRecord
from training.networks import Network, NetworkConfig
from training.systems import SYSTEMS

RUN_SCHEMA = 3
BAD = "bad.csv"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json."""

    schema: int
    config: TrainingConfig
    labels: tuple[str, ...]
    dataset: DatasetRecord
    versions: dict[str, str]
    results: dict[str, Any] = field(default_factory=dict)


def published_config(config: TrainingConfig) -> dict[str, Any]:
    """What goes into a bundle, a report and results: of a file or run that it began with, the name alone, and of a file
    its digest, by which others know it; no path of this machine.
    """
    plain: dict[str, Any] = json.loads(json.dumps(to_plain(config)))
    for key in ("weights", "start"):
        if plain[key] not in (None, "imagenet"):
            path = Path(plain[key])
            plain[key] = path.name
            if path.is_file():
                plain[f"{key}_file_sha256"] = sha256_of(path)
    return plain


CELLS = 1  # a prototype's box reaches this many feature-map cells beyond its own


@dataclass(frozen=True, kw_only=True)
class PrototypeSource:
    """The training patch that a prototype equals after projection: cell (row, column) of the feature map."""

    label: int
    source: str  # key of the training image
    row: int
    column: int

    def box(self, stride: int, spec: ImageSpec) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the patch in the image's pixels: its cell and the ones next to it."""
        low = [max(0, (cell - CELLS) * stride) for cell in (self.column, self.row)]
        high = [
            min(edge, (cell + 1 + CELLS) * stride)
            for cell, edge in zip((self.column, self.row), (spec.width, spec.height), strict=True)
        ]
        return low[0], low[1], high[0], high[1]


class Run:
    """The folder of one run. Files are replaced whole, so a killed run keeps its last complete state."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        return (self.path / "model.pt").is_file()

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep a second training out of this folder; the kernel lets go of it however this process ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            busy = CheckpointError(
                f"another fieldmark train is writing to {self.path}", hint="Wait for it, or choose another --out."
            )
            # network file systems cannot lock a folder; a run there is not refused for that
            with contextlib.suppress(OSError):
                lock_for_this_process(handle, busy)
            yield
        finally:
            os.close(handle)

    def clear(self) -> None:
        """Remove this run's files, and only them."""
        for name in ("model.pt", "prototypes.json", "state.pt", "best.pt", BAD, "run.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def write_record(self, record: RunRecord) -> None:
        if record.dataset.bad:
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *record.dataset.bad.items()])
            write_text(self.path / BAD, text.getvalue())
        write_text(self.path / "run.json", json.dumps(to_plain(record), indent=2, ensure_ascii=False) + "\n")

    def read_record(self) -> RunRecord:
        """Raises CheckpointError when there is no run here or it is of another version."""
        path = self.path / "run.json"
        if not path.is_file():
            raise CheckpointError(
                f"there is no training run at {self.path}", hint="Make one: fieldmark train DATA --out RUN"
            )
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            schema = document.get("schema") if isinstance(document, dict) else None
            if isinstance(schema, int) and schema != RUN_SCHEMA:
                raise CheckpointError(
                    f"{path} has schema {schema}, and this version reads {RUN_SCHEMA}", hint="Train the run again."
                )
            return from_plain(RunRecord, document)
        except (RecordError, ValueError, OptionError) as problem:
            raise CheckpointError(f"{path} cannot be read ({problem})", hint="Train the run again.") from None

    def check_settings(self, config: TrainingConfig) -> None:
        """Raises CheckpointError when this run was started with another config than `config`."""
        if other := list(_differences(to_plain(self.read_record().config), to_plain(config))):
            raise CheckpointError(
                f"{self.path} was started with other settings ({', '.join(other)})",
                hint="Resume with the same options.",
            )

    def check_division(self, seed: int, shares: Shares) -> None:
        """The same for the settings of its division."""
        told = self.read_record().dataset
        if (told.seed, told.shares) != (seed, shares):
            raise CheckpointError(
                f"{self.path} was started with another division of the data", hint="Resume with the same options."
            )

    def precision(self, given: str) -> str:
        """What this run was begun in. Raises CheckpointError where another is `given`; "auto" is none."""
        begun = self.read_record().versions.get("precision", given)
        if given not in (begun, "auto"):
            raise CheckpointError(
                f"{self.path} was started in {begun}, not {given}", hint="Resume with the same options."
            )
        return begun

    def write_state(self, name: str, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # torch's own writer turns a full disk into an error without its number
        torch.save(state, buffer)
        with atomic_file(self.path / name) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def read_state(self, name: str) -> dict[str, Any]:
        """Load a state with weights_only, so that a checkpoint can never run code."""
        path = self.path / name
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing",
                hint="If the run did not finish, fieldmark train --resume goes on; else start anew.",
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as problem:
            raise CheckpointError(f"{path} is damaged ({first_line(problem)})", hint="Train the run again.") from None
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} is no state of a run", hint="Train the run again.")
        return state

    def write_prototypes(self, sources: list[PrototypeSource]) -> None:
        write_text(self.path / "prototypes.json", json.dumps(to_plain(sources)) + "\n")

    def read_prototypes(self) -> list[PrototypeSource]:
        path = self.path / "prototypes.json"
        try:
            items = json.loads(path.read_text(encoding="utf-8"))
            return [from_plain(PrototypeSource, item) for item in items]
        except (OSError, ValueError, TypeError) as problem:
            raise CheckpointError(f"{path} cannot be read ({problem})", hint="Train the run again.") from None

    def prototypes_of(self, network: Network, keys: Container[str]) -> list[PrototypeSource]:
        """The same, one for each of the network's prototypes, from images whose keys are among `keys`."""
        path, sources = self.path / "prototypes.json", self.read_prototypes()
        each = network.config.prototypes_per_class
        if [source.label for source in sources] != [index // each for index in range(network.config.classes * each)]:
            raise CheckpointError(f"{path} does not name the network's prototypes", hint="Train the run again.")
        for source in sources:
            if source.source not in keys:
                raise CheckpointError(
                    f"prototype image {source.source!r} of {path} is not in the training part of this dataset",
                    hint="Train the run again.",
                )
        return sources

    def load_network(self) -> tuple[RunRecord, Network]:
        """The finished network in evaluation mode, on the CPU."""
        record = self.read_record()
        network = Network(network_config(record.config, len(record.labels)))
        try:
            network.load_state_dict(self.read_state("model.pt"))
        except RuntimeError as problem:
            raise CheckpointError(
                f"{self.path / 'model.pt'} does not fit its config ({str(problem).splitlines()[-1].strip()})"
            ) from None
        state = network.state_dict()
        if broken := [name for name, values in state.items() if not bool(values.isfinite().all())]:
            raise CheckpointError(
                f"{self.path / 'model.pt'} holds weights that are not finite "
                f"({len(broken)} of {len(state)} tensors, as {broken[0]})",
                hint="Train the run again.",
            )
        return record, network.eval().requires_grad_(False)  # attacks differentiate by the image alone


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """`epochs is 3 there, 7 here`, of every setting that differs."""
    for name, value in here.items():
        if isinstance(value, dict):
            yield from _differences(there[name], value, f"{prefix}{name}.")
        elif there[name] != value:
            yield f"{prefix}{name} is {there[name]} there, {value} here"


def network_config(config: TrainingConfig, classes: int) -> NetworkConfig:
    """The network's part of a training config."""
    return NetworkConfig(
        backbone=config.backbone,
        output_stride=config.output_stride,
        classes=classes,
        heads=SYSTEMS[config.system].heads,
        prototypes_per_class=config.prototypes_per_class,
        prototype_channels=config.prototype_channels,
        attention_dropout=config.attention_dropout,
        add_on_start=config.add_on_start,
    )


def image_spec(config: TrainingConfig) -> ImageSpec:
    """How images of this run become tensors, in training and in serving alike."""
    return ImageSpec(height=config.image_size, width=config.image_size, max_pixels=config.max_pixels)


def start_from(network: Network, path: Path) -> None:
    """Give `network` the weights of the finished run at `path`; raises CheckpointError when it has another shape."""
    _, finished = Run(path).load_network()
    try:
        network.load_state_dict(finished.state_dict())
    except RuntimeError as problem:
        raise CheckpointError(
            f"the run {path} cannot be started from ({str(problem).splitlines()[-1].strip()})",
            hint="Start from a run of the same system, backbone and classes.",
        ) from None
