"""The toy bundle is what the other tests believe it is."""

import numpy as np
import onnxruntime
import pytest

from bundle import Bundle, tensors


@pytest.mark.parametrize("network", tensors.NETWORKS)
def test_toy_bundle_recognises_clean_birds_and_flags_noise(
    toy_bundle: Bundle, toy_images: np.ndarray, network: str
) -> None:
    session = onnxruntime.InferenceSession(toy_bundle.model(network), providers=["CPUExecutionProvider"])
    names = list(tensors.OUTPUTS[network])
    clean = dict(zip(names, session.run(names, {tensors.IMAGE: toy_images}), strict=True))
    noise = np.random.default_rng(0).integers(0, 256, toy_images.shape, dtype=np.uint8)
    noisy = dict(zip(names, session.run(names, {tensors.IMAGE: noise}), strict=True))
    assert clean[tensors.PROBABILITIES].argmax(axis=1).tolist() == [index % 5 for index in range(20)]
    assert clean[tensors.IS_ADVERSARIAL].mean() <= 0.2
    assert noisy[tensors.IS_ADVERSARIAL].all()
    assert noisy[tensors.P_VALUE].max() == np.float32(0.01)
    assert len(np.unique(clean[tensors.INSTANCE_SCORE])) == 20
    assert clean[tensors.ATTENTION].max(axis=(1, 2)) == pytest.approx(1)
    if network == tensors.FULL:
        shown = clean[tensors.PROTOTYPE_INDICES][:, 0]
        assert [toy_bundle.manifest.prototypes[index].label for index in shown] == [i % 5 for i in range(20)]
