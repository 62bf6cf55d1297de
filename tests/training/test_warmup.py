"""Heads that warm up on kept features: nothing else changes, and it is what steps on the images themselves would do."""

from dataclasses import replace

import pytest
import torch

from training.augment import Augmentation
from training.losses import BatchLoss
from training.parallel import default_precision
from training.pixels import from_bytes
from training.warmup import warm_up

STILL = Augmentation(rotate=0, shear=0, scale=0, flip=False)


def test_only_the_heads_learn_and_they_do(make_trainer, tiny_config):
    config = replace(tiny_config, warmup_steps=300, warmup_copies=1, learning_rate_warmup=1e-2)
    trainer = make_trainer(config)
    network = trainer.learner.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    losses = [
        warm_up(
            network,
            trainer.learner.loss.objective,
            lambda: trainer.feed.batches("train"),
            replace(config, warmup_steps=steps),
            torch.Generator().manual_seed(0),
        )
        for steps in (1, 300)
    ]
    assert losses[1] < losses[0] - 0.1
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(
        key.startswith(("attention_head", "prototype_head.add_on", "prototype_head.prototypes")) for key in changed
    )


def test_in_mixed_precision_the_heads_learn_all_the_same(make_trainer, tiny_config, tmp_path):
    """Autocast keeps the weights that it has cast: around the steps, it would go on with those of the first."""
    config = replace(tiny_config, warmup_steps=300, warmup_copies=1, learning_rate_warmup=1e-2)
    found = []
    for precision in ("32-true", "bf16-mixed"):
        trainer = make_trainer(config, tmp_path / precision, precision=precision)
        trainer.warm_up()
        images, labels, _ = next(iter(trainer.feed.batches("train")))
        loss = BatchLoss(trainer.learner.network, trainer.learner.loss.objective).eval()  # in float32
        with torch.no_grad():
            found.append(loss(from_bytes(images), labels, False).item())
    assert found[1] == pytest.approx(found[0], rel=0.3)


def test_it_is_what_steps_on_the_images_would_be(make_trainer, tiny_config, tmp_path):
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
    ours, naive = (make_trainer(config, tmp_path / name) for name in ("ours", "naive"))
    ours.warm_up()
    images, labels = (torch.cat(each) for each in list(zip(*naive.feed.batches("train"), strict=True))[:2])
    images, labels = torch.cat([images] * 2), torch.cat([labels] * 2)
    network, generator = naive.learner.network, naive.feed.draws(config.epochs + 1)
    for _ in range(2):  # what augmentation draws, although it moves nothing
        for batch in naive.feed.batches("train"):
            torch.rand(4 * len(batch.labels), generator=generator)
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
    found, expected = ours.learner.network.attention_head.state_dict(), network.attention_head.state_dict()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("flags", "expected"), [("fpu avx512_bf16 amx_tile", "bf16-mixed"), ("fpu avx2", "32-true")])
def test_precision_is_what_the_processor_computes_in(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("training.parallel.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_precision("vgg16", "auto") == expected
    assert default_precision("small", "auto") == "32-true"  # its figures are float32's everywhere
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: expected == "32-true")
    assert default_precision("vgg16", "cpu") == expected  # whatever the GPU beside it can do
    assert default_precision("vgg16", "auto") == default_precision("vgg16", "cuda") != expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("training.parallel.CPUINFO", tmp_path / "none")
    assert default_precision("vgg16", "auto") == "32-true"
