"""Does a network look at a bird's parts? The pointing game (Zhang et al. 2018) and the attention's mass on true parts,
clean and attacked, beside what it takes no network to get.

A place is on a part if it lies within `radius` of a visible part's true location, as a fraction of the image's side.

B images, P parts (those that an image does not show are at infinity), (h, w) the feature map, S the image's side in
pixels, c prototypes a class, t = SHOWN.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bundle import tensors
from bundle.errors import DatasetError, OptionError
from bundle.false_alarms import wilson
from bundle.image import ImageSpec
from training.attacks.attacker import Attackers
from training.attacks.files import BATCH
from training.attacks.names import CLEAN
from training.data import Dataset, Sample
from training.data.choice import samples_of, spread
from training.data.index import Landmark
from training.data.landmarks import placed
from training.data.loading import image_loader
from training.data.species import telling_parts
from training.networks import Network
from training.pixels import from_bytes, round_to_bytes
from training.run import RunRecord, image_spec

RADIUS = 0.1
SHOWN = 5  # of the predicted class's prototypes, the most similar ones
ANY, TELLING = "parts", "field_marks"
MEASURES = ("attention_mass", "pointing", "prototypes", "chance", "centre")


def pointing(
    record: RunRecord,
    attackers: Attackers,
    dataset: Dataset,
    *,
    attacks: Sequence[str],
    count: int,
    part: str = "test",
    radius: float = RADIUS,
) -> dict[str, Any]:
    """For each head and attack, clean first, over at most `count` images that show a part:

    attention_mass   the share of the attention's mass that is on a part, A upsampled bilinearly to pixels
    pointing         the share of images whose strongest attention is on a part, taken at the middle of its cell
    prototypes       of the predicted class's SHOWN most similar prototypes, the share that fires most on a part
    chance           the share of the image's area that is on a part: what a random point would get
    centre           the share of images whose middle is on a part: what a crop gives away

    each as {"share", "interval"}, or None where the head has no such map: of all visible parts (`parts`), and of those
    alone whose marks tell the species from its look-alikes (`field_marks`; None except for the built-in birds). `right`
    is how often the head's answer is. Intervals are Wilson's with an image as the unit, which is wider than need be for
    a mean of shares. Attacks are made on the head that is judged.
    """
    names, network = tuple(dict.fromkeys((CLEAN, *attacks))), attackers.network
    attackers.check(names)
    if not set(network.config.heads) & set(tensors.NETWORKS):
        raise OptionError(f"a {record.config.system!r} network has neither attention nor prototypes to point with")
    samples_of(dataset, part)
    if not 0 < radius < 1:
        raise OptionError(f"radius {radius} is not in 0..1", hint="It is a fraction of the image's side.")
    spec = image_spec(record.config)
    samples, marks = _annotated(dataset, part, count, spec)
    places = {ANY: _padded(marks)}
    if (telling := telling_parts(dataset.labels)) is not None:
        places[TELLING] = _padded(
            [[mark for mark in each if mark[0] in telling[s.label]] for s, each in zip(samples, marks, strict=True)]
        )
    device = attackers.to_device()
    loader = image_loader(samples, spec, batch_size=BATCH, shuffle_seed=None)

    def measured(head: str, name: str) -> dict[str, Any]:
        found: dict[str, defaultdict[str, list[Tensor]]] = {kind: defaultdict(list) for kind in places}
        right: list[Tensor] = []
        attacker = attackers.on(head)
        for images, labels, indices in loader:
            pixels, labels = from_bytes(images.to(device)), labels.to(device)
            attacked = from_bytes(round_to_bytes(attacker.attack(name, pixels, labels)))
            attention, fired, predicted = activation_maps(network, head, attacked)
            right.append((predicted == labels).cpu())
            for kind, points in places.items():
                shares = on_parts(attention, fired, points[indices].to(device), spec.width, radius)
                for key, share in shares.items():
                    found[kind][key].append(share.cpu())
        result: dict[str, Any] = {"right": _summary(right), TELLING: None}
        return result | {kind: {key: _summary(of[key]) for key in MEASURES} for kind, of in found.items()}

    return {
        "preset": record.config.preset,
        "system": record.config.system,
        "seed": record.config.seed,
        "part": part,
        "images": len(samples),
        "radius": radius,
        "heads": {head: {name: measured(head, name) for name in names} for head in network.config.heads},
    }


@torch.no_grad()
def activation_maps(network: Network, head: str, images: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Images [B, 3, S, S] -> the attention A [B, h, w], where the predicted class's t most similar prototypes fire
    [B, t, h, w] (both None where the head has none), and that class [B].
    """
    forward = network(images, head)
    predicted = forward.logits[head].argmax(1)
    if network.prototype_head is None or forward.distances is None:
        return forward.attention, None, predicted
    maps = network.prototype_head.similarity(forward.distances, forward.attention)
    own = maps.unflatten(1, (network.config.classes, -1))[torch.arange(len(predicted)), predicted]  # [B, c, h, w]
    best = own.amax((2, 3)).topk(min(SHOWN, own.shape[1]), dim=1).indices
    return forward.attention, own.take_along_dim(best[:, :, None, None], dim=1), predicted


