"""What the report's pictures show: some test images, clean and attacked, and the training patches behind prototypes."""

import numpy as np
import torch

from bundle import tensors
from robustness.figures import Looked, Prototype
from training.attacks.attacker import Attackers
from training.data import Dataset
from training.data.choice import spread
from training.data.loading import images_array
from training.networks import Network
from training.pixels import from_bytes, round_to_bytes
from training.run import Run, RunRecord, image_spec

LOOKED, SHEET = 4, (6, 8)  # images shown under attack; classes and prototypes of each on the sheet
SHOWN_ATTACK = "pgd10-8"


@torch.no_grad()
def images_looked_at(record: RunRecord, network: Network, dataset: Dataset, seed: int) -> list[Looked]:
    """A few test images that the attack fools, or that it does not where there are none."""
    head = tensors.ATTENTION_ONLY
    images, labels = images_array(spread(dataset.parts["test"], 8 * LOOKED), image_spec(record.config))
    device = next(network.parameters()).device
    pixels, known = from_bytes(torch.from_numpy(images).to(device)), torch.from_numpy(labels).to(device)
    made = Attackers(network=network, seed=seed).on(head).attack(SHOWN_ATTACK, pixels, known)
    attacked = round_to_bytes(made)
    seen = [network(each, head) for each in (pixels, from_bytes(attacked))]
    answers = [each.logits[head].argmax(1).cpu().numpy() for each in seen]
    maps = [each.attention.cpu().numpy() for each in seen if each.attention is not None]
    fooled = (answers[0] == labels) & (answers[1] != labels)
    again = np.array([label in labels[:place] for place, label in enumerate(labels)])
    order = np.lexsort((again, ~fooled))[:LOOKED]  # fooled ones, and each of another class
    return [
        Looked(
            pixels=(images[place], attacked[place].cpu().numpy()),
            maps=(maps[0][place], maps[1][place]),
            answers=(record.labels[answers[0][place]], record.labels[answers[1][place]]),
            label=record.labels[labels[place]],
        )
        for place in order
    ]


def prototypes_shown(run: Run, record: RunRecord, network: Network, dataset: Dataset) -> list[list[Prototype]]:
    classes, each = SHEET
    spec, stride = image_spec(record.config), network.backbone.stride
    by_key = {sample.key: sample for sample in dataset.parts["train"]}
    sources = run.prototypes_of(network, by_key)
    chosen = (
        [index * len(record.labels) // classes for index in range(classes)]
        if classes < len(record.labels)
        else range(len(record.labels))
    )
    rows = []
    for label in chosen:
        mine = [source for source in sources if source.label == label][:each]
        rows.append(
            [
                Prototype(
                    pixels=spec.read(by_key[source.source].path, by_key[source.source].box),
                    box=source.box(stride, spec),
                    label=record.labels[label],
                )
                for source in mine
            ]
        )
    return rows
