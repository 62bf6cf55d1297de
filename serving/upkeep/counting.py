"""How often each service was replaced, counted in a file that the gateway's metrics show."""

import contextlib
from collections.abc import Iterator

from bundle import Bundle
from serving.gateway.tally import Tally
from serving.upkeep.gateway import WHO
from serving.upkeep.watch import SERVER, network_called
from serving.workspace import Workspace


@contextlib.contextmanager
def counting(bundle: Bundle) -> Iterator[Tally]:
    """A tally of what serves a bundle, gone at the end; one left by a kill, the next server sweeps away."""
    workspace = Workspace()
    workspace.note_extras()
    try:
        yield Tally(workspace.path / "replaced.json", (SERVER, WHO, *map(network_called, bundle.manifest.networks)))
    finally:
        workspace.remove()
