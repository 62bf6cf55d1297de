"""Key files for tests of signatures, made from fixed bytes: nothing that they sign is worth forging."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEED = bytes(range(32))


def write_keys(folder: Path, seed: bytes = SEED, name: str = "") -> tuple[Path, Path]:
    """PEM files of the private and the public key of a seed."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    paths = folder / f"{name}private.pem", folder / f"{name}public.pem"
    paths[0].write_bytes(pem(private))
    paths[1].write_bytes(pem(private.public_key()))
    return paths


def pem(key) -> bytes:
    """Any key of `cryptography`'s as PEM."""
    encoding = serialization.Encoding.PEM
    if not hasattr(key, "private_bytes"):
        return key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
