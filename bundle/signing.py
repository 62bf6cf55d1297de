"""Who answers for a bundle: `manifest.sig`, the Ed25519 signature (RFC 8032) of the bytes of manifest.json.

The manifest holds a checksum of every file, so its signature covers them all. The public key comes from whoever opens
the bundle: a key that travelled with it would prove nothing.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.errors import BundleUntrusted, MissingExtra, OptionError
from bundle.files import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
PUBLIC_KEY = "FIELDMARK_PUBLIC_KEY"
MAX_KEY_BYTES = 64 * 1024  # the PEM form of an Ed25519 key has some 120
PRIVATE_HINT = "Make one with: openssl genpkey -algorithm ed25519 -out private.pem"
PUBLIC_HINT = f"--key and {PUBLIC_KEY} take an Ed25519 public key: openssl pkey -in private.pem -pubout -out public.pem"


def required_key() -> Path | None:
    """The public key by which every bundle must be signed, if the environment names one; empty is unset."""
    named = os.environ.get(PUBLIC_KEY)
    return Path(named) if named else None


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """An unencrypted Ed25519 private key in PEM form; raises OptionError, or MissingExtra without `cryptography`."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as problem:
        raise MissingExtra.named("signing", "signing a bundle", problem) from None
    data = _read(path, PRIVATE_HINT)
    try:
        key: Any = load_pem_private_key(data, password=None)
    except TypeError:
        raise OptionError(
            f"the private key {path} is encrypted", hint="Decrypt it first: openssl pkey -in KEY -out private.pem"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        public = b"PUBLIC KEY--" in data
        kind = "a public key, and only its private key can sign" if public else "no private key in PEM form"
        raise OptionError(f"{path} is {kind}", hint=PRIVATE_HINT) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise OptionError(f"{path} is {_kind(key)}, and bundles are signed with Ed25519", hint=PRIVATE_HINT)
    return key


def check_signature(manifest: bytes, signature: bytes | None, key: Path, where: Path) -> None:
    """Raise BundleUntrusted unless the bundle at `where` has a signature of `manifest` by the public key in a file."""
    public = _read_public_key(key)
    from cryptography.exceptions import InvalidSignature

    if signature is None:
        raise BundleUntrusted(
            f"{where} is not signed, and a signature by the key {key} is required",
            hint="Its publisher signs it with: fieldmark bundle sign BUNDLE --key PRIVATE.pem",
        )
    try:
        public.verify(signature, manifest)
    except InvalidSignature:
        raise BundleUntrusted(
            f"the signature of {where} was not made by the key {key} for this manifest",
            hint="Do not use this bundle. If its publisher has a new key, ask for that one.",
        ) from None


def _read_public_key(path: Path) -> "Ed25519PublicKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as problem:
        raise MissingExtra.named("signing", "checking a bundle's signature", problem) from None
    data = _read(path, PUBLIC_HINT)
    try:
        key: Any = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        private = b"PRIVATE KEY--" in data
        kind = "a private key, and its public key is asked for" if private else "no public key in PEM form"
        raise OptionError(f"{path} is {kind}", hint=PUBLIC_HINT) from None
    if not isinstance(key, Ed25519PublicKey):
        raise OptionError(f"{path} is {_kind(key)}, and bundles are signed with Ed25519", hint=PUBLIC_HINT)
    return key


def _read(path: Path, hint: str) -> bytes:
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_KEY_BYTES + 1)
    except FileNotFoundError:
        raise OptionError(f"there is no key at {path}", hint=hint) from None
    except OSError as problem:
        raise OptionError(f"the key {path} cannot be read ({problem.strerror})", hint=hint) from None
    if len(data) > MAX_KEY_BYTES:
        raise OptionError(f"{path} has more than {MAX_KEY_BYTES:,} bytes, so it is no key", hint=hint)
    return data


def _kind(key: object) -> str:
    """What another algorithm's key is, as `a key of another kind (RSA)`."""
    name = type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").strip("_")
    return f"a key of another kind ({name})"
