"""What systemd hears of a service of `Type=notify`: that it is ready, that it is alive, that it is stopping.

Everything here is silent where nobody listens, as at a terminal or in a container.
"""

import contextlib
import os
import socket

SOCKET = "NOTIFY_SOCKET"
READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(state: str) -> None:
    """Tell the service manager; it must not matter to us whether it hears."""
    if not (address := os.environ.get(SOCKET)):
        return
    if address.startswith("@"):  # an abstract socket, as systemd writes it
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.setblocking(False)
        connection.sendto(state.encode(), address)
