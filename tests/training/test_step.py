"""One step: when it is taken, what it is taken on, how far it goes, and that a bad one is not."""

import math
from dataclasses import replace

import pytest
import torch

import training.epoch
from bundle.errors import TrainingError
from training.epoch import train_epoch
from training.learner import Learner
from training.losses import divergence
from training.presets import preset
from training.run import Run
from training.step import Moment, rate_factor, train_step

STEP = {0: 1, 49: 1, 54: 1, 55: 0.1, 99: 0.1, 104: 0.1, 105: 0.01}
COSINE = {0: 0.1, 4: 0.5, 9: 1, 10: 1, 40: 0.75, 55: 0.5, 70: 0.25, 99: (1 + math.cos(math.pi * 89 / 90)) / 2}


def epoch_of(trainer, epoch):
    return train_epoch(trainer.learner, trainer.hardening, trainer.feed, epoch, lambda: None)


@pytest.mark.parametrize(("schedule", "factors"), [("step", STEP), ("cosine", COSINE)])
def test_learning_rates_at_chosen_steps(make_trainer, tiny_config, schedule, factors):
    """Epochs of five steps. step: two to warm up, then a tenth before the tenth and twentieth joint epoch; cosine, of
    twenty epochs: ten steps up, then half a wave down.
    """
    rates = {"learning_rate_backbone": 1e-3, "learning_rate_heads": 5e-3}
    lengths = {"epochs": 31, "warmup_epochs": 2} if schedule == "step" else {"epochs": 20}
    config = replace(tiny_config, schedule=schedule, **lengths, **rates)
    learner = make_trainer(config).learner
    for step, factor in factors.items():
        learner.set_rates(Moment(config=config, epoch=step // 5, step=step % 5, steps_per_epoch=5).rate)
        expected = [pytest.approx(base * factor, rel=1e-9) for base in (1e-3, 5e-3, 5e-3)]
        assert [group["lr"] for group in learner.optimizer.param_groups] == expected, step


def test_rates_follow_the_step_of_the_whole_run(make_trainer, tiny_config, monkeypatch):
    trainer = make_trainer(tiny_config, every=4)
    rates = []
    monkeypatch.setattr(Learner, "set_rates", lambda learner, factor: rates.append(factor))
    epoch_of(trainer, 2)
    count = math.ceil(len(trainer.feed.parts["train"]) / tiny_config.batch_size)
    assert rates == [rate_factor(tiny_config, step, count) for step in range(2 * count, 3 * count)]
    assert len(set(rates)) == count


def test_rates_fall_before_the_tenth_and_twentieth_joint_epoch():
    config = preset("vgg16-reference")
    factors = [rate_factor(config, epoch * 7, 7) for epoch in range(config.epochs)]
    assert factors == pytest.approx([1] * (5 + 9) + [0.1] * 10 + [0.01] * 7)


def test_the_regulariser_takes_part_from_where_it_is_told(make_trainer, tiny_config, monkeypatch):
    trainer = make_trainer(replace(tiny_config, epochs=2, regularise_from=0.5))
    asked = []
    objective = trainer.learner.loss.objective
    forward = objective.forward

    def watched(found, labels, *, joint):
        asked.append(joint)
        return forward(found, labels, joint=joint)

    monkeypatch.setattr(objective, "forward", watched)
    for epoch in range(2):
        epoch_of(trainer, epoch)
    steps = trainer.feed.steps_per_epoch
    assert asked == [False] * steps + [True] * steps


def test_warm_up_is_attacked_where_the_recipe_says_so(make_trainer, tiny_config, tmp_path, monkeypatch):
    for warm_up, expected in ((True, [0, 1]), (False, [1])):
        config = replace(tiny_config, adversarial="fast", warmup_epochs=1, epochs=2, adversarial_warmup=warm_up)
        trainer = make_trainer(config, tmp_path / str(warm_up))
        epochs = set()

        def attacked(network, images, labels, progress, generator, epochs=epochs):
            epochs.add(int(progress * 2))
            return images

        monkeypatch.setattr(trainer.hardening, "attacked", attacked)
        for epoch in range(2):
            epoch_of(trainer, epoch)
        assert sorted(epochs) == expected


def test_consistency_compares_the_attacked_answer_with_the_clean_one(make_trainer, tiny_config):
    loss = replace(tiny_config.loss, consistency=3.0)
    learner = make_trainer(replace(tiny_config, adversarial="fast", loss=loss)).learner
    learner.loss.eval()
    attacked, clean, labels = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with torch.no_grad():
        learner.network.attention_head.specific.weight.mul_(300)  # answers that differ
        alone = learner.loss(attacked, labels, True)
        together = learner.loss(attacked, labels, True, clean)
        answers = [learner.network(images).logits["attention"] for images in (clean, attacked)]
    torch.testing.assert_close(together - alone, 3 * divergence(*answers), rtol=1e-3, atol=1e-5)
    assert together > alone + 1e-3


def test_a_clipped_step_has_no_longer_gradient(make_trainer, tiny_config, monkeypatch):
    trainer = make_trainer(replace(tiny_config, clip=0.01, epochs=1))
    norms = []
    step = torch.optim.Adam.step

    def watched(optimizer, *args, **kwargs):
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norms.append(torch.cat([each.flatten() for each in gradients]).norm().item())
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    epoch_of(trainer, 0)
    assert norms
    assert max(norms) <= 0.01 * 1.001


def test_a_loss_that_is_not_finite_stops_with_the_batch_and_keeps_the_last_state(
    make_trainer, tiny_config, tmp_path, monkeypatch
):
    trainer, taken = make_trainer(tiny_config), []
    bias = trainer.learner.network.attention_head.agnostic.bias

    def poisoned(learner, hardening, batch, moment, generator):
        if (moment.epoch, moment.step) == (1, 1):
            bias.data.fill_(float("nan"))
        taken.append(train_step(learner, hardening, batch, moment, generator))
        return taken[-1]

    monkeypatch.setattr(training.epoch, "train_step", poisoned)
    with pytest.raises(TrainingError, match=r"epoch 2, batch 2.*run keeps epoch 1\..*learning rates"):
        trainer.fit(resume=False)
    assert len(taken) == trainer.feed.steps_per_epoch + 1
    assert Run(tmp_path / "run").read_state("state.pt")["epoch"] == 1
    assert not Run(tmp_path / "run").finished
