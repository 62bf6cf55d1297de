"""The walls: who may import whom, seen twice: in what a fresh interpreter has loaded, and in the source itself.

The first sees what comes in through other modules, the second what hides inside functions.
"""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.walls

ROOT = Path(__file__).parent.parent
TORCH = {"torch", "torchvision", "lightning_fabric", "lightning"}
FITTING = {"sklearn", "scipy"}
GRAPHS = {"onnx", "onnxscript", "onnx_ir", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}
CALLS = {"grpc", "tritonclient", "pytriton", "onnxruntime", "pyarrow"}
DRAWING = {"matplotlib"}
ENGINES = {"ray", "deltalake", "fsspec", "duckdb", "polars", "boto3", "botocore"}


@dataclass(frozen=True)
class Wall:
    """`rooms` may be imported; `never` not even inside a function; `not_at_import` only inside a function."""

    rooms: set[str] = field(default_factory=set)
    never: set[str] = field(default_factory=set)
    not_at_import: set[str] = field(default_factory=set)


WALLS = {
    "bundle": Wall(never=TORCH | FITTING | GRAPHS | CALLS | DRAWING, not_at_import=ENGINES | {"aiohttp"}),
    "detector": Wall(rooms={"bundle"}, never=TORCH | FITTING | GRAPHS | CALLS | DRAWING),
    "training": Wall(rooms={"bundle"}, never=CALLS - {"pyarrow"} | GRAPHS, not_at_import={"pyarrow"}),
    "robustness": Wall(rooms={"bundle", "detector", "training"}, never=CALLS | GRAPHS, not_at_import=DRAWING),
    "export": Wall(
        rooms={"bundle", "detector", "training", "robustness"}, never={"grpc", "tritonclient", "pytriton", "pyarrow"}
    ),
    "serving": Wall(rooms={"bundle"}, never=TORCH | FITTING | GRAPHS, not_at_import=DRAWING),
    "calibration": Wall(
        rooms={"bundle", "detector", "serving", "scoring", "review"},
        never=TORCH | FITTING | GRAPHS | DRAWING,
        not_at_import=CALLS | ENGINES,
    ),
    "scoring": Wall(
        rooms={"bundle", "serving"},
        never=TORCH | GRAPHS | {"sklearn", "grpc", "tritonclient", "pytriton"},
        not_at_import=DRAWING | ENGINES | {"scipy", "pyarrow", "onnxruntime"},
    ),
    "review": Wall(
        rooms={"bundle", "serving", "scoring"},
        never=TORCH | GRAPHS | {"sklearn", "grpc", "tritonclient", "pytriton"},
        not_at_import=DRAWING | ENGINES | {"scipy", "pyarrow", "onnxruntime"},
    ),
    "fieldmark": Wall(rooms={"bundle"}, never=TORCH | FITTING | GRAPHS | CALLS | DRAWING),
    # The whole job by the public verbs, each in a process of its own: here are only the clients of what they start.
    "demo": Wall(
        rooms={"bundle", "serving", "scoring", "robustness", "fieldmark"},
        never=TORCH | FITTING | GRAPHS | ENGINES | {"pytriton", "onnxruntime", "pyarrow"},
        not_at_import=DRAWING,
    ),
    "benchmarks": Wall(
        rooms={
            "bundle", "detector", "training", "robustness", "export", "serving", "scoring", "calibration", "review",
            "fieldmark", "demo",
        },
        never={"pytriton"},
        not_at_import=DRAWING | ENGINES | {"pyarrow", "onnxruntime"},
    ),
}  # fmt: skip
NOT_INSTALLED = {"demo", "benchmarks"}  # they belong to the repository

DEFINITIONS = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
)  # fmt: skip
FREE = {"warnings.filterwarnings"}  # Pillow would warn of what our own limits refuse, whoever opens an image first

