"""Networks of other runs to transfer attacks from."""

import re
from pathlib import Path

from bundle.errors import OptionError
from training.networks import Network
from training.run import Run, RunRecord, image_spec


def open_sources(texts: tuple[str, ...], record: RunRecord) -> dict[str, Network]:
    """Networks to transfer attacks from, by name, from NAME=RUN texts. They must take the same images and name the same
    classes as `record`.
    """
    found: dict[str, Network] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+", name):
            raise OptionError(f"{text!r} is not NAME=RUN", hint="For example: --source bb-v=runs/gap-vgg16")
        other, network = Run(Path(path)).load_network()
        if image_spec(other.config) != image_spec(record.config) or other.labels != record.labels:
            raise OptionError(
                f"{path} takes other images or knows other classes than this run",
                hint="Train the source on the same data at the same image size.",
            )
        if name in found:
            raise OptionError(f"two sources are named {name!r}")
        found[name] = network
    return found
