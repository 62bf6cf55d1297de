"""The end of a run: prototypes become patches of training images, and the last layer is fitted to them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bundle.image import ImageSpec
from training import projection
from training.data import open_dataset
from training.data.loading import image_loader, images_array
from training.losses import sparsity
from training.networks import PrototypeHead
from training.pixels import from_bytes
from training.run import Run

CLASSIFIER, PROTOTYPES = "prototype_head.classifier.weight", "prototype_head.prototypes"


def test_prototypes_are_the_nearest_patches_of_their_own_class(tiny_run, tiny_birds, tiny_config):
    """Brute force over every patch of every training image: the prototype is one of them, where the run says."""
    record, network = Run(tiny_run).load_network()
    dataset = open_dataset(tiny_birds, seed=record.dataset.seed)
    samples = {sample.key: sample for sample in dataset.parts["train"]}
    head = network.prototype_head
    for index, source in enumerate(Run(tiny_run).read_prototypes()):
        sample = samples[source.source]
        assert sample.label == source.label == index // tiny_config.prototypes_per_class
        image = images_array((sample,), ImageSpec(height=32, width=32))[0]
        with torch.no_grad():
            local = network(from_bytes(torch.from_numpy(image))).local
        patch = local[0, :, source.row, source.column]
        torch.testing.assert_close(head.prototypes[index], patch, rtol=1e-4, atol=1e-4)


def test_projection_chooses_the_minimum(tiny_run, tiny_birds):
    record, network = Run(tiny_run).load_network()
    part = open_dataset(tiny_birds, seed=record.dataset.seed).parts["train"]
    spec = ImageSpec(height=32, width=32)
    torch.manual_seed(0)
    before = torch.rand_like(network.prototype_head.prototypes)
    network.prototype_head.prototypes.data.copy_(before)
    images, labels = images_array(part, spec)
    with torch.no_grad():
        local = network(from_bytes(torch.from_numpy(images))).local
    per_class = record.config.prototypes_per_class
    sources = projection.project(
        network, lambda: image_loader(part, spec, batch_size=7, shuffle_seed=None), part, torch.device("cpu")
    )
    for index, source in enumerate(sources):
        own = local[torch.from_numpy(labels) == index // per_class].permute(0, 2, 3, 1).reshape(-1, local.shape[1])
        nearest = (own - before[index]).square().sum(1).min()
        moved = (network.prototype_head.prototypes[index] - before[index]).square().sum()
        torch.testing.assert_close(moved, nearest, rtol=1e-3, atol=1e-4)
        assert source.label == index // per_class


def test_after_the_projection_only_the_last_layer_is_fitted(tiny_run, tiny_birds):
    """It starts at +1 / -0.5, and its own objective on the training part falls."""
    record, network = Run(tiny_run).load_network()
    best, done = Run(tiny_run).read_state("best.pt"), Run(tiny_run).read_state("model.pt")
    moved = {key for key in done if not torch.equal(best[key], done[key])}
    assert moved == {CLASSIFIER, PROTOTYPES}
    own = PrototypeHead.own_class(3, record.config.prototypes_per_class)
    assert torch.equal(best[CLASSIFIER], 1.5 * own - 0.5)
    images, labels = images_array(
        open_dataset(tiny_birds, seed=record.dataset.seed).parts["train"], ImageSpec(height=32, width=32)
    )
    with torch.no_grad():
        similarities = network(from_bytes(torch.from_numpy(images))).similarities

        def objective():
            logits = network.prototype_head.classifier(similarities)
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
            return (loss + record.config.loss.sparsity * sparsity(network.prototype_head)).item()

        fitted = objective()
        network.prototype_head.classifier.weight.copy_(best[CLASSIFIER])
        assert fitted < objective()


def test_the_last_layer_is_fitted_on_attacked_images_at_a_rate_that_drops(make_trainer, tiny_config, monkeypatch):
    config = replace(
        tiny_config,
        epochs=1,
        adversarial="fast",
        last_layer_attacked=True,
        last_layer_epochs=4,
        last_layer_drop=2,
        batch_size=4000,
    )
    trainer = make_trainer(config)
    classifier = trainer.learner.network.prototype_head.classifier
    rates, attacks = [], []
    step = torch.optim.Adam.step

    def watched(optimizer, *args, **kwargs):
        if any(classifier.weight is each for each in optimizer.param_groups[0]["params"]):
            rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    similarities = projection._similarities

    def counted(network, batches, attacked):
        attacks.append(attacked is not None)
        return similarities(network, batches, attacked)

    monkeypatch.setattr(projection, "_similarities", counted)
    trainer.fit(resume=False)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])  # one batch a pass
    assert attacks == [True] * 4  # anew in every pass


def test_clean_runs_look_at_their_images_once_for_the_last_layer(tiny_run, tiny_config, tiny_birds, monkeypatch):
    _, network = Run(tiny_run).load_network()
    network.prototype_head.classifier.requires_grad_(True)
    walks = []

    def batches():
        walks.append(1)
        generator = np.random.default_rng(0)
        images = torch.from_numpy(generator.integers(0, 256, (6, 32, 32, 3), np.uint8))
        return [(images, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6))]

    projection.fit_last_layer(network, batches, replace(tiny_config, last_layer_epochs=5))
    assert len(walks) == 1
