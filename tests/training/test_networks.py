"""The heads against naive forms, the identities of the paper, and the corners where a release divides by zero."""

import pytest
import torch

from bundle.errors import CheckpointError, OptionError
from training.backbones import BACKBONES, load_weights, make_backbone
from training.networks import AttentionHead, Network, NetworkConfig, PrototypeHead, detector_features


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(NetworkConfig(backbone="small", classes=3, prototypes_per_class=2, prototype_channels=8)).eval()


def test_attention_is_rank_one_second_order_pooling():
    """Mean over t of (a.f)(b_k.f) equals a^T (mean f f^T) b_k (Girdhar & Ramanan 2017), without biases."""
    torch.manual_seed(0)
    head = AttentionHead(6, 4, 0.0).double().eval()
    torch.nn.init.zeros_(head.agnostic.bias)
    torch.nn.init.zeros_(head.specific.bias)
    features = torch.rand(2, 6, 3, 5, dtype=torch.float64)
    flat = features.flatten(2)
    second_order = flat @ flat.transpose(1, 2) / flat.shape[2]
    a, b = head.agnostic.weight.view(6), head.specific.weight.view(4, 6)
    expected = torch.einsum("c,ncd,kd->nk", a, second_order, b)
    torch.testing.assert_close(head(features)[0], expected)


def test_attention_peaks_at_one_and_an_all_nonpositive_map_is_finite_with_finite_gradients():
    head = AttentionHead(4, 2, 0.0).eval()
    features = torch.rand(2, 4, 3, 3, requires_grad=True)
    peaks = head(features)[1].amax((1, 2))
    assert ((peaks == 1) | (peaks == 0)).all()
    with torch.no_grad():
        head.agnostic.weight.fill_(1.0), head.agnostic.bias.fill_(1.0)
        head.specific.weight.fill_(-1.0), head.specific.bias.fill_(-1.0)
    logits, attention, _ = head(features)
    assert torch.equal(attention, torch.zeros_like(attention))
    (logits.sum() + attention.sum()).backward()
    assert torch.isfinite(features.grad).all()


def test_dropout_is_on_the_class_specific_branch_while_training_only():
    torch.manual_seed(0)
    head = AttentionHead(6, 3, 0.5)
    features = torch.rand(2, 6, 4, 4)
    torch.manual_seed(1)
    training, _, _ = head.train()(features)
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(features, 0.5, training=True)
    torch.testing.assert_close(training, (head.agnostic(features) * head.specific(dropped)).mean((2, 3)))
    serving, _, _ = head.eval()(features)
    torch.testing.assert_close(serving, (head.agnostic(features) * head.specific(features)).mean((2, 3)))
    assert not torch.allclose(training, serving)


@pytest.mark.parametrize("rate", [0.0, 0.6])
def test_the_network_drops_as_its_config_says(rate):
    torch.manual_seed(0)
    network = Network(NetworkConfig(backbone="small", classes=3, prototypes_per_class=2, attention_dropout=rate))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        training = [network.train()(images).logits["attention"] for _ in range(2)]
        serving = [network.eval()(images).logits["attention"] for _ in range(2)]
    assert torch.equal(*training) == (rate == 0)  # batch statistics alone are the same twice
    assert torch.equal(*serving)
    assert network.attention_head.dropout.p == rate


def test_distances_equal_direct_differences():
    torch.manual_seed(1)
    head = PrototypeHead(4, NetworkConfig(backbone="small", classes=2, prototypes_per_class=3, prototype_channels=5))
    local = torch.rand(2, 5, 3, 4)
    direct = (local[:, None] - head.prototypes[None, :, :, None, None]).square().sum(2)
    torch.testing.assert_close(head.distances(local), direct, rtol=1e-4, atol=1e-5)


def test_gradients_of_distances_equal_those_of_direct_differences():
    """Shifting by the mean must not leak into the gradient of either side."""
    torch.manual_seed(2)
    config = NetworkConfig(backbone="small", classes=2, prototypes_per_class=3, prototype_channels=5)
    head = PrototypeHead(4, config).double()
    local = torch.rand(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 6, 3, 4, dtype=torch.float64)  # so that no sum hides a wrong sign
    direct = (local[:, None] - head.prototypes[None, :, :, None, None]).square().sum(2)
    distances = head.distances(local)
    torch.testing.assert_close(distances, direct, rtol=1e-12, atol=1e-12)
    for mine, twin in zip(
        torch.autograd.grad((distances * upstream).sum(), (local, head.prototypes)),
        torch.autograd.grad((direct * upstream).sum(), (local, head.prototypes)),
        strict=True,
    ):
        torch.testing.assert_close(mine, twin, rtol=1e-12, atol=1e-12)