def on_parts(
    attention: Tensor | None, fired: Tensor | None, parts: Tensor, side: int, radius: float = RADIUS
) -> dict[str, Tensor]:
    """Image by image what `pointing` averages, [B] each, of those that there are; NaN for an image that shows no part.

    A [B, h, w], prototypes' maps [B, t, h, w], parts [B, P, 2] = (x, y) in pixels, `side` S in pixels. A map without
    any positive value points nowhere, so it is off the parts.
    """
    inside = _near(parts, side, side, side, radius)  # [B, S * S]
    found = {"chance": inside.double().mean(1), "centre": _near(parts, 1, 1, side, radius).double().mean(1)}
    if attention is not None:
        fine = functional.interpolate(attention[:, None].double(), size=(side, side), mode="bilinear").flatten(1)
        found["attention_mass"] = (fine * inside).sum(1) / fine.sum(1).clamp_min(1e-12)
        found["pointing"] = _peaks_on(attention[:, None], parts, side, radius)
    if fired is not None:
        found["prototypes"] = _peaks_on(fired, parts, side, radius)
    shows = parts.isfinite().flatten(1).any(1)
    return {key: share.where(shows, torch.nan) for key, share in found.items()}


def _peaks_on(maps: Tensor, parts: Tensor, side: int, radius: float) -> Tensor:
    """[B, n, h, w] -> the share of each image's n maps whose strongest cell has its middle on a part : [B]."""
    strongest = maps.flatten(2).max(2)
    near = _near(parts, maps.shape[2], maps.shape[3], side, radius)
    return (near.gather(1, strongest.indices) & (strongest.values > 0)).double().mean(1)


def _near(parts: Tensor, rows: int, columns: int, side: int, radius: float) -> Tensor:
    """Whether the middle of each cell of a grid over the image is on a part: [B, P, 2] -> [B, rows * columns] bool."""
    y, x = ((torch.arange(cells, device=parts.device) + 0.5) * (side / cells) for cells in (rows, columns))
    middles = torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=1).to(parts)
    near = torch.zeros(len(parts), len(middles), dtype=torch.bool, device=parts.device)
    for places in parts.unbind(1):  # part by part: all at once would take P times the memory
        near |= (middles - places[:, None]).square().sum(2) <= (radius * side) ** 2
    return near


def _annotated(
    dataset: Dataset, part: str, count: int, spec: ImageSpec
) -> tuple[tuple[Sample, ...], list[tuple[Landmark, ...]]]:
    """At most `count` samples that show a part, evenly over the classes, and their parts in pixels of the tensor."""
    annotated = tuple(sample for sample in dataset.parts[part] if sample.landmarks)
    chosen = [(sample, marks) for sample in spread(annotated, count) if (marks := placed(sample, spec))]
    if not chosen:
        raise DatasetError(
            f"{dataset.root} has no part annotations for its {part} images, so nobody knows where to look",
            hint="CUB-200-2011 with its parts/ folder has them, and so have the built-in birds.",
        )
    return tuple(sample for sample, _ in chosen), [marks for _, marks in chosen]


def _padded(marks: Sequence[Sequence[Landmark]]) -> Tensor:
    """Places of each image's parts, [n, P, 2]; at infinity those that it shows fewer than P."""
    points = torch.full((len(marks), max(1, *map(len, marks)), 2), torch.inf, dtype=torch.float64)
    for row, each in zip(points, marks, strict=True):
        row[: len(each)] = torch.tensor([place for _, *place in each], dtype=torch.float64).reshape(-1, 2)
    return points


def _summary(batches: Sequence[Tensor]) -> dict[str, Any] | None:
    """Mean over images, those without a value left aside, and its interval; None of no batches or no value."""
    values = torch.cat(list(batches)).double() if batches else torch.empty(0)
    values = values[~values.isnan()]
    if not len(values):
        return None
    total = values.sum().item()
    low, high = wilson(total, len(values))
    share = total / len(values)
    return {"share": round(share, 4), "interval": [round(low, 4), round(high, 4)], "images": len(values)}
