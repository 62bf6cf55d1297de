"""Heads that warm up on kept features: nothing else changes, and it is what steps on the images themselves would do."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from training.augment import Augmentation
from training.data import open_dataset
from training.fit import Trainer
from training.parallel import Devices, default_precision
from training.pixels import from_bytes
from training.run import Run
from training.warmup import warm_up

STILL = Augmentation(rotate=0, shear=0, scale=0, flip=False)


def trainer_of(path, data, config):
    return Trainer(Run(path), open_dataset(data, seed=3), config, Devices(accelerator="cpu"), Console(quiet=True))


def test_only_the_heads_learn_and_they_do(tiny_birds, tiny_config, tmp_path):
    config = replace(tiny_config, warmup_steps=300, warmup_copies=1, learning_rate_warmup=1e-2)
    trainer = trainer_of(tmp_path / "run", tiny_birds, config)
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    losses = [
        warm_up(
            trainer.network,
            trainer.learner.objective,
            lambda: trainer._batches("train", None),
            replace(config, warmup_steps=steps),
            torch.Generator().manual_seed(0),
        )
        for steps in (1, 300)
    ]
    assert losses[1] < losses[0] - 0.1
    changed = {key for key, value in trainer.network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(
        key.startswith(("attention_head", "prototype_head.add_on", "prototype_head.prototypes")) for key in changed
    )


def test_in_mixed_precision_the_heads_learn_all_the_same(tiny_birds, tiny_config, tmp_path):
    """Autocast keeps the weights that it has cast: around the steps, it would go on with those of the first."""
    config = replace(tiny_config, warmup_steps=300, warmup_copies=1, learning_rate_warmup=1e-2)
    found = []
    for precision in ("32-true", "bf16-mixed"):
        devices = Devices(accelerator="cpu", precision=precision)
        trainer = Trainer(Run(tmp_path / precision), open_dataset(tiny_birds), config, devices, Console(quiet=True))
        trainer._warm_up()
        images, labels, _ = next(iter(trainer._batches("train", None)))
        trainer.network.eval()
        with torch.no_grad():
            found.append(trainer.learner(from_bytes(images), labels, False).item())
    assert found[1] == pytest.approx(found[0], rel=0.3)


def test_it_is_what_steps_on_the_images_would_be(tiny_birds, tiny_config, tmp_path):
    """Without augmentation and dropout: the naive loop runs the backbone for every step."""
    config = replace(
        tiny_config,
        warmup_steps=8,
        warmup_copies=2,
        attention_dropout=0.0,
        augmentation=STILL,
        learning_rate_warmup=1e-2,
        system="ap",
    )
    ours, naive = (trainer_of(tmp_path / name, tiny_birds, config) for name in ("ours", "naive"))
    ours.run.path.mkdir()
    ours._warm_up()
    images, labels = (torch.cat(each) for each in list(zip(*naive._batches("train", None), strict=True))[:2])
    images, labels = torch.cat([images] * 2), torch.cat([labels] * 2)
    network, generator = naive.network, naive._seed(config.epochs + 1)
    for _ in range(2):  # what augmentation draws, although it moves nothing
        for batch, _, _ in naive._batches("train", None):
            torch.rand(4 * len(batch), generator=generator)
    network.train()
    network.backbone.eval()
    optimizer = torch.optim.Adam(network.attention_head.parameters(), lr=1e-2)
    for step in range(8):
        chosen = torch.randint(len(labels), (config.batch_size,), generator=generator)
        with torch.no_grad():
            maps = network.backbone(network.normalised(from_bytes(images[chosen])))[-1].to(torch.bfloat16)
        logits, *_ = network.attention_head(maps.float())
        loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, 2 * (1 - step / 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, expected = ours.network.attention_head.state_dict(), network.attention_head.state_dict()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(tiny_birds, tiny_config, tmp_path):
    class Stop(Exception):
        pass

    config = replace(tiny_config, epochs=2, warmup_steps=5, warmup_copies=1, ema=0.5)
    whole, stopped = (trainer_of(tmp_path / name, tiny_birds, config) for name in ("whole", "stopped"))
    whole.fit(resume=False)
    original = stopped._epoch

    def stop_after_the_first(epoch, advance):
        if epoch == 1:
            raise Stop
        return original(epoch, advance)

    stopped._epoch = stop_after_the_first
    with pytest.raises(Stop):
        stopped.fit(resume=False)
    again = trainer_of(tmp_path / "stopped", tiny_birds, config)
    again.fit(resume=True)
    ours, theirs = (Run(tmp_path / name).read_state("model.pt") for name in ("stopped", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert again.warmed == whole.warmed


def test_frozen_stages_keep_their_weights_and_statistics(tiny_birds, tiny_config, tmp_path):
    trainer = trainer_of(tmp_path / "run", tiny_birds, replace(tiny_config, frozen_stages=2, epochs=1))
    before = {key: value.clone() for key, value in trainer.network.backbone.state_dict().items()}
    trainer.fit(resume=False)
    for key, value in trainer.network.backbone.state_dict().items():
        frozen = key.startswith(("stages.0.", "stages.1."))
        assert torch.equal(value, before[key]) == frozen, key


def test_a_clipped_step_has_no_longer_gradient(tiny_birds, tiny_config, tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path / "run", tiny_birds, replace(tiny_config, clip=0.01, epochs=1))
    norms = []
    step = torch.optim.Adam.step

    def watched(optimizer, *args, **kwargs):
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norms.append(torch.cat([each.flatten() for each in gradients]).norm().item())
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    trainer.run.path.mkdir()
    trainer._epoch(0, lambda: None)
    assert norms
    assert max(norms) <= 0.01 * 1.001


@pytest.mark.parametrize(("flags", "expected"), [("fpu avx512_bf16 amx_tile", "bf16-mixed"), ("fpu avx2", "32-true")])
def test_precision_is_what_the_processor_computes_in(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("training.parallel.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_precision("vgg16") == expected
    assert default_precision("small") == "32-true"  # its figures are float32's everywhere
    monkeypatch.setattr("training.parallel.CPUINFO", tmp_path / "none")
    assert default_precision("vgg16") == "32-true"