# Imports every module of a room and prints, as JSON, the top-level names that are loaded then.
PROBE = """
import importlib, json, pathlib, sys, types
root, room = sys.argv[1:]
sys.path.insert(0, root)
# Triton's Python backend exists only inside its own process; an empty stand-in lets the adapter be imported.
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
files = sorted((pathlib.Path(root) / room).rglob("*.py")) or [pathlib.Path(root) / (room + ".py")]
for file in files:
    parts = list(file.relative_to(root).with_suffix("").parts)
    if parts[-1] != "__main__":
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded(root: Path, room: str, python: Path = Path(sys.executable)) -> set[str]:
    """Top-level names in sys.modules after every module of `room` was imported; an import may print nothing."""
    command = [python, "-P", "-c", PROBE, root, room]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert run.stdout.count("\n") == 1, f"an import of {room} printed: {run.stdout}"
    return set(json.loads(run.stdout))


def sources(root: Path, room: str) -> Iterator[Path]:
    yield from sorted((root / room).rglob("*.py")) or [root / f"{room}.py"]


def imported(file: Path) -> set[str]:
    """Top-level names of every import statement of a file, wherever it stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(f".{node.module or ''}" if node.level else node.module or "")
    return {name.partition(".")[0] or name for name in names}


def breaches(root: Path, room: str) -> list[str]:
    """Everything that a room does against its wall, one sentence each."""
    wall = WALLS[room]
    strangers = (set(WALLS) | {"tests"}) - wall.rooms - {room}
    found = [f"{room} loads {name}" for name in loaded(root, room) & (strangers | wall.never | wall.not_at_import)]
    for file in sources(root, room):
        where = file.relative_to(root)
        for name in imported(file):
            if name in strangers | wall.never:
                found.append(f"{where} imports {name}")
            if name.startswith("."):
                found.append(f"{where} imports relatively; the folder path is the import path")
    return found


def works_at_import(root: Path, room: str) -> list[str]:
    """Statements that do something when a file is imported, beyond definitions: an import has to be free."""
    found = []
    for file in sources(root, room):
        if file.parent.name == "generated":  # by protoc
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func)
                free = called.startswith(("app.add_typer", "app.command(")) or called in FREE
            elif isinstance(node, ast.If):
                free = ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
            elif isinstance(node, ast.Try):
                free = all(isinstance(each, ast.Import | ast.ImportFrom) for each in node.body)
            else:
                free = isinstance(node, DEFINITIONS) or (
                    isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                )
            if not free:
                found.append(f"{file.relative_to(root)} does something when it is imported: {ast.unparse(node)[:60]}")
    return found


def shadows(root: Path, room: str) -> list[str]:
    """Files named like something that is imported in their room: run as a script, they would stand in front of it."""
    files = list(sources(root, room))
    names = set().union(*(imported(file) for file in files)) - set(WALLS)
    return [str(file.relative_to(root)) for file in files if file.stem in names]


def test_every_folder_of_a_room_is_a_package() -> None:
    """A folder without `__init__.py` would be imported here by accident and be missing elsewhere."""
    folders = {file.parent for room in set(WALLS) - {"fieldmark"} for file in sources(ROOT, room)}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_room_has_a_wall() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    installed = set(WALLS) - NOT_INSTALLED
    assert set(build["only-include"]) == {room if room != "fieldmark" else "fieldmark.py" for room in installed}
    assert set(build["packages"]) == installed - {"fieldmark"}


@pytest.mark.parametrize("room", WALLS)
def test_room_keeps_its_wall(room: str) -> None:
    assert breaches(ROOT, room) == []


@pytest.mark.parametrize("room", WALLS)
def test_no_room_works_at_import(room: str) -> None:
    assert works_at_import(ROOT, room) == []


