"""The training loop: warm-up, joint epochs, prototype projection, last layer. Model selection on validation only."""

import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from bundle import tensors
from bundle.errors import CheckpointError, Interrupted, MissingExtra, OptionError, TrainingError
from training.adversaries import spread
from training.attack_losses import loss_of
from training.attacks import Attack, from_bytes, run_attack
from training.augment import augment
from training.backbones import load_weights
from training.config import TrainingConfig
from training.data import Dataset
from training.data.loading import ImageParts, image_loader, load_part
from training.losses import sparsity, total_loss
from training.networks import Network
from training.projection import project
from training.run import SCHEMA, DatasetRecord, Run, RunRecord, image_spec, network_config

BOTH_HEADS = (tensors.FULL, tensors.ATTENTION_ONLY)
WATCHED = 128  # validation images under attack after each epoch of adversarial training


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Lightning Fabric's words for where to compute and in which precision."""

    accelerator: str = "auto"
    precision: str = "32-true"
    workers: int = 2  # processes that decode images when the set does not fit in memory


class Trainer:
    """One run: construct it, then call `fit`."""

    def __init__(self, run: Run, dataset: Dataset, config: TrainingConfig, devices: Devices, console: Console) -> None:
        try:
            from lightning_fabric import Fabric
        except ImportError as problem:
            raise MissingExtra.named("training", "fieldmark train", problem) from None
        try:
            self.fabric = Fabric(accelerator=devices.accelerator, devices=1, precision=devices.precision)  # type: ignore[arg-type]
        except (ValueError, RuntimeError, TypeError) as problem:
            raise OptionError(f"cannot compute there: {problem}", hint="Check --accelerator and --precision.") from None
        self.run, self.dataset, self.config, self.console = run, dataset, config, console
        self.spec = image_spec(config)
        self.parts: dict[str, ImageParts] = {
            name: load_part(dataset.parts[name], self.spec) for name in ("train", "validation")
        }
        # Robustness from single-step training can collapse from one epoch to the next; a short PGD sees it.
        watched = spread(dataset.parts["validation"], WATCHED) if config.adversarial != "none" else ()
        self.parts["watched"] = load_part(watched, self.spec)
        self.workers = devices.workers
        torch.manual_seed(config.seed)
        self.network = Network(network_config(config, len(dataset.labels)))
        if config.weights:
            load_weights(self.network.backbone, config.backbone, config.weights)
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self._parameter_groups())
        self.model, self.fabric_optimizer = self.fabric.setup(self.network, self.optimizer)
        self.history: list[dict[str, float]] = []
        self.best = -1.0
        self.steps_per_epoch = math.ceil(len(self.parts["train"]) / config.batch_size)

    def fit(self, *, resume: bool) -> RunRecord:
        """Train to the end; every epoch ends with a complete state on disk."""
        record = self._record()
        if resume and (self.run.path / "state.pt").is_file():
            self._resume(record)
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.run.write_record(record)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with bar as progress, self._stoppable():
            for epoch in range(len(self.history), self.config.epochs):
                task = progress.add_task(f"epoch {epoch + 1}/{self.config.epochs}", total=self.steps_per_epoch)
                row = self._epoch(epoch, lambda task=task: progress.advance(task))
                progress.remove_task(task)
                shares = "  ".join(f"{name} {row[name]:6.1%}" for name in row if name not in ("loss", "seconds"))
                self.console.print(
                    f"epoch {epoch + 1:3d}/{self.config.epochs}  loss {row['loss']:8.4f}  "
                    f"validation: {shares}  {row['seconds']:5.1f} s",
                    highlight=False,
                )
            return self._finish(record)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C costs at most the epoch that was under way; say how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped after {len(self.history)} of {self.config.epochs} epochs",
                hint="The same command with --resume goes on.",
            ) from None

    def _epoch(self, epoch: int, advance: Any) -> dict[str, float]:
        started = time.perf_counter()
        joint = epoch >= self.config.warmup_epochs
        generator = self._seed(epoch)
        self.network.train()
        self.network.backbone.train(joint)
        self.network.backbone.requires_grad_(joint)
        total, seen = 0.0, 0
        for step, (images, labels, _) in enumerate(self._batches("train", epoch)):
            self._set_rates(epoch * self.steps_per_epoch + step)
            inputs = augment(from_bytes(images), self.config.augmentation, generator)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            if self.config.adversarial == "fast" and joint:
                self.network.eval()  # the attacker sees the network as it will be used: no dropout, fixed statistics
                attack, loss_function = self.config.training_attack(), loss_of(self.network, BOTH_HEADS)
                inputs = run_attack(attack, loss_function, inputs, labels, generator)
                self.network.train()
            loss = total_loss(self.model(inputs), labels, self.config.loss, joint=joint)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss.item()} in epoch {epoch + 1}, batch {step + 1}",
                    hint=f"The state before this epoch is kept in {self.run.path}; lower the learning rate.",
                )
            self.fabric_optimizer.zero_grad()
            self.fabric.backward(loss)
            self.fabric_optimizer.step()
            total, seen = total + loss.item() * len(labels), seen + len(labels)
            advance()
        right = self.accuracy("validation")
        if len(self.parts["watched"]):
            robust = self.accuracy("watched", self._watch_attack())
            right |= {f"robust {head}": share for head, share in robust.items()}
        row = {"loss": total / seen, **right, "seconds": time.perf_counter() - started}
        self.history.append(row)
        score = sum(right.values())
        if score >= self.best and joint:
            self.best = score
            self.run.write_state("best.pt", self.network.state_dict())
        state = {"epoch": epoch + 1, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.run.write_state("state.pt", {**state, "history": self.history, "best": self.best})
        return row

    def _finish(self, record: RunRecord) -> RunRecord:
        """Best epoch -> projection -> last layer; model.pt is written last, so that it means all is there."""
        self.network.load_state_dict(self.run.read_state("best.pt"))
        sources = project(
            self.network, lambda: self._batches("train", None), self.dataset.parts["train"], self.fabric.device
        )
        projected = self.accuracy("validation")
        self._last_layer()
        self.run.write_prototypes(sources)
        final = self.accuracy("validation")
        results = {"validation": final, "validation_after_projection": projected, "history": self.history}
        record = replace(record, results=results)
        self.run.write_record(record)
        self.run.write_state("model.pt", self.network.state_dict())
        return record

    def _last_layer(self) -> None:
        """Fit only the last layer on the projected prototypes' similarities, which are computed once."""
        with torch.no_grad():
            self.network.eval()
            pairs = [
                (self.network(from_bytes(images)).similarities, labels)
                for images, labels, _ in self._batches("train", None)
            ]
        similarities, labels = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
        classifier = self.network.prototype_head.classifier
        optimizer = torch.optim.Adam(classifier.parameters(), lr=self.config.learning_rate_last_layer)
        generator = self._seed(self.config.epochs)
        for _ in range(self.config.last_layer_epochs):
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            for chosen in order.split(self.config.batch_size):
                loss = F.cross_entropy(classifier(similarities[chosen]), labels[chosen])
                loss = loss + self.config.loss.sparsity * sparsity(self.network)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def accuracy(self, part: str, attack: Attack | None = None) -> dict[str, float]:
        """Share of the part's images that each head gets right, clean or after an attack on both heads together."""
        self.network.eval()
        right = dict.fromkeys(BOTH_HEADS, 0)
        generator = torch.Generator().manual_seed(self.config.seed)
        for images, labels, _ in self._batches(part, None):
            inputs = from_bytes(images)
            if attack is not None:
                inputs = run_attack(attack, loss_of(self.network, BOTH_HEADS), inputs, labels, generator)
            forward = self.network(inputs)
            for head in BOTH_HEADS:
                right[head] += int((forward.head(head).argmax(1) == labels).sum())
        return {head: count / len(self.parts[part]) for head, count in right.items()}

    def _watch_attack(self) -> Attack:
        eps = self.config.adversarial_eps
        return Attack(name="watch", eps=eps, steps=5, step=eps / 2, random_start=True)

    def _batches(self, part: str, epoch: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches on the device; shuffled by (seed, epoch), or in order when `epoch` is None."""
        shuffle = None if epoch is None else self.config.seed * 100_003 + epoch
        loader = image_loader(
            self.parts[part],
            self.spec,
            batch_size=self.config.batch_size,
            shuffle_seed=shuffle,
            workers=self.workers,
        )
        for images, labels, positions in loader:
            yield images.to(self.fabric.device), labels.to(self.fabric.device), positions

    def _seed(self, epoch: int) -> torch.Generator:
        """Fresh, known random state for one epoch, so that a resumed run repeats an uninterrupted one exactly."""
        torch.manual_seed(self.config.seed * 100_003 + epoch)
        return torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Everything but the last layer, which keeps +1 / -0.5 until the prototypes are projected."""
        config, head = self.config, self.network.prototype_head
        heads = [*self.network.attention_head.parameters(), *head.add_on.parameters()]
        backbone = {"params": list(self.network.backbone.parameters()), "base": config.learning_rate_backbone}
        groups: list[dict[str, Any]] = [
            {**backbone, "weight_decay": config.weight_decay},
            {"params": heads, "base": config.learning_rate_heads, "weight_decay": config.weight_decay},
            {"params": [head.prototypes], "base": config.learning_rate_heads, "weight_decay": 0.0},
        ]
        return [{**group, "lr": group["base"]} for group in groups]

    def _set_rates(self, step: int) -> None:
        """Learning rates are a pure function of the step, so there is no scheduler state to lose."""
        if self.config.schedule == "cosine":
            total = self.config.epochs * self.steps_per_epoch
            warm = max(1, total // 10)
            factor = (
                (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
            )
        else:
            factor = 0.1 ** (step // (10 * self.steps_per_epoch))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor

    def _resume(self, record: RunRecord) -> None:
        previous = self.run.read_record()
        if previous.dataset.digest != record.dataset.digest:
            raise CheckpointError(
                f"{self.run.path} was trained on other data than {self.dataset.root} now holds",
                hint="Restore the dataset, or start a new run with another --out.",
            )
        self.run.check_settings(record.config)
        state = self.run.read_state("state.pt")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best = list(state["history"]), float(state["best"])
        self.console.print(f"going on after epoch {len(self.history)}", highlight=False)

    def _record(self) -> RunRecord:
        dataset = DatasetRecord(
            name=self.dataset.name,
            format=self.dataset.format,
            root=str(self.dataset.root.resolve()),
            digest=self.dataset.digest,
            seed=self.config.seed,
            counts={name: len(samples) for name, samples in self.dataset.parts.items()},
        )
        versions = {"torch": torch.__version__, "python": platform.python_version(), "device": str(self.fabric.device)}
        return RunRecord(
            schema=SCHEMA, config=self.config, labels=self.dataset.labels, dataset=dataset, versions=versions
        )
