"""The contract: what a trained model is on disk, and how images become its input. numpy and Pillow, nothing heavier."""

from bundle.errors import FieldmarkError
from bundle.folder import Bundle, write_bundle
from bundle.image import ImageSpec
from bundle.manifest import Manifest

__all__ = ["Bundle", "FieldmarkError", "ImageSpec", "Manifest", "write_bundle"]
