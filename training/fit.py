"""The training loop: warm-up, joint epochs, prototype projection, last layer. Model selection on validation only.

What is trained is a network (heads on a backbone) and an objective (weights of loss terms); which system of the paper
that makes is never asked here.
"""

import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bundle import tensors
from bundle.console import say
from bundle.errors import CheckpointError, Interrupted, OptionError, Terminated, TrainingError, first_line
from bundle.progress import Work
from training.attacks.losses import loss_of
from training.attacks.step import Attack, run_attack
from training.augment import augment
from training.backbones import IMAGENET, load_weights, make_backbone
from training.config import TrainingConfig
from training.curves import Silent, curves
from training.data import Dataset
from training.data.loading import ImageParts, Share, image_loader, load_part
from training.data.record import DatasetRecord
from training.data.selection import spread
from training.hardening import ROBUST, WATCHED, Hardening
from training.losses import Objective, divergence
from training.networks import Network
from training.optimiser import parameter_groups, rate_factor
from training.outcome import exploded, fallen, guessing
from training.parallel import Devices, gathered, in_parallel, share_statistics
from training.pixels import from_bytes
from training.projection import fit_last_layer, project
from training.run import SCHEMA, Run, RunRecord, image_spec, network_config, start_from
from training.warmup import warm_up

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NO_SHARES = ("loss", "seconds", "caution")  # of a row of the history

_UNFIT = (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError)  # a state of another network


class Learner(nn.Module):
    """Network and objective as one module, so that processes that train together share every parameter."""

    def __init__(self, network: Network, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, images: Tensor, labels: Tensor, joint: bool, clean: Tensor | None = None) -> Tensor:
        """The loss, [], of images [B, 3, H, W] in [0, 1] and labels [B]; `clean` are the same before an attack."""
        found = self.network(images)
        loss: Tensor = self.objective(found, labels, joint=joint)
        weight = self.objective.weights.consistency
        if clean is None or not weight:
            return loss
        head = tensors.ATTENTION_ONLY if tensors.ATTENTION_ONLY in found.logits else next(iter(found.logits))
        return loss + weight * divergence(self.network(clean, head).logits[head], found.logits[head])


def check_start(config: TrainingConfig, devices: Devices) -> None:
    """Refuse what can be seen to be wrong before any image is read: devices, precision, and weights to begin with."""
    if devices.devices == 1:
        devices.fabric()
    if config.weights and config.weights != IMAGENET:
        load_weights(make_backbone(config.backbone, config.output_stride), config.backbone, config.weights)
    if config.start:
        Run(Path(config.start)).load_network()


def train_run(
    run: Run, dataset: Dataset, config: TrainingConfig, devices: Devices, console: Console, *, resume: bool
) -> RunRecord:
    """Train to the end, on one device or several."""
    if devices.devices > min(config.batch_size, len(dataset.parts["train"])):
        raise OptionError(
            f"a batch of {config.batch_size} from {len(dataset.parts['train'])} images does not divide among "
            f"{devices.devices} devices",
            hint="Choose fewer devices or a larger batch.",
        )
    if devices.devices == 1:
        return Trainer(run, dataset, config, devices, console).fit(resume=resume)
    work = partial(_train, run, dataset, config, devices, console.stderr, console.quiet, resume)
    in_parallel(devices, work, frozen_parts=config.warmup_epochs + config.frozen_stages > 0)
    return run.read_record()


def _train(
    run: Run,
    dataset: Dataset,
    config: TrainingConfig,
    devices: Devices,
    stderr: bool,
    quiet: bool,
    resume: bool,
    fabric: "Fabric",
) -> None:
    console = Console(stderr=stderr, quiet=quiet or fabric.global_rank > 0)
    Trainer(run, dataset, config, devices, console, fabric).fit(resume=resume)


