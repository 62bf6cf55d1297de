"""A bundle that says that it is narrower than it is, for what only reads what it says."""

import dataclasses

from bundle import Bundle
from bundle.manifest import Quality


def narrowed(bundle: Bundle, precision: str) -> Bundle:
    """The bundle, its `full` network declared to be of another precision."""
    quality = Quality(images=1, accuracy=1.0, flagged=0.0, auroc={})
    info = bundle.manifest.networks["full"]
    narrow = dataclasses.replace(info, precision=precision, quality={"fp32": quality, precision: quality})
    networks = {**bundle.manifest.networks, "full": narrow}
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, networks=networks))
