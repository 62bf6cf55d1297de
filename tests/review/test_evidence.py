"""Evidence: layers against a naive count, near copies, the bundle's own answers, pictures that are only pixels."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle
from bundle.errors import ImageError
from bundle.image import ImageSpec
from review.evidence.fingerprint import BYTES, Likeness, fingerprint
from review.evidence.layers import calibrated, reference, unflagged
from review.evidence.look import Looker
from review.evidence.neighbours import neighbours
from review.evidence.pictures import as_sent, boxed, difference, jpeg, png
from review.store.database import Database
from review.store.decisions import decide
from review.store.groups import COPIES, groups
from review.store.queue import Filter, get
from serving.client.local import LocalInference
from serving.client.prediction import predictions
from tests.conftest import LAYERS, draw_toy
from tests.review.conftest import encoded
from tests.review.items import members

SPEC = ImageSpec(height=32, width=32)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def test_rarity_is_a_count() -> None:
    random = np.random.default_rng(0)
    calm = random.lognormal(3, 0.5, (99, 2))
    known = reference(("colour", "grid"), calm, "calibration images")
    own = (float(np.median(calm[:, 0])), float(calm[:, 1].max() * 5))
    colour, grid = known.voices(own)
    assert (grid.at_least, grid.rarity) == (0, 1 / 100)
    assert colour.at_least == int((calm[:, 0] >= own[0]).sum())
    assert grid.deviations > 3 > abs(colour.deviations)
    assert known.loudest(own) == "grid"
    assert known.voices((1.0,)) == []
    assert known.loudest((float("nan"), 1.0)) == "colour"  # what is no number is the most suspicious


def test_the_unflagged_stand_in_where_the_bundle_has_no_distances(database: Database, toy_bundle: Bundle) -> None:
    assert calibrated(toy_bundle, "full") is None
    with database.reading() as connection:
        known = unflagged(connection, toy_bundle, "full")
        rows = connection.execute("SELECT layers FROM items WHERE reason = 'sample'").fetchall()
    assert known is not None
    assert known.columns == LAYERS
    assert len(known.distances) == len(rows)
    assert known.distances[-1, 0] == max(json.loads(row["layers"])[0] for row in rows)


def test_the_noise_is_loud_in_a_layer(database: Database) -> None:
    with database.reading() as connection:
        found = {row[0] for row in connection.execute("SELECT layer FROM items WHERE origin = 'partner-x'")}
    assert found <= set(LAYERS)


def test_a_fingerprint_knows_a_copy_and_no_other_bird() -> None:
    random = np.random.default_rng(0)
    likeness = Likeness()
    birds = [Image.fromarray(draw_toy(label, 9)).resize((160, 120)) for label in range(5)]
    firsts = [likeness.join(index, fingerprint(encoded(np.asarray(bird)), SPEC)) for index, bird in enumerate(birds)]
    assert firsts == [0, 1, 2, 3, 4]
    for index, bird in enumerate(birds):
        noisy = (np.asarray(bird) + random.integers(-8, 9, (120, 160, 3))).clip(0, 255).astype(np.uint8)
        for copy in (encoded(noisy), encoded(np.asarray(bird.resize((80, 60))), "JPEG"), encoded(np.asarray(bird))):
            assert len(fingerprint(copy, SPEC)) == BYTES
            assert likeness.join(100 + index, fingerprint(copy, SPEC)) == index
    assert likeness.join(7, b"\0" * BYTES, first=3) == 3


def test_near_copies_are_a_group(database: Database, quarantine, toy_bundle: Bundle, answered) -> None:  # type: ignore[no-untyped-def]
    from datetime import timedelta

    from review.follower import Follower
    from review.sources.quarantine import QuarantineSource
    from tests.review.conftest import START, write_entry

    data, said = answered[45]
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    for index in range(3):
        write_entry(
            quarantine, encoded(pixels, "JPEG" if index else "PNG"), said, START + timedelta(days=3, hours=index)
        )
    follower = Follower(database, QuarantineSource(str(quarantine)), toy_bundle)
    follower.turn()
    wanted = max(groups(database, COPIES), key=lambda group: group.items).wanted
    assert len(members(database, Filter(state="any", copies=wanted.copies))) >= 4


def test_a_look_is_what_the_graph_says(looker: Looker, toy_bundle: Bundle) -> None:
    pixels = draw_toy(2, 77)
    found = looker.look(encoded(pixels))
    assert looker.look(encoded(pixels)) is found
    assert np.array_equal(found.pixels, pixels)
    assert set(found.networks) == {"full", "attention"}
    for network, seen in found.networks.items():
        outputs = LocalInference(toy_bundle, threads=1).infer(pixels[None], network)
        (expected,) = predictions(outputs, toy_bundle.manifest, network, top=3)
        assert seen.prediction == expected
        assert np.array_equal(seen.attention, outputs["attention"][0])
    fired = found.networks["full"].fired
    assert sum(each.count for each in fired) == 3
    assert all(
        each.label == toy_bundle.manifest.labels[toy_bundle.manifest.prototypes[each.index].label] for each in fired
    )
    assert found.networks["attention"].fired == ()


def test_neighbours_are_the_nearest_decided_ones(database: Database, toy_bundle: Bundle) -> None:
    decide(database, list(range(1, 31)), "clean", "ada")
    decide(database, list(range(41, 61)), "attack", "ada")
    decide(database, [50], "clean", "bob")  # disputed: no example
    with database.reading() as connection:
        known = unflagged(connection, toy_bundle, "full")
        item = get(database, 45)
        assert known is not None
        assert item is not None
        found = neighbours(connection, item, known, most=5)
        rows = connection.execute("SELECT * FROM items WHERE state IN ('attack', 'clean') AND id <> 45").fetchall()
    own = known.standard(np.array([json.loads(item["layers"])]))
    apart = {
        row["id"]: float(np.sqrt(((known.standard(np.array([json.loads(row["layers"])])) - own) ** 2).mean()))
        for row in rows
    }
    assert [each.item["id"] for each in found] == sorted(apart, key=lambda number: apart[number])[:5]
    assert 50 not in {each.item["id"] for each in found}


def test_a_picture_keeps_its_proportions_and_stands_upright() -> None:
    tall = Image.new("RGB", (60, 20), (200, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    tall.save(stream, "JPEG", exif=exif)
    assert as_sent(stream.getvalue(), SPEC).shape == (60, 20, 3)
    assert as_sent(encoded(np.zeros((900, 3000, 3), np.uint8)), SPEC, longest=300).shape == (90, 300, 3)


@pytest.mark.hostile
def test_no_byte_of_what_was_sent_reaches_a_page() -> None:
    script = b"<script>alert(document.cookie)</script>"
    exif = Image.Exif()
    exif[0x010E] = script.decode()
    stream = io.BytesIO()
    Image.fromarray(draw_toy(0, 1)).save(stream, "JPEG", exif=exif, comment=script)
    data = stream.getvalue() + script
    assert script in data
    pixels = as_sent(data, SPEC)
    for made in (png(pixels), jpeg(pixels), png(difference(pixels, "encoded")), png(boxed(pixels, (0, 0, 8, 8)))):
        assert b"<script" not in made
        assert Image.open(io.BytesIO(made)).size
    for bad in (SVG, b"\x89PNG\r\n\x1a\n" + SVG, b""):
        with pytest.raises(ImageError):
            as_sent(bad, SPEC)


def test_the_difference_of_a_flat_picture_is_grey_and_of_an_attacked_one_is_not() -> None:
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert set(np.unique(difference(flat, "smoothed"))) == {128}
    attacked = flat + (8 * (np.indices((32, 32)).sum(axis=0) % 2)).astype(np.uint8)[..., None]
    assert difference(attacked, "smoothed").std() > 20
    assert difference(attacked, "encoded").shape == (32, 32, 3)