class Trainer:
    """One run in one process: construct it, then call `fit`. Without a `fabric` it makes its own."""

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        config: TrainingConfig,
        devices: Devices,
        console: Console,
        fabric: "Fabric | None" = None,
    ) -> None:
        self.fabric = fabric or devices.fabric()
        self.share = Share(self.fabric.global_rank, self.fabric.world_size)
        self.run, self.dataset, self.config, self.console = run, dataset, config, console
        self.spec = image_spec(config)
        self.parts: dict[str, ImageParts] = {
            name: load_part(dataset.parts[name], self.spec) for name in ("train", "validation")
        }
        self.hardening = Hardening(config, self.fabric.autocast)
        watched = spread(dataset.parts["validation"], WATCHED) if self.hardening.active else ()
        self.parts["watched"] = load_part(watched, self.spec)
        self.workers, self.precision = devices.workers, devices.precision
        torch.manual_seed(config.seed)
        self.network = Network(network_config(config, len(dataset.labels)))
        objective = Objective(config.loss, self.network.config, self.network.backbone.channels[-1])
        if config.weights:
            load_weights(self.network.backbone, config.backbone, config.weights)
        if config.start:
            start_from(self.network, Path(config.start))
        if self.share.processes > 1:
            share_statistics(self.network, self.fabric.device)
            objective.gather = gathered
        self.network.to(memory_format=torch.channels_last)
        self.learner = Learner(self.network, objective)
        self.optimizer = torch.optim.Adam(parameter_groups(self.network, objective, config))
        self.model, self.fabric_optimizer = self.fabric.setup(self.learner, self.optimizer)
        self.average = None
        if config.ema:
            self.average = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True
            ).requires_grad_(False)
        self.history: list[dict[str, float]] = []
        self.warmed: dict[str, float] = {}
        self.best = -1.0
        self.steps_per_epoch = math.ceil(len(self.parts["train"]) * config.copies / config.batch_size)

    @property
    def kept(self) -> Network:
        """The network that is validated and kept: the average over the weights, where there is one."""
        if self.average is None:
            return self.network
        average: Any = self.average.module
        return average  # type: ignore[no-any-return]

    def fit(self, *, resume: bool) -> RunRecord:
        """Train to the end; every epoch ends with a complete state on disk. Without `resume`, a run that is there is
        replaced: only here, so that a mistyped option does not cost it.
        """
        with self.run.owned() if self.share.rank == 0 else nullcontext():
            return self._fit(resume=resume)

    def _fit(self, *, resume: bool) -> RunRecord:
        record = self._record()
        if resume and (self.run.path / "state.pt").is_file():
            self._resume(record)
        if self.share.rank == 0:
            if not resume:
                self.run.clear()
            self.run.write_record(record)
        self.fabric.barrier()
        writer = nullcontext(Silent()) if self.share.rank else curves(self.run.path, done=len(self.history))
        with self._stoppable(), writer as shown:
            if not self.history and self.config.warmup_steps:
                self._warm_up()
            with Work(
                "training", self.config.epochs * self.steps_per_epoch, unit="steps", console=self.console
            ) as work:
                work.at(len(self.history) * self.steps_per_epoch, 0)
                for epoch in range(len(self.history), self.config.epochs):
                    work.what = f"training, epoch {epoch + 1} of {self.config.epochs}"
                    row = self._epoch(epoch, work.advance)
                    self._tell(epoch, row)
                    self._warn(row)
                    for name, value in {**row, "learning rate": self.optimizer.param_groups[0]["lr"]}.items():
                        shown.add_scalar(name, value, epoch + 1)
            return self._finish(record)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM costs at most the epoch that was under way; say how to go on."""
        try:
            yield
        except (KeyboardInterrupt, Terminated) as stop:
            done = f"stopped after {len(self.history)} of {self.config.epochs} epochs"
            raise Interrupted.by(stop, done, hint="The same command with --resume goes on.") from None

    def _tell(self, epoch: int, row: dict[str, float]) -> None:
        shares = _told({name: share for name, share in row.items() if name not in NO_SHARES})
        say(
            self.console,
            f"epoch {epoch + 1:3d}/{self.config.epochs}  loss {row['loss']:8.4f}  "
            f"validation: {shares}  {row['seconds']:5.1f} s",
        )

    def _warn(self, row: dict[str, float]) -> None:
        """Say at once what is going wrong."""
        if len(self.history) > self.config.warmup_epochs:
            found = [*fallen(self.warmed, row, ended=False), exploded(self.history, self.config.warmup_epochs)]
            for sentence in filter(None, found):
                say(self.console, f"warning: {sentence}")

    def _epoch(self, epoch: int, advance: Any) -> dict[str, float]:
        started = time.perf_counter()
        joint = epoch >= self.config.warmup_epochs
        generator = self._seed(epoch)
        self.network.train()
        self.network.backbone.learn_from(self.config.frozen_stages if joint else None)
        total, seen = 0.0, 0
        for step, (images, labels, _) in enumerate(self._batches("train", epoch)):
            self._set_rates(epoch * self.steps_per_epoch + step)
            progress = (epoch + step / self.steps_per_epoch) / self.config.epochs
            clean = augment(from_bytes(images), self.config.augmentation, generator)
            clean = inputs = clean.contiguous(memory_format=torch.channels_last)
            if self.hardening.active and (joint or self.config.adversarial_warmup):
                inputs = self.hardening.attacked(self.network, clean, labels, progress, generator)
            regular = joint and progress >= self.config.regularise_from
            loss = self.model(inputs, labels, regular, None if inputs is clean else clean)
            value = self._summed(loss.detach()).item() / self.share.processes
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} in epoch {epoch + 1}, batch {step + 1}",
                    hint=self._after_failure(),
                )
            self.fabric_optimizer.zero_grad()
            self.fabric.backward(loss)
            if self.config.clip:
                self.fabric.clip_gradients(self.model, self.fabric_optimizer, max_norm=self.config.clip)
            self.fabric_optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.network)
            total, seen = total + value * len(labels), seen + len(labels)
            advance()
        if not torch.stack([value.isfinite().all() for value in self.learner.state_dict().values()]).all():
            raise TrainingError(f"the weights are no longer finite after epoch {epoch + 1}", hint=self._after_failure())
        right = self.accuracy("validation")
        if epoch + 1 == self.config.warmup_epochs:
            self.warmed = right
        row = {"loss": total / seen, **right}
        if self.hardening.active:
            robust = self.accuracy("watched", self.hardening.watch())
            row |= {f"{ROBUST}{head}": share for head, share in robust.items()} | {"caution": self.hardening.caution}
        row["seconds"] = time.perf_counter() - started
        collapsed = self.best >= 0 and self.hardening.collapsed(row, self.history, len(self.dataset.labels))
        self.history.append(row)
        score = sum(value for name, value in row.items() if name not in NO_SHARES)
        whole = self.hardening.whole((epoch + 1) / self.config.epochs)
        if whole and score >= self.best and joint and not collapsed:
            self.best = score
            self._write("best.pt", self.kept.state_dict())
        if collapsed:
            self._return_to_best()
        self._write("state.pt", self._state())
        return row

    def _warm_up(self) -> None:
        """The heads alone, for `warmup_steps`: every process takes the same steps, on all images."""
        batches = partial(self._all, "features for the warm-up")
        generator = self._seed(self.config.epochs + 1)
        objective, autocast = self.learner.objective, self.fabric.autocast
        loss = warm_up(self.network, objective, batches, self.config, generator, autocast, self.console)
        if self.average is not None:
            self.average.module.load_state_dict(self.network.state_dict())
        self.warmed = self.accuracy("validation")
        say(
            self.console,
            f"warm-up, {self.config.warmup_steps} steps of the heads  loss {loss:8.4f}  "
            f"validation: {_told(self.warmed)}",
        )

    def _after_failure(self) -> str:
        kept = f"{self.run.path} keeps epoch {len(self.history)}. " if self.history else ""
        return (
            f"{kept}Start anew with lower learning rates: --set learning_rate_heads=..., and --force or another --out."
        )

    def _best(self) -> dict[str, Any]:
        try:
            self.network.load_state_dict(state := self.run.read_state("best.pt"))
        except _UNFIT as problem:
            raise CheckpointError(f"{self.run.path / 'best.pt'} is not of this run ({first_line(problem)})") from None
        return state

    def _return_to_best(self) -> None:
        """The response to a collapse: back to the best epoch's weights, and half the step from now on."""
        self.hardening.caution /= 2
        best = self._best()
        if self.average is not None:
            self.average.module.load_state_dict(best)
        self.optimizer.state.clear()  # moments that led into the collapse
        step = 255 * self.config.adversarial_step * self.hardening.caution
        say(self.console, f"robustness collapsed; back to the best epoch, and on with a step of {step:.2g}/255")

    def _finish(self, record: RunRecord) -> RunRecord:
        """Best epoch -> projection -> last layer; model.pt is written last, so that it means all is there."""
        network = self.network
        self._best()
        self.average = None
        results: dict[str, Any] = {"history": self.history}
        if network.prototype_head is not None:
            samples = self.dataset.parts["train"]
            sources = project(network, lambda: self._all("finding the prototypes"), samples, self.fabric.device)
            results["validation_after_projection"] = self.accuracy("validation")
            attacked = None
            if self.hardening.active and self.config.last_layer_attacked:
                attacked = partial(self._attacked, generator=self._seed(self.config.epochs))
            batches = partial(self._all, "similarities of the prototypes")
            fit_last_layer(network, batches, self.config, attacked, console=self.console)
            if self.share.rank == 0:
                self.run.write_prototypes(sources)
        results["validation"] = self.accuracy("validation")
        results["outcome"] = self._outcome(results["validation"])
        if network.prototype_head is not None:
            shares = _told(results["validation"])
            say(self.console, f"best epoch, prototypes projected, last layer fitted  validation: {shares}")
        record = replace(record, results=results)
        if self.share.rank == 0:
            self.run.write_record(record)
        self._write("model.pt", network.state_dict())
        return record

    def _outcome(self, shares: dict[str, float]) -> list[str]:
        """What speaks against the finished run."""
        found = [
            *fallen(self.warmed, shares, ended=True),
            *guessing(shares, len(self.parts["validation"]), len(self.dataset.labels)),
        ]
        if (rise := exploded(self.history, self.config.warmup_epochs)) is not None:
            found.append(rise)
        return found

    def _attacked(self, images: Tensor, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.hardening.attacked(self.network, images, labels, 1.0, generator)

    @torch.no_grad()
    def accuracy(self, part: str, attack: Attack | None = None) -> dict[str, float]:
        """Share of the part's images that each head gets right, clean or after an attack on all heads together."""
        network = self.kept
        network.eval()
        heads = network.config.heads
        right = torch.zeros(len(heads), device=self.fabric.device)
        generator = torch.Generator().manual_seed(self.config.seed)
        for images, labels, _ in self._batches(part, None):
            inputs = from_bytes(images)
            if attack is not None:
                inputs = run_attack(attack, loss_of(network), inputs, labels, generator)
            logits = network(inputs).logits
            right += torch.stack([(logits[head].argmax(1) == labels).sum() for head in heads])
        if not len(self.parts[part]):
            return {}
        shares = (self._summed(right) / len(self.parts[part])).tolist()
        return dict(zip(heads, shares, strict=True))

    def _summed(self, values: Tensor) -> Tensor:
        """Over all processes."""
        total = self.fabric.all_reduce(values, reduce_op="sum")
        if not isinstance(total, Tensor):
            raise AssertionError("a tensor reduces to a tensor")
        return total

    def _all(self, what: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The whole training part, in order and in every process alike, on the device."""
        with Work(what, len(self.parts["train"]), console=self.console) as work:
            for images, labels, positions in self._batches("train", None, Share()):
                yield images, labels, positions
                work.advance(len(labels))

    def _batches(
        self, part: str, epoch: int | None, share: Share | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches on the device; shuffled by (seed, epoch), or in order when `epoch` is None."""
        shuffle = None if epoch is None else self.config.seed * 100_003 + epoch
        loader = image_loader(
            self.parts[part],
            self.spec,
            batch_size=self.config.batch_size,
            shuffle_seed=shuffle,
            workers=self.workers,
            share=share or self.share,
            copies=1 if epoch is None else self.config.copies,
        )
        for images, labels, positions in loader:
            yield images.to(self.fabric.device), labels.to(self.fabric.device), positions

    def _seed(self, epoch: int) -> torch.Generator:
        """Fresh, known random state for one epoch, so that a resumed run repeats an uninterrupted one exactly; another
        one in every process.
        """
        seed = self.config.seed * 100_003 + epoch + self.share.rank * 1_000_003
        torch.manual_seed(seed)
        return torch.Generator().manual_seed(seed)

    def _set_rates(self, step: int) -> None:
        factor = rate_factor(self.config, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor

    def _write(self, name: str, state: dict[str, Any]) -> None:
        """One process writes; the others go on when the file is there."""
        if self.share.rank == 0:
            self.run.write_state(name, state)
        self.fabric.barrier()

    def _state(self) -> dict[str, Any]:
        state = {
            "epoch": len(self.history),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "warmed": self.warmed,
            "best": self.best,
            "caution": self.hardening.caution,
        }
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def _resume(self, record: RunRecord) -> None:
        self.run.check_settings(record.config)
        previous = self.run.read_record()
        if previous.dataset.digest != record.dataset.digest:
            raise CheckpointError(
                f"{self.run.path} was trained on other data than {self.dataset.root} now holds",
                hint="Restore the dataset, or start a new run with another --out.",
            )
        state = self.run.read_state("state.pt")
        try:
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.history, self.best = list(state["history"]), float(state["best"])
            self.warmed = dict(state["warmed"])
            self.hardening.caution = float(state["caution"])
        except _UNFIT as problem:
            raise CheckpointError(
                f"{self.run.path / 'state.pt'} is not of this run ({first_line(problem)})",
                hint="Start anew with --force or another --out.",
            ) from None
        say(self.console, f"going on after epoch {len(self.history)}")

    def _record(self) -> RunRecord:
        versions = {"torch": torch.__version__, "python": platform.python_version(), "device": str(self.fabric.device)}
        versions["precision"] = self.precision
        if self.share.processes > 1:
            versions["devices"] = str(self.share.processes)
        return RunRecord(
            schema=SCHEMA,
            config=self.config,
            labels=self.dataset.labels,
            dataset=DatasetRecord.of(self.dataset),
            versions=versions,
        )


def _told(shares: dict[str, float]) -> str:
    """Shares by name, side by side."""
    return "  ".join(f"{name} {share:6.1%}" for name, share in shares.items())