def test_similarities_are_gated_by_attention_and_the_last_layer_starts_at_plus_one_and_minus_a_half():
    config = NetworkConfig(backbone="small", classes=2, prototypes_per_class=3, prototype_channels=5)
    head = PrototypeHead(4, config)
    features = torch.rand(2, 4, 3, 3)
    _, distances, open_gate, _ = head(features, torch.ones(2, 3, 3))
    expected = torch.log((distances + 1) / (distances + config.gamma)).amax((2, 3))
    torch.testing.assert_close(open_gate, expected)
    assert torch.equal(head(features, torch.zeros(2, 3, 3))[2], torch.zeros(2, 6))
    assert head.classifier.weight.tolist() == [[1.0] * 3 + [-0.5] * 3, [-0.5] * 3 + [1.0] * 3]


def test_the_attention_network_alone_gives_the_same_answers_as_within_the_full_one(network):
    images = torch.rand(2, 3, 32, 32)
    alone, forward = network(images, "attention"), network(images)
    assert torch.equal(alone.logits["attention"], forward.logits["attention"])
    assert torch.equal(alone.attention, forward.attention)
    assert alone.distances is None


def test_detector_features_are_spatial_statistics(network):
    forward = network(torch.rand(2, 3, 32, 32))
    features = detector_features(forward)
    assert list(features) == [*("stage1", "stage2", "stage3", "stage4", "spread", "attended", "local", "focus")]
    torch.testing.assert_close(features["stage2"], forward.stages[1].flatten(2).mean(2))
    spread = forward.stages[-1].flatten(2).std(2, unbiased=False)
    torch.testing.assert_close(features["spread"], spread, rtol=1e-3, atol=1.1e-3)
    weights = forward.attention / forward.attention.sum((1, 2), keepdim=True)
    torch.testing.assert_close(features["attended"], torch.einsum("nchw,nhw->nc", forward.stages[-1], weights))
    torch.testing.assert_close(features["focus"], torch.einsum("nchw,nhw->nc", forward.local, weights))


@pytest.mark.parametrize(("name", "cell"), [("vgg16", 7), ("vgg19", 7), ("resnet34", 7), ("small", 28)])
def test_backbone_maps_at_224_pixels(name, cell):
    backbone = make_backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 224, 224))
    assert tuple(maps[-1].shape) == (1, backbone.channels[-1], cell, cell)
    assert tuple(map_.shape[1] for map_ in maps) == backbone.channels
    assert backbone.stride * cell == 224
    assert all((map_ >= 0).all() for map_ in maps)


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "resnet34", "densenet121"])
def test_a_finer_output_stride_sees_six_cells_where_there_were_three(name):
    torch.manual_seed(0)
    coarse, fine = (make_backbone(name, stride).eval() for stride in (32, 16))
    fine.load_state_dict(coarse.state_dict())  # the same weights, by the same names
    with torch.no_grad():
        images = torch.rand(1, 3, 96, 96)
        large, small = fine(images)[-1], coarse(images)[-1]
    assert (fine.stride, large.shape[2:], small.shape[2:]) == (16, (6, 6), (3, 3))
    if name.startswith("vgg"):
        torch.testing.assert_close(torch.nn.functional.max_pool2d(large, 2), small)
    elif name == "resnet34":  # every second cell is the coarse one: the weights meet what they are used to
        torch.testing.assert_close(large[:, :, ::2, ::2], small, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "stride"), [("vgg16", 8), ("small", 16), ("resnet34", 64)])
def test_an_output_stride_that_is_not_there_lists_those_that_are(name, stride):
    with pytest.raises(OptionError, match=rf"{name} has no output stride of {stride}"):
        make_backbone(name, stride)


def test_an_unknown_backbone_lists_the_known_ones():
    with pytest.raises(OptionError, match="resnet34"):
        make_backbone("vgg17")


@pytest.mark.parametrize("name", ["vgg16", "resnet34"])
def test_local_torchvision_weights_give_torchvisions_features(name, tmp_path):
    import torchvision

    torch.manual_seed(0)
    source = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = make_backbone(name)
    load_weights(backbone, name, str(tmp_path / "weights.pth"))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = torch.nn.Sequential(*list(source.children())[:-2]) if name == "resnet34" else source.features
        torch.testing.assert_close(backbone.eval()(images)[-1], features(images))


def test_wrong_weights_are_explained(tmp_path):
    backbone = make_backbone("resnet34")
    with pytest.raises(OptionError, match="no weights file"):
        load_weights(backbone, "resnet34", str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="not a PyTorch state dict"):
        load_weights(backbone, "resnet34", str(tmp_path / "text.pth"))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="do not belong to resnet34"):
        load_weights(backbone, "resnet34", str(tmp_path / "other.pth"))
    with pytest.raises(OptionError, match="takes no weights"):
        load_weights(make_backbone("small"), "small", "imagenet")


def test_weights_that_cannot_be_downloaded_name_the_way_out(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(CheckpointError, match="--weights FILE"):
        load_weights(make_backbone("vgg16"), "vgg16", "imagenet")


def test_every_backbone_is_listed():
    assert set(BACKBONES) >= {"small", "vgg16", "vgg19", "resnet34"}
