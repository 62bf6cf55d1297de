"""TLS: the certificate that callers see, the one that they may have to show, and how renewed ones are taken."""

from pathlib import Path
from typing import Any

from serving.envoy.messages import typed
from serving.envoy.options import EnvoyOptions

_CERTIFICATE, _CLIENT_CA = "certificate", "client_ca"  # Envoy's names of what may be renewed


def tls_context(options: EnvoyOptions, renewals: Path | None) -> dict[str, Any]:
    """What callers meet first: with `renewals`, by the documents of `certificates` in that folder."""
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["h2", "http/1.1"],
    }
    if renewals is None:
        common["tls_certificates"] = [_pair(options)]
    else:
        common["tls_certificate_sds_secret_configs"] = [_renewed(_CERTIFICATE, renewals)]
    if options.client_ca is not None and renewals is None:
        common["validation_context"] = _trusted(options.client_ca)
    elif options.client_ca is not None and renewals is not None:
        common["validation_context_sds_secret_config"] = _renewed(_CLIENT_CA, renewals)
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=options.client_ca is not None,
    )


def certificates(options: EnvoyOptions) -> dict[str, dict[str, Any]]:
    """The documents by which Envoy is told of certificates while it runs, by the names of their files: they name PEM
    files, and hold none of them.

    Envoy looks for files that are moved into their folders, and at certificate and private key together: a pair that
    does not match is not taken.
    """
    kind = "envoy.extensions.transport_sockets.tls.v3.Secret"
    secrets = {_CERTIFICATE: typed(kind, name=_CERTIFICATE, tls_certificate=_pair(options))}
    if options.client_ca is not None:
        secrets[_CLIENT_CA] = typed(kind, name=_CLIENT_CA, validation_context=_trusted(options.client_ca))
    return {_document(name): {"resources": [secret]} for name, secret in secrets.items()}


def _pair(options: EnvoyOptions) -> dict[str, Any]:
    return {
        "certificate_chain": {"filename": str(options.certificate.absolute())},
        "private_key": {"filename": str(options.certificate_key.absolute())},
    }


def _trusted(client_ca: Path) -> dict[str, Any]:
    return {"trusted_ca": {"filename": str(client_ca.absolute())}}


def _renewed(name: str, folder: Path) -> dict[str, Any]:
    return {"name": name, "sds_config": {"path_config_source": {"path": str(folder.absolute() / _document(name))}}}


def _document(name: str) -> str:
    return f"{name}.json"
