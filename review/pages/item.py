"""One image: what was sent, what the network saw in it, and why it was flagged."""

import json
import sqlite3

from starlette.requests import Request
from starlette.responses import Response

from bundle.errors import BundleError, ImageError, ImageGone
from bundle.false_alarms import smallest_p_value
from review.evidence.layers import Voice
from review.evidence.look import Look
from review.evidence.neighbours import Neighbour, neighbours
from review.evidence.pictures import THUMBNAIL, as_sent, attended, boxed, difference, jpeg, png
from review.follower import bytes_of
from review.pages.access import reviewer_of
from review.pages.page import NotFound, console_of, render
from review.pages.queue import existing
from review.store.decisions import history, standing
from review.store.queue import Filter, after
from review.store.sample import samples
from serving.client.classify import prototype_images

KEPT = "private, max-age=3600"
DIFFERENCES = ("encoded", "smoothed")


def item_page(request: Request) -> Response:
    """The page of one image. In a random sample nothing tells how suspicious it is, lest that decides."""
    console = console_of(request)
    item = existing(request, int(request.path_params["item"]))
    wanted = Filter.of(request.query_params)
    sample = request.query_params.get("sample", "")
    found, problem = _look(request, item)
    decided = standing(console.database, item["id"])
    voices, near = _evidence(request, item)
    manifest = console.bundle.manifest
    info = manifest.networks.get(item["network"])
    return render(
        request,
        "item.html.j2",
        item=item,
        wanted=wanted,
        sample=sample if sample.isdecimal() else "",
        progress=next((each for each in samples(console.database) if str(each.number) == sample), None),
        look=found,
        problem=console.told(problem),
        foreign=item["bundle_id"] != console.bundle.bundle_id,
        voices=voices,
        of=_of(request, item),
        smallest=None if info is None else smallest_p_value(info.detector.calibration_n),
        near=near,
        decided=decided,
        mine=next((row for row in decided if row["reviewer"] == reviewer_of(request, console.door)), None),
        history=history(console.database, item["id"]),
        missed=request.query_params.get("missed", ""),
        earlier=after(console.database, wanted, item, before=True),
        later=after(console.database, wanted, item),
        differences=DIFFERENCES,
    )


def picture(request: Request) -> Response:
    """One of the item's pictures, encoded here; raises NotFound, ImageGone or ImageError."""
    item = existing(request, int(request.path_params["item"]))
    kind = request.path_params["kind"]
    data = _bytes(request, item)
    spec = console_of(request).bundle.manifest.image
    if kind == "thumbnail":
        return _image(jpeg(as_sent(data, spec, longest=THUMBNAIL)), "image/jpeg")
    if kind == "sent":
        return _image(png(as_sent(data, spec)), "image/png")
    look = console_of(request).looker.look(data)
    if kind == "seen":
        return _image(png(look.pixels), "image/png")
    if kind in DIFFERENCES:
        return _image(png(difference(look.pixels, kind)), "image/png")
    if kind in look.networks:
        return _image(png(attended(look.pixels, look.networks[kind].attention)), "image/png")
    raise NotFound(f"there is no picture {kind[:40]!r} of an image")


def prototype(request: Request) -> Response:
    """The training image of a prototype, its patch framed."""
    bundle = console_of(request).bundle
    index = int(request.path_params["index"])
    pixels = prototype_images(bundle, bundle.manifest)(index)
    if pixels is None:
        raise NotFound(f"the bundle has no prototype {index}")
    return _image(png(boxed(pixels, bundle.manifest.prototypes[index].box)), "image/png")


def _look(request: Request, item: sqlite3.Row) -> tuple[Look | None, str]:
    """The bundle's answers, or the sentence why there are none."""
    try:
        return console_of(request).looker.look(_bytes(request, item)), ""
    except ImageGone as problem:
        return None, problem.what
    except (ImageError, BundleError) as problem:
        return None, f"the image cannot be shown: {problem.what}"


def _evidence(request: Request, item: sqlite3.Row) -> tuple[list[Voice], list[Neighbour]]:
    console = console_of(request)
    reference = console.follower.reference(item["network"])
    if reference is None or item["bundle_id"] != console.bundle.bundle_id:
        return [], []
    with console.database.reading() as connection:
        near = neighbours(connection, item, reference)
    return reference.voices(json.loads(item["layers"])), near


def _of(request: Request, item: sqlite3.Row) -> str:
    reference = console_of(request).follower.reference(item["network"])
    return "" if reference is None else f"{len(reference.distances):,} {reference.of}"


def _bytes(request: Request, item: sqlite3.Row) -> bytes:
    console = console_of(request)
    return bytes_of(console.source, item, console.bundle.manifest.image.max_bytes)


def _image(data: bytes, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"cache-control": KEPT})
