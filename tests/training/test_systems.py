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
from export.plan import ExportSettings
from robustness.fitting import DetectorSettings
from training.attacks.losses import judge_of, losses_against
from training.attacks.names import attack_named
from training.attacks.worst import worst_case
from training.backbones import load_weights, make_backbone
from training.data import open_dataset
from training.fit import Trainer
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
def test_a_system_resumes_bit_for_bit_centres_average_and_all(train, make_trainer, stopping_before, tmp_path, system):
    whole = train(system, ema=0.9)
    config = whole.read_record().config
    with stopping_before(1):
        make_trainer(config).fit(resume=False)
    make_trainer(config).fit(resume=True)
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
    settings = ExportSettings(detector=DetectorSettings(attacks=("fgsm-8",), alpha=0.2))
    out = tmp_path / "bundle"
    export_run(train(system).path, out, settings, Console(quiet=True))
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
        export_run(train("gap").path, tmp_path / "bundle", ExportSettings(), Console(quiet=True))
    assert not (tmp_path / "bundle").exists()


def test_the_loop_never_asks_which_system_it_trains():
    from training import checkpoint, epoch, feed, fit, learner, losses, networks, projection, selection, sharing, step

    for module in (checkpoint, epoch, feed, fit, learner, losses, networks, projection, selection, sharing, step):
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
    with pytest.raises(OptionError, match="adversarial_full 1 leaves no epoch"):
        replace(config, adversarial_full=1.0)
    with pytest.raises(OptionError, match=r"adversarial_full 0\.25 comes before adversarial_from 0\.5"):
        replace(config, adversarial_from=0.5, adversarial_full=0.25)
