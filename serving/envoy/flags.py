"""The flags of what faces strangers, which `fieldmark gateway` and `fieldmark envoy` share."""

import ssl
from pathlib import Path
from typing import Annotated, Any

import typer

from bundle.errors import OptionError
from serving.envoy.options import EnvoyOptions

_PANEL = "In front of strangers: Envoy"


def setting(text: str, **more: Any) -> Any:
    """A flag of Envoy's, in its own part of the help."""
    return typer.Option(help=text, rich_help_panel=_PANEL, **more)


Certificate = Annotated[Path | None, setting("PEM file: the certificate that callers see.", metavar="FILE")]
CertificateKey = Annotated[Path | None, setting("PEM file: its private key.", metavar="FILE")]
Keys = Annotated[Path | None, setting("Keys of callers: a line NAME:KEY for each, chmod 600.", metavar="FILE")]
ClientCa = Annotated[
    Path | None, setting("PEM file: callers must show a certificate that it has signed.", metavar="FILE")
]
Rate = Annotated[int, setting("Requests a second of one key; of a stream, images.")]
Burst = Annotated[int, setting("Requests or images that a key may have saved up.")]
Connections = Annotated[int, setting("Connections that may be open, of all callers.")]
Health = Annotated[bool, typer.Option("--health", help="Let anybody ask for health.", rich_help_panel=_PANEL)]
Reflection = Annotated[
    bool, typer.Option("--reflection", help="Let holders of a key ask for the proto.", rich_help_panel=_PANEL)
]
Binary = Annotated[Path | None, typer.Option("--envoy", metavar="FILE", help="Envoy's binary.", rich_help_panel=_PANEL)]


def check_certificates(certificate: Path, certificate_key: Path, client_ca: Path | None) -> None:
    """Raise OptionError unless the files can be read, are certificates, and belong together."""
    for file in (certificate, certificate_key, client_ca):
        try:
            if file is not None:
                file.read_bytes()
        except OSError as problem:
            raise OptionError(f"{file}: {(problem.strerror or 'cannot be read').lower()}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: an encrypted key is refused, instead of a question at the terminal.
        context.load_cert_chain(certificate, certificate_key, password="")
    except (ssl.SSLError, ValueError, OSError):
        raise OptionError(
            f"{certificate} and {certificate_key} are not a certificate and its private key",
            hint="Two PEM files that belong together, the key without a password.",
        ) from None
    try:
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except (ssl.SSLError, ValueError, OSError):
        raise OptionError(f"{client_ca} holds no certificate", hint="A PEM file.") from None


def envoy_options(given: dict[str, object]) -> EnvoyOptions:
    """Options from flags, whose files are read here; raises OptionError."""
    from serving.envoy.keys import read_keys

    certificate, key, keys = (given[name] for name in ("certificate", "certificate_key", "keys"))
    client_ca = given["client_ca"]
    if not (isinstance(certificate, Path) and isinstance(key, Path) and isinstance(keys, Path)):
        raise OptionError(
            "who faces strangers needs a certificate and keys", hint="Give --certificate, --certificate-key and --keys."
        )
    check_certificates(certificate, key, client_ca if isinstance(client_ca, Path) else None)
    try:
        return EnvoyOptions(**given | {"keys": read_keys(keys)})  # type: ignore[arg-type]
    except ValueError as problem:
        raise OptionError(str(problem)) from None
