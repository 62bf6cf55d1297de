"""A part drawn into an image is found in the tensor where its landmark says, whatever the crop, size or orientation."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from bundle.errors import ImageError
from bundle.image import ImageSpec, upright_size
from training.data.index import Sample
from training.data.landmarks import placed

LYING = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
DOT = 2  # pixels on each side of its middle


def written(folder, kind, orientation, width, height, x, y):
    """An image with a white dot whose middle pixel is (x, y) when it is upright."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y - DOT : y + DOT + 1, x - DOT : x + DOT + 1] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if (turn := LYING[orientation]) is not None:
        image = image.transpose(turn)
    path = folder / f"dot.{kind}"
    image.save(path, exif=exif)
    return path


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_a_drawn_part_lands_where_it_is_placed(data):
    width, height = data.draw(st.integers(30, 90)), data.draw(st.integers(30, 90))
    x, y = data.draw(st.integers(8, width - 9)), data.draw(st.integers(8, height - 9))
    box = None
    if data.draw(st.booleans()):  # around the dot, also beyond the image and between pixels
        left, top = data.draw(st.floats(0, x - 6)), data.draw(st.floats(0, y - 6))
        right, bottom = data.draw(st.floats(x + 7, width + 9)), data.draw(st.floats(y + 7, height + 9))
        box = (left, top, right - left, bottom - top)
    spec = ImageSpec(width=data.draw(st.integers(16, 120)), height=data.draw(st.integers(16, 120)))
    kind, orientation = data.draw(st.sampled_from(["png", "jpg"])), data.draw(st.sampled_from(list(LYING)))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), kind, orientation, width, height, x, y)
        sample = Sample(key="a", path=path, label=0, box=box, landmarks=(("dot", float(x), float(y)),))
        ((name, column, row),) = placed(sample, spec)
        light = spec.read(path, box)[..., 0].astype(float)
    light[light < 40] = 0
    rows, columns = np.arange(spec.height) + 0.5, np.arange(spec.width) + 0.5
    assert name == "dot"
    assert column == pytest.approx(light.sum(0) @ columns / light.sum(), abs=0.5)
    assert row == pytest.approx(light.sum(1) @ rows / light.sum(), abs=0.5)


def test_a_part_outside_the_crop_is_none(tmp_path):
    path = written(tmp_path, "png", 1, 40, 30, 10, 10)
    marks = (("inside", 10.0, 10.0), ("left", 4.0, 10.0), ("corner", 5.0, 6.0), ("below", 10.0, 16.0))
    sample = Sample(key="a", path=path, label=0, box=(5.0, 6.0, 20.0, 10.0), landmarks=marks)
    found = placed(sample, ImageSpec(width=40, height=40))
    assert found == (("inside", 11.0, 18.0), ("corner", 1.0, 2.0))
    assert placed(Sample(key="a", path=path, label=0, box=None), ImageSpec(width=40, height=40)) == ()


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_file_without_a_size_is_one_sentence(content, tmp_path):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: the size of the image cannot be read"):
        upright_size(path)
