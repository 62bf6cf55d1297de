"""Who lets an Envoy stand before a gateway that it starts, decided by its flags: `fieldmark gateway` and `serve`."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import OptionError
from serving.envoy.options import DEFAULTS, SHARED, EnvoyOptions
from serving.gateway.options import GatewayOptions, flag, is_loopback

NEEDED = ("certificate", "certificate_key", "keys")
FLAGS = (*NEEDED, "client_ca", "rate", "burst", "connections", "health", "reflection", "envoy")


@dataclass(frozen=True, kw_only=True)
class Door:
    """The Envoy that is to stand before a gateway, its files read and found good; the port is a real one."""

    options: EnvoyOptions
    binary: Path

    def before(self, gateway: str, limits: Mapping[str, Any]) -> EnvoyOptions:
        """For the gateway that listens at HOST:PORT and has these limits, by the names of `SHARED`; or OptionError."""
        try:
            return dataclasses.replace(self.options, gateway=gateway, **limits)
        except ValueError as problem:
            raise OptionError(str(problem)) from None


def find_door(
    given: Mapping[str, Any], host: str, port: int, limits: Mapping[str, Any], *, kept: Collection[str] = ()
) -> Door | None:
    """The Envoy that the flags of a command ask for, None for none. `given` has the values of `FLAGS`, and `insecure`;
    `limits` are the gateway's, as far as they are known yet, and `kept` the flags that it keeps without Envoy too.

    Raises OptionError where strangers would find an open door, and for everything that can be wrong with it.
    """
    names = [flag(name) for name in NEEDED]
    missing = [name for name, field in zip(names, NEEDED, strict=True) if given[field] is None]
    if missing == names:
        if not given["insecure"] and not is_loopback(host):
            raise OptionError(
                f"--host {host} can be reached by others, and the gateway asks nobody who they are",
                hint=f"Give {', '.join(names)}, and Envoy asks them; or say --insecure.",
            )
        for name in FLAGS[len(NEEDED) :]:
            if name not in kept and given[name] != DEFAULTS.get(name):
                raise OptionError(
                    f"{flag(name)} is for Envoy, and none is asked for", hint=f"Give {', '.join(names)} too."
                )
        return None
    if missing:
        raise OptionError(f"{', '.join(missing)} is missing", hint=f"Envoy needs {', '.join(names)}.")
    if given["insecure"]:
        raise OptionError("--insecure says that there are no keys, and --keys that there are", hint="Choose.")
    return _door(given, host, port, limits)


def _door(given: Mapping[str, Any], host: str, port: int, limits: Mapping[str, Any]) -> Door:
    from serving.envoy.flags import envoy_options
    from serving.envoy.process import find_envoy
    from serving.gateway.server import check_port, free_port

    check_port(host, port)
    binary = given["envoy"] or find_envoy()
    asked = {name: given[name] for name in FLAGS if name != "envoy"}
    shared = {name: DEFAULTS[name] for name in SHARED}
    place = {"host": host, "port": port or free_port(host)}
    return Door(options=envoy_options({**asked, **shared, **limits, **place}), binary=binary)


def limits_of(options: GatewayOptions) -> dict[str, Any]:
    """What an Envoy before a gateway limits by the gateway's numbers."""
    return {name: getattr(options, name) for name in SHARED}
