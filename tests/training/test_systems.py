"""Every system of the paper through the same loop: it learns, resumes exactly, is attacked, exported, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bundle import tensors
from bundle.errors import OptionError
from bundle.folder import Bundle
from export.bundling import export_run
from robustness.fitting import DetectorSettings
from training.attacks.losses import judge_of, losses_against
from training.attacks.names import attack_named
from training.attacks.worst import worst_case
from training.backbones import load_weights, make_backbone
from training.data import open_dataset
from training.fit import Trainer
from training.losses import divergence
from training.networks import POOLED, detector_features
from training.parallel import Devices
from training.presets import preset
from training.run import Run
from training.systems import SYSTEMS

BASELINES = sorted(set(SYSTEMS) - {"maxsep"})


@pytest.fixture(scope="module")
def train(tiny_birds, tiny_config, tmp_path_factory):
    """`train(system, **changes)` gives a finished run; each is made once."""
    made = {}

    def make(system, **changes):
        key = (system, *sorted(changes.items()))
        if key not in made:
            loss = preset("small", system=system).loss
            config = replace(tiny_config, system=system, preset=f"{system}-small", loss=loss, **changes)
            run = Run(tmp_path_factory.mktemp("runs") / system)
            Trainer(run, open_dataset(tiny_birds, seed=3), config, Devices(accelerator="cpu"), Console(quiet=True)).fit(
                resume=False
            )
            made[key] = run
        return made[key]

    return make


@pytest.mark.parametrize("system", BASELINES)
def test_a_system_learns_with_the_heads_it_has_and_no_others(train, system):
    record, network = train(system).load_network()
    losses = [row["loss"] for row in record.results["history"]]
    assert losses[-1] < losses[0]
    heads = SYSTEMS[system].heads
    assert set(record.results["validation"]) == set(heads)
    forward = network(torch.rand(2, 3, 32, 32))
    assert set(forward.logits) == set(heads)
    assert (network.attention_head is None) == ("attention" not in heads)
    assert (network.prototype_head is None) == ("full" not in heads)
    assert (train(system).path / "prototypes.json").is_file() == ("full" in heads)


@pytest.mark.parametrize("system", ["ap-pcl", "protopnet"])
def test_a_system_resumes_bit_for_bit_centres_average_and_all(train, tiny_birds, tiny_config, tmp_path, system):
    whole = train(system, ema=0.9)

    class Stop(Exception):
        pass

    def trainer():
        config = whole.read_record().config
        data = open_dataset(tiny_birds, seed=3)
        return Trainer(Run(tmp_path / "run"), data, config, Devices(accelerator="cpu"), Console(quiet=True))

    stopping = trainer()
    original = stopping._epoch

    def stop_after_the_first(epoch, advance):
        if epoch == 1:
            raise Stop
        return original(epoch, advance)

    stopping._epoch = stop_after_the_first
    with pytest.raises(Stop):
        stopping.fit(resume=False)
    trainer().fit(resume=True)
    ours, theirs = Run(tmp_path / "run").read_state("model.pt"), whole.read_state("model.pt")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("system", BASELINES)
def test_a_systems_heads_are_attacked_each_by_its_own_loss(train, system):
    _, network = train(system).load_network()
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for head in network.config.heads:
        losses = losses_against(network, head)
        assert len(losses) == 1
        found = worst_case(attack_named("bim10-8"), losses, judge_of(network, head), images, labels)
        assert losses[0](found.images, labels).sum() >= losses[0](images, labels).sum()


@pytest.mark.parametrize(("system", "served"), [("ap-triplet", "attention"), ("protopnet", "full")])
def test_a_single_headed_system_becomes_a_bundle_with_one_network(train, tmp_path, system, served):
    settings = DetectorSettings(attacks=("fgsm-8",), alpha=0.2)
    out = tmp_path / "bundle"
    export_run(train(system).path, out, settings, Console(quiet=True), data=None, replace=False)
    manifest = Bundle.open(out).manifest
    assert set(manifest.networks) == {served}
    assert bool(manifest.prototypes) == (served == tensors.FULL)


def test_protopnet_has_no_attention_to_explain_with(train):
    _, network = train("protopnet").load_network()
    forward = network(torch.rand(2, 3, 32, 32))
    assert forward.attention is None
    assert not {"attended", "focus"} & set(detector_features(forward))
    maps = torch.log((forward.distances + 1) / (forward.distances + network.config.gamma))
    torch.testing.assert_close(forward.similarities, maps.amax((2, 3)))


def test_a_substitute_is_not_served(train, tmp_path):
    with pytest.raises(OptionError, match=f"substitute.*{POOLED}"):
        export_run(
            train("gap").path, tmp_path / "bundle", DetectorSettings(), Console(quiet=True), data=None, replace=False
        )
    assert not (tmp_path / "bundle").exists()


def test_the_loop_never_asks_which_system_it_trains():
    from training import fit, losses, networks, parallel, projection

    for module in (fit, losses, networks, parallel, projection):
        text = Path(module.__file__).read_text(encoding="utf-8")
        assert not [name for name in SYSTEMS if f'"{name}"' in text], module.__name__
        assert "config.system" not in text, module.__name__


def test_densenet_reads_the_published_files_with_their_old_names(tmp_path):
    import torchvision

    state = torchvision.models.densenet121(weights=None).state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in state.items()}
    assert set(old) != set(state)
    backbones = [make_backbone("densenet121").eval() for _ in range(2)]
    for backbone, names in zip(backbones, (state, old), strict=True):
        torch.save(names, tmp_path / "weights.pt")
        load_weights(backbone, "densenet121", str(tmp_path / "weights.pt"))
    reference = torchvision.models.densenet121(weights=None).eval()
    reference.load_state_dict(state)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, second = (backbone(images) for backbone in backbones)
        torch.testing.assert_close(first[-1], torch.relu(reference.features(images)))
        assert torch.equal(first[-1], second[-1])
        assert [maps.shape[1] for maps in first] == list(backbones[0].channels)
        assert min(float(maps.min()) for maps in first) >= 0


def test_a_collapse_goes_back_to_the_best_epoch_with_half_the_step(tiny_birds, tiny_config, tmp_path):
    config = replace(tiny_config, adversarial="fast", epochs=3)
    data = open_dataset(tiny_birds, seed=3)
    trainer = Trainer(Run(tmp_path / "run"), data, config, Devices(accelerator="cpu"), Console(quiet=True))
    robust = iter([0.9, 0.1, 0.8])
    original = trainer.accuracy

    def scripted(part, attack=None):
        if attack is None:
            return original(part)
        return dict.fromkeys(tensors.NETWORKS, next(robust))

    trainer.accuracy = scripted
    weights = []
    returning = trainer._return_to_best

    def watched():
        returning()
        weights.append({key: value.clone() for key, value in trainer.network.state_dict().items()})

    trainer._return_to_best = watched
    record = trainer.fit(resume=False)
    assert [row["caution"] for row in record.results["history"]] == [1.0, 1.0, 0.5]
    best = trainer.run.read_state("best.pt")
    assert len(weights) == 1
    assert all(torch.equal(weights[0][key], best[key]) for key in best)  # the first epoch stayed the best
    assert trainer.config.training_attack(1.0, 0.5).step == trainer.config.adversarial_step / 2


@pytest.mark.parametrize("adversarial", ["fast", "n-fgsm"])
def test_eps_is_nothing_then_rises_then_is_whole(tiny_config, adversarial):
    config = replace(tiny_config, adversarial=adversarial, adversarial_from=0.25, adversarial_full=0.75)
    places = [0, 0.2, 0.25, 0.375, 0.5, 0.75, 0.9, 1]
    shares = [config.training_attack(place).eps / config.adversarial_eps for place in places]
    assert shares == pytest.approx([0, 0, 0, 0.25, 0.5, 1, 1, 1])
    steps = [config.training_attack(place).step / config.adversarial_step for place in places]
    assert steps == pytest.approx(shares)
    at_once = replace(config, adversarial_from=0.0, adversarial_full=0.0)
    assert at_once.training_attack(0.0).eps == config.adversarial_eps
    late = replace(config, adversarial_from=0.5, adversarial_full=0.5)
    assert [late.training_attack(place).eps > 0 for place in (0.49, 0.5)] == [False, True]
    with pytest.raises(OptionError, match=r"adversarial_full 0\.25 comes before adversarial_from 0\.5"):
        replace(config, adversarial_from=0.5, adversarial_full=0.25)


def test_consistency_compares_the_attacked_answer_with_the_clean_one(tiny_birds, tiny_config, tmp_path):
    loss = replace(tiny_config.loss, consistency=3.0)
    config = replace(tiny_config, adversarial="fast", loss=loss)
    trainer = Trainer(
        Run(tmp_path / "run"), open_dataset(tiny_birds), config, Devices(accelerator="cpu"), Console(quiet=True)
    )
    learner = trainer.learner.eval()
    attacked, clean, labels = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with torch.no_grad():
        trainer.network.attention_head.specific.weight.mul_(300)  # answers that differ
        alone = learner(attacked, labels, True)
        together = learner(attacked, labels, True, clean)
        answers = [trainer.network(images).logits["attention"] for images in (clean, attacked)]
    torch.testing.assert_close(together - alone, 3 * divergence(*answers), rtol=1e-3, atol=1e-5)
    assert together > alone + 1e-3


def test_the_regulariser_takes_part_from_where_it_is_told(tiny_birds, tiny_config, tmp_path, monkeypatch):
    config = replace(tiny_config, epochs=2, regularise_from=0.5)
    trainer = Trainer(
        Run(tmp_path / "run"), open_dataset(tiny_birds), config, Devices(accelerator="cpu"), Console(quiet=True)
    )
    trainer.run.path.mkdir()
    asked = []
    objective = trainer.learner.objective
    forward = objective.forward

    def watched(found, labels, *, joint):
        asked.append(joint)
        return forward(found, labels, joint=joint)

    monkeypatch.setattr(objective, "forward", watched)
    for epoch in range(2):
        trainer._epoch(epoch, lambda: None)
    steps = trainer.steps_per_epoch
    assert asked == [False] * steps + [True] * steps


def test_the_average_over_weights_is_the_recursion_it_is_named_for(tiny_birds, tiny_config, tmp_path):
    config = replace(tiny_config, ema=0.8, epochs=1)
    data = open_dataset(tiny_birds, seed=3)
    trainer = Trainer(Run(tmp_path / "run"), data, config, Devices(accelerator="cpu"), Console(quiet=True))
    seen, update = [], trainer.average.update_parameters
    name = "prototype_head.prototypes"

    def watched(network):
        seen.append(network.state_dict()[name].clone())
        update(network)

    trainer.average.update_parameters = watched
    trainer.run.path.mkdir()
    trainer._epoch(0, lambda: None)
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.8 * expected + 0.2 * weights
    torch.testing.assert_close(trainer.kept.state_dict()[name], expected)
    assert not torch.equal(trainer.network.state_dict()[name], expected)
    assert torch.equal(trainer.run.read_state("best.pt")[name], trainer.kept.state_dict()[name])


def test_the_curves_hold_every_epoch_once_also_after_a_resume(tiny_birds, tiny_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = open_dataset(tiny_birds, seed=3)

    class Stop(Exception):
        pass

    def trainer():
        return Trainer(Run(tmp_path / "run"), data, tiny_config, Devices(accelerator="cpu"), Console(quiet=True))

    stopping = trainer()
    write = stopping._write

    def die_while_writing(name, state):
        if name == "state.pt" and len(stopping.history) == 2:
            raise Stop
        write(name, state)

    stopping._write = die_while_writing
    with pytest.raises(Stop):
        stopping.fit(resume=False)
    record = trainer().fit(resume=True)
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    curves.Reload()
    losses = curves.Scalars("loss")
    assert [point.step for point in losses] == [1, 2, 3]
    assert [point.value for point in losses] == pytest.approx([row["loss"] for row in record.results["history"]])
    assert {"loss", "full", "attention", "seconds", "learning rate"} <= set(curves.Tags()["scalars"])
