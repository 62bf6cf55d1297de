"""A run from its first step to its last: warm-up, epochs, projection, last layer.

What is trained is a network (heads on a backbone) and an objective (weights of loss terms); which system of the paper
that makes is never asked here. The step is in `training.step`, an epoch in `training.epoch`; `training.selection` says
which epoch is kept, and `training.checkpoint` how a run goes on.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from bundle.console import say
from bundle.errors import Interrupted, OptionError, Terminated, TrainingError
from bundle.progress import Work
from training.backbones import IMAGENET, load_weights, make_backbone
from training.checkpoint import Checkpoint, Standing, write_together
from training.config import TrainingConfig
from training.curves import Silent, curves
from training.data import Dataset
from training.data.record import DatasetRecord
from training.epoch import accuracy, train_epoch
from training.feed import Feed
from training.hardening import Hardening
from training.learner import make_learner
from training.outcome import Row, exploded, fallen, guessing
from training.parallel import Devices, in_parallel
from training.projection import fit_last_layer, project
from training.run import RUN_SCHEMA, Run, RunRecord
from training.selection import Selection, shares_of
from training.warmup import warm_up

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
    make_console = partial(Console, stderr=console.stderr, quiet=console.quiet)  # a console cannot be pickled
    work = partial(_train, run, dataset, config, devices, make_console, resume)
    in_parallel(devices, work, frozen_parts=config.warmup_epochs + config.frozen_stages > 0)
    return run.read_record()


def _train(
    run: Run,
    dataset: Dataset,
    config: TrainingConfig,
    devices: Devices,
    make_console: Callable[[], Console],
    resume: bool,
    fabric: "Fabric",
) -> None:
    console = make_console()
    console.quiet = console.quiet or fabric.global_rank > 0
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
        self.run, self.dataset, self.config, self.devices, self.console = run, dataset, config, devices, console
        self.fabric = fabric or devices.fabric()
        self.feed = Feed(dataset, config, self.fabric, workers=devices.workers, console=console)
        self.learner = make_learner(config, len(dataset.labels), self.fabric)
        self.hardening = Hardening(config, self.fabric.autocast)
        self.standing = Standing()
        self.selection = Selection(run, self.learner, self.hardening, self.standing, len(dataset.labels))
        self.checkpoint = Checkpoint(run, self.learner, self.hardening, self.standing)

    def fit(self, *, resume: bool) -> RunRecord:
        """Train to the end; every epoch ends with a complete state on disk. Without `resume`, a run that is there is
        replaced: only here, so that a mistyped option does not cost it.
        """
        with self.run.owned() if self.fabric.global_rank == 0 else nullcontext():
            return self._fit(resume=resume)

    def _fit(self, *, resume: bool) -> RunRecord:
        record = self._record()
        if resume and self.checkpoint.resume(self.config, self.dataset):
            say(self.console, f"going on after epoch {self.standing.done}")
        if self.fabric.global_rank == 0:
            if not resume:
                self.run.clear()
            self.run.write_record(record)
        self.fabric.barrier()
        done, epochs, steps = self.standing.done, self.config.epochs, self.feed.steps_per_epoch
        writer = nullcontext(Silent()) if self.fabric.global_rank else curves(self.run.path, done=done)
        with self._stoppable(), writer as shown:
            if not done and self.config.warmup_steps:
                self.warm_up()
            with Work("training", epochs * steps, unit="steps", console=self.console) as work:
                work.at(done * steps, 0)
                for epoch in range(done, epochs):
                    work.what = f"training, epoch {epoch + 1} of {epochs}"
                    row = self._epoch(epoch, work.advance)
                    self._tell(epoch, row)
                    rate = self.learner.optimizer.param_groups[0]["lr"]
                    for name, value in {**row, "learning rate": rate}.items():
                        shown.add_scalar(name, value, epoch + 1)
            return self._finish(record)

    def warm_up(self) -> None:
        """The heads alone, for `warmup_steps`: every process takes the same steps, on all images."""
        network, objective = self.learner.network, self.learner.loss.objective
        walk = partial(self.feed.whole, "features for the warm-up")
        generator = self.feed.draws(self.config.epochs + 1, shared=True)
        loss = warm_up(network, objective, walk, self.config, generator, self.fabric.autocast, self.console)
        self.learner.begin_average()
        self.standing.warmed = accuracy(self.learner.kept, self.feed, "validation")
        say(
            self.console,
            f"warm-up, {self.config.warmup_steps} steps of the heads  loss {loss:8.4f}  "
            f"validation: {_told(self.standing.warmed)}",
        )

    def _epoch(self, epoch: int, advance: Callable[[], None]) -> Row:
        """Train, judge, and save the state from which the run would go on."""
        try:
            row = train_epoch(self.learner, self.hardening, self.feed, epoch, advance)
        except TrainingError as problem:
            kept = f"{self.run.path} keeps epoch {epoch}. " if epoch else ""
            remedy = (
                "Start anew with lower learning rates: --set learning_rate_heads=..., and --force or another --out."
            )
            raise TrainingError(problem.what, hint=kept + remedy) from None
        if epoch + 1 == self.config.warmup_epochs:
            self.standing.warmed = {head: row[head] for head in self.learner.network.config.heads if head in row}
        if not self.selection.judge(row):
            self.selection.return_to_best()
            step = 255 * self.config.adversarial_step * self.hardening.caution
            say(self.console, f"robustness collapsed; back to the best epoch, and on with a step of {step:.2g}/255")
        self.checkpoint.save()
        return row

    def _finish(self, record: RunRecord) -> RunRecord:
        """Best epoch -> projection -> last layer; model.pt is written last, so that it means all is there."""
        self.selection.load_best()
        network = self.learner.network
        results: dict[str, Any] = {"history": self.standing.history}
        if network.prototype_head is not None:
            walk, samples = partial(self.feed.whole, "finding the prototypes"), self.dataset.parts["train"]
            sources = project(network, walk, samples, self.fabric.device)
            results["validation_after_projection"] = accuracy(network, self.feed, "validation")
            attacked = None
            if self.hardening.active and self.config.last_layer_attacked:
                attacked = partial(self._attacked, generator=self.feed.draws(self.config.epochs, shared=True))
            walk = partial(self.feed.whole, "similarities of the prototypes")
            fit_last_layer(network, walk, self.config, attacked, console=self.console)
            if self.fabric.global_rank == 0:
                self.run.write_prototypes(sources)
        results["validation"] = accuracy(network, self.feed, "validation")
        results["outcome"] = self._outcome(results["validation"])
        if network.prototype_head is not None:
            shares = _told(results["validation"])
            say(self.console, f"best epoch, prototypes projected, last layer fitted  validation: {shares}")
        record = replace(record, results=results)
        if self.fabric.global_rank == 0:
            self.run.write_record(record)
        write_together(self.run, self.fabric, "model.pt", network.state_dict())
        return record

    def _attacked(self, images: Tensor, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.hardening.attacked(self.learner.network, images, labels, 1.0, generator)

    def _outcome(self, shares: Row) -> list[str]:
        """What speaks against the finished run."""
        rise = exploded(self.standing.history, self.config.warmup_epochs)
        return [
            *fallen(self.standing.warmed, shares, ended=True),
            *guessing(shares, len(self.feed.parts["validation"]), len(self.dataset.labels)),
            *([rise] if rise else []),
        ]

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM costs at most the epoch that was under way; say how to go on."""
        try:
            yield
        except (KeyboardInterrupt, Terminated) as stop:
            done = f"stopped after {self.standing.done} of {self.config.epochs} epochs"
            raise Interrupted.by(stop, done, hint="The same command with --resume goes on.") from None

    def _tell(self, epoch: int, row: Row) -> None:
        """The epoch's figures, and at once what is going wrong."""
        say(
            self.console,
            f"epoch {epoch + 1:3d}/{self.config.epochs}  loss {row['loss']:8.4f}  "
            f"validation: {_told(shares_of(row))}  {row['seconds']:5.1f} s",
        )
        joint_from = self.config.warmup_epochs
        if self.standing.done > joint_from:
            found = [*fallen(self.standing.warmed, row, ended=False), exploded(self.standing.history, joint_from)]
            say(self.console, *(f"warning: {sentence}" for sentence in found if sentence))

    def _record(self) -> RunRecord:
        versions = {"torch": torch.__version__, "python": platform.python_version(), "device": str(self.fabric.device)}
        versions["precision"] = self.devices.precision
        if self.fabric.world_size > 1:
            versions["devices"] = str(self.fabric.world_size)
        return RunRecord(
            schema=RUN_SCHEMA,
            config=self.config,
            labels=self.dataset.labels,
            dataset=DatasetRecord.of(self.dataset),
            versions=versions,
        )


def _told(shares: Row) -> str:
    """Shares by name, side by side."""
    return "  ".join(f"{name} {share:6.1%}" for name, share in shares.items())