@pytest.mark.parametrize("room", ["serving", "scoring", "calibration", "review"])
def test_what_is_served_is_a_network(room: str) -> None:
    """`docs/decisions/024-head-and-network.md`: a head is a part of a network in training, and known there alone."""
    said = re.compile(r"\bheads\b|\bclass Head|\b(full|attention) head\b")
    assert [str(file) for file in sources(ROOT, room) if said.search(file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("room", ["bundle", "serving", "scoring", "fieldmark"])
def test_room_lives_in_the_server_environment(room: str) -> None:
    """There is no PyTorch to load there, and numpy is older than 2."""
    python = ROOT / ".venv-triton" / "bin" / "python"
    if not python.exists():
        pytest.skip("the server environment is not there; 'make setup' makes it")
    assert "numpy" in loaded(ROOT, room, python)


@pytest.mark.parametrize("room", WALLS)
def test_no_file_shadows_a_library(room: str) -> None:
    assert shadows(ROOT, room) == []


@pytest.mark.parametrize("room", WALLS)
def test_no_installed_package_has_a_rooms_name(room: str) -> None:
    assert set(importlib.metadata.packages_distributions().get(room, [])) <= {"fieldmark"}


# The walls can fall: each fault below, built into a small tree of its own, is seen.


def build(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (path.parent, *path.parent.parents):
            if folder == root:
                break
            (folder / "__init__.py").touch()
        path.write_text(text)


def test_a_clean_tree_has_no_breach(tmp_path: Path) -> None:
    build(tmp_path, bundle__noun="import json", serving__server="from bundle import noun", export__graph="import onnx")
    assert breaches(tmp_path, "serving") + breaches(tmp_path, "bundle") + breaches(tmp_path, "export") == []


@pytest.mark.parametrize(
    ("files", "breach"),
    [
        ({"serving__bad": "import sklearn"}, "serving loads sklearn"),
        ({"serving__bad": "def late():\n    from torch import nn"}, "serving/bad.py imports torch"),
        ({"serving__bad": "import training.fit", "training__fit": ""}, "serving loads training"),
        ({"serving__bad": "import bundle.noun", "bundle__noun": "import sklearn"}, "serving loads sklearn"),
        ({"serving__deep__bad": "import matplotlib"}, "serving loads matplotlib"),
        ({"serving__bad": "def late():\n    import demo.report"}, "serving/bad.py imports demo"),
        ({"serving__a": "", "serving__b": "def late():\n    from . import a"}, "serving/b.py imports relatively"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, files: dict[str, str], breach: str) -> None:
    build(tmp_path, **files)
    assert any(found.startswith(breach) for found in breaches(tmp_path, "serving")), breach


def test_a_chatty_import_is_seen(tmp_path: Path) -> None:
    build(tmp_path, bundle__noisy="print('hello')")
    with pytest.raises(AssertionError, match="hello"):
        loaded(tmp_path, "bundle")


@pytest.mark.parametrize(
    "line", ["print('hello')", "for each in ():\n    pass", "torch.set_num_threads(1)", "if len('a'):\n    x = 1"]
)
def test_work_at_import_is_seen(tmp_path: Path, line: str) -> None:
    build(tmp_path, benchmarks__busy=line, benchmarks__fine="import json\nX = 1\n\ndef f():\n    print(X)")
    (found,) = works_at_import(tmp_path, "benchmarks")
    assert found.startswith("benchmarks/busy.py does something when it is imported")


def test_nobody_imports_the_demo_or_a_benchmark(tmp_path: Path) -> None:
    build(tmp_path, scoring__bad="def late():\n    from benchmarks.gateway.load import poisson", benchmarks__load="")
    build(tmp_path, demo__bad="import benchmarks.load")
    assert breaches(tmp_path, "scoring") == ["scoring/bad.py imports benchmarks"]
    assert breaches(tmp_path, "demo") == ["demo loads benchmarks", "demo/bad.py imports benchmarks"]


def test_a_shadow_is_seen(tmp_path: Path) -> None:
    build(tmp_path, export__onnx="", export__graph="def late():\n    import onnx.helper", export__cli="import typer")
    assert shadows(tmp_path, "export") == ["export/onnx.py"]
