"""The smallest bundle that has everything, and the values that schema 2 has promised never to change."""

from pathlib import Path
from typing import Any

from bundle import ImageSpec, tensors
from bundle.manifest import (
    FP32,
    INT8,
    MANIFEST_SCHEMA,
    DetectorInfo,
    Difference,
    NetworkInfo,
    Parity,
    PrototypeInfo,
    Quality,
)
from bundle.tensors import TensorSpec

# Schema 2: sha256 of tests/bundle/golden/manifest.json. A change here breaks every bundle that is out in the world.
BUNDLE_ID = "8a82874bf30afbe7ba44c43910995cb1c86920faa6ad49d9813535740bde67ac"
CALIBRATIONS = {tensors.FULL: "per-class", tensors.ATTENTION_ONLY: "marginal"}
PRECISIONS = {tensors.FULL: INT8, tensors.ATTENTION_ONLY: FP32}
QUALITY = {
    FP32: Quality(images=300, accuracy=0.98, flagged=0.05, auroc={"fgsm-8": 0.97, "pgd10-8": 0.9912}),
    INT8: Quality(images=300, accuracy=0.976667, flagged=0.046667, auroc={"fgsm-8": 0.9688, "pgd10-8": 0.99}),
}
GOLDEN = Path(__file__).parent / "golden"
SHAPES = {
    tensors.PROBABILITIES: (3,),
    tensors.INSTANCE_SCORE: (),
    tensors.P_VALUE: (),
    tensors.IS_ADVERSARIAL: (),
    tensors.LAYER_SCORES: (2,),
    tensors.ATTENTION: (7, 7),
    tensors.PROTOTYPE_INDICES: (5,),
    tensors.PROTOTYPE_SIMILARITIES: (5,),
}
# What lies beside the manifest. A reader of bundles looks at no content, so any bytes will do.
FILES = {
    "full/model.onnx": b"the full graph\n",
    "attention/model.onnx": b"the attention graph\n",
    "detector/full.npz": b"\x00\x01\x02\xff",
    "detector/attention.npz": b"",
    "prototypes/0000.png": b"one patch\n",
    "report/Grünspecht.txt": b"98 % clean, 31 % under attack\n",
}


def fields() -> dict[str, Any]:
    """Manifest's fields except `files`."""
    return {
        "schema": MANIFEST_SCHEMA,
        "name": "golden birds",
        "labels": ("Crimson Bunting", "Grünspecht", "木 [rare] \\ \"quoted\" 'single'"),
        "image": ImageSpec(height=224, width=448, max_bytes=1_000_000, max_pixels=20_000_000, min_side=16),
        "networks": {name: network(name) for name in tensors.NETWORKS},
        "prototypes": tuple(
            PrototypeInfo(
                label=label,
                source=f"train/{label}/0001.jpg",
                image="prototypes/0000.png",
                row=label,
                column=6,
                box=(0, 32 * label, 64, 32 * label + 96),
            )
            for label in range(3)
        ),
        "training": {"preset": "golden", "seed": 0, "eps": 0.00784313725490196, "notes": ["a", None, True, 1e-7, 2.0]},
    }


def network(name: str) -> NetworkInfo:
    return NetworkInfo(
        model=f"{name}/model.onnx",
        precision=PRECISIONS[name],
        inputs=(TensorSpec(name=tensors.IMAGE, dtype="UINT8", shape=(224, 448, 3)),),
        outputs=tuple(
            TensorSpec(name=output, dtype=tensors.DTYPES[output], shape=SHAPES[output])
            for output in tensors.OUTPUTS[name]
        ),
        detector=detector(name, ("layer3", "layer4")),
        parity=Parity(
            runtime="onnxruntime 1.32.0 CPUExecutionProvider",
            images=64,
            argmax_agreement=1.0,
            flag_agreement=0.984375,
            outputs={
                tensors.PROBABILITIES: Difference(
                    max_abs=1.1920928955078125e-07, mean_abs=1e-09, max_rel=2e-06, mean_rel=0.0
                ),
                tensors.IS_ADVERSARIAL: Difference(max_abs=1.0, mean_abs=0.015625, max_rel=1.0, mean_rel=0.015625),
            },
        ),
        quality=QUALITY if PRECISIONS[name] == INT8 else {},
    )


def detector(name: str, layers: tuple[str, ...]) -> DetectorInfo:
    return DetectorInfo(
        file=f"detector/{name}.npz", columns=layers, alpha=0.05, calibration=CALIBRATIONS[name], calibration_n=1000
    )


def stage(folder: Path) -> Path:
    """The golden files, as export would stage them."""
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
