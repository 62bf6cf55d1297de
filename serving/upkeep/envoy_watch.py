"""The Envoy that `fieldmark serve` starts before its gateway: kept up as the gateway is, and replaced alone."""

import contextlib
import socket
import ssl
import time

from serving.envoy.process import EnvoyServer, reached_at
from serving.processes import halted
from serving.upkeep.keeper import PATIENCE_SECONDS, Stopped, Trouble
from serving.upkeep.service import ENVOY as WHO

PROBE_SECONDS = 2.0


class EnvoyWatch:
    """Looks after a started EnvoyServer. It is a `Service`."""

    def __init__(self, server: EnvoyServer) -> None:
        self.server = server
        self._heard = time.monotonic()

    def look(self) -> list[Trouble]:
        """Whether it has ended, or says nothing to who greets it. Any word is one, also that it lets nobody in."""
        if cause := self.server.ended():
            return [Trouble(who=WHO, cause=cause, mend=self._replace)]
        if not halted(self.server.pid) and self._answers():
            self._heard = time.monotonic()
        seconds = time.monotonic() - self._heard
        if seconds < PATIENCE_SECONDS:
            return []
        return [Trouble(who=WHO, cause=f"no answer for {seconds:.0f} s", mend=self._replace)]

    def _answers(self) -> bool:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # who it is, is not the question
        try:
            with socket.create_connection(reached_at(self.server.options), timeout=PROBE_SECONDS) as line:
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    context.wrap_socket(line).close()
                return True
        except OSError:  # no answer in time, or nobody listens
            return False

    def _replace(self, _: Stopped) -> str:
        self.server.stop(0)
        self.server.start()
        self._heard = time.monotonic()
        return ""
