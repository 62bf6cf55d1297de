"""The published protocol: it is linted, it never breaks a caller, and what it generates is what is committed."""

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.gateway.generate import FILES, GENERATED, PROTO, SOURCE, generate

BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], capture_output=True, text=True, timeout=60, check=False)


def changed(folder: Path, before: str, after: str) -> Path:
    """A copy of the proto in which one text is another."""
    copy = folder / "proto"
    shutil.copytree(PROTO, copy)
    text = (copy / SOURCE).read_text()
    assert before in text
    (copy / SOURCE).write_text(text.replace(before, after, 1))
    return copy


def test_the_proto_is_clean() -> None:
    run = buf("lint", PROTO)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_linter_sees_a_fault(tmp_path: Path) -> None:
    assert "top_k" in buf("lint", changed(tmp_path, "uint32 top_k", "uint32 topK")).stdout


def test_no_caller_of_the_published_proto_breaks() -> None:
    run = buf("breaking", PROTO, "--against", PROTO / "baseline.binpb")
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("float p_value = 2;", "double p_value = 2;"),
        ("string bundle_id = 5;", "string bundle = 5;"),
        ("  // Whether to send the pictures behind the answer as well.\n  bool explain = 5;\n", ""),
        ("rpc Describe(", "rpc Explain("),
    ],
)
def test_a_breaking_change_is_seen(tmp_path: Path, before: str, after: str) -> None:
    assert buf("breaking", changed(tmp_path, before, after), "--against", PROTO / "baseline.binpb").returncode == 100


def test_an_addition_breaks_nobody(tmp_path: Path) -> None:
    added = changed(tmp_path, "  bool explain = 5;\n", "  bool explain = 5;\n  // A note.\n  string note = 6;\n")
    assert buf("breaking", added, "--against", PROTO / "baseline.binpb").returncode == 0


def test_the_generated_code_is_what_the_proto_makes(tmp_path: Path) -> None:
    generate(tmp_path)
    assert filecmp.cmpfiles(tmp_path, GENERATED, FILES, shallow=False) == (list(FILES), [], [])
