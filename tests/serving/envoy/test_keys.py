"""The file of keys: what it may hold, and who may read it. No sentence ever shows a key."""

import os
from pathlib import Path

import pytest

from bundle.errors import OptionError
from serving.envoy.keys import Key, read_keys

SECRET = "s3cr3t" * 5


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "keys"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_keys_are_read(tmp_path: Path) -> None:
    text = f"# callers\n\nann:{SECRET}\n  bob:{SECRET}:with:colons  \nann:{SECRET}-new\n"
    assert read_keys(written(tmp_path, text)) == (
        Key(name="ann", secret=SECRET),
        Key(name="bob", secret=f"{SECRET}:with:colons"),
        Key(name="ann", secret=f"{SECRET}-new"),
    )


def test_a_key_is_not_shown() -> None:
    assert SECRET not in repr(Key(name="ann", secret=SECRET))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_who_may_read_it(tmp_path: Path, mode: int) -> None:
    assert len(read_keys(written(tmp_path, f"ann:{SECRET}", mode))) == 1


@pytest.mark.hostile
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o660, 0o666, 0o777])
def test_a_file_that_others_may_read_or_change(tmp_path: Path, mode: int) -> None:
    with pytest.raises(OptionError, match=r"others may read or change it.*chmod 600"):
        read_keys(written(tmp_path, f"ann:{SECRET}", mode))


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# ann:" + SECRET, "holds no key"),
        (SECRET, "keys:1: no line NAME:KEY"),
        (f":{SECRET}", "keys:1: no line NAME:KEY"),
        (f"a b:{SECRET}", "keys:1: no line NAME:KEY"),
        (f"ann:{SECRET}\n{'n' * 65}:{SECRET}2", "keys:2: no line NAME:KEY"),
        ("ann:" + SECRET[:23], "the key is not 24 to 256"),
        ("ann:" + SECRET * 9, "the key is not 24 to 256"),
        (f"ann:{SECRET} {SECRET}", "the key is not 24 to 256"),
        (f"ann:{SECRET}ü", "the key is not 24 to 256"),
        (f"{SECRET}:ann", "keys:1: the key is not 24 to 256"),
        (f"ann:{SECRET}\nbob:{SECRET}", "keys:2: this key stands there twice"),
        (f"ann:{SECRET}\n" * 40_000, "larger than 1048576 bytes"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(OptionError) as problem:
        read_keys(written(tmp_path, text))
    assert words in str(problem.value)
    assert "s3cr3t" not in str(problem.value).replace(str(tmp_path), "")


@pytest.mark.hostile
def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such file"):
        read_keys(tmp_path / "none")
    with pytest.raises(OptionError, match="not a regular file"):
        read_keys(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match="not a regular file"):
        read_keys(tmp_path / "pipe")
