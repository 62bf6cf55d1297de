"""Where a real Triton is on this machine: the Python environment that holds the nvidia-pytriton wheel.

The wheel's Python stub works only with numpy < 2, so this is usually an environment of its own, beside the one that
fieldmark runs in. It is asked in a process of its own, so that nothing of it is imported here.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import ServerError

VARIABLE = "FIELDMARK_TRITON_PYTHON"
SIBLING = ".venv-triton"
ASK_SECONDS = 60
_MAKE = f"Make one with 'make setup', or with pip install '.[server]' in an environment named {SIBLING}"

_QUESTIONS = """
import importlib.metadata, importlib.util, json, os, sys, sysconfig
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return ""
spec = importlib.util.find_spec("pytriton")
library = sysconfig.get_config_var("INSTSONAME") or ""
# A Python that was moved after it was built still names the folder it was built for.
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
print(json.dumps({
    "wheel": list(spec.submodule_search_locations)[0] if spec else "",
    "packages": [path for path in sys.path if path and os.path.isdir(path)],
    "python": "%d.%d" % sys.version_info[:2],
    "library": library,
    "library_folder": next((each for each in folders if os.path.exists(os.path.join(each, library))), ""),
    "numpy": version("numpy"),
    "onnxruntime": version("onnxruntime") or version("onnxruntime-gpu"),
}))
"""


@dataclass(frozen=True, kw_only=True)
class TritonEnvironment:
    """A Python that can run Triton's Python backend, and the wheel's folders in it."""

    python: Path
    wheel: Path
    libraries: Path
    stub: Path
    packages: tuple[str, ...]
    library_folder: str
    onnxruntime: str  # its version

    @property
    def binary(self) -> Path:
        return self.wheel / "tritonserver" / "bin" / "tritonserver"

    @property
    def backend(self) -> Path:
        return self.wheel / "tritonserver" / "backends" / "python"

    def variables(self) -> dict[str, str]:
        """Environment variables for tritonserver: its own libraries, and for the stub this Python and its packages."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        folders = [str(self.libraries), self.library_folder, variables.get("LD_LIBRARY_PATH", "")]
        return variables | {
            "LD_LIBRARY_PATH": ":".join(folder for folder in folders if folder),
            "PATH": f"{self.python.parent}:{variables.get('PATH', os.defpath)}",
            "PYTHONPATH": ":".join(self.packages),
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def find_environment(python: Path | None = None) -> TritonEnvironment:
    """The server environment: `python`, else $FIELDMARK_TRITON_PYTHON, else this Python, else its .venv-triton."""
    if python is not None:
        return inspect_environment(python)
    if named := os.environ.get(VARIABLE):
        return inspect_environment(Path(named))
    if importlib.util.find_spec("pytriton") is not None:
        return inspect_environment(Path(sys.executable))
    sibling = Path(sys.prefix).parent / SIBLING / "bin" / "python"
    if sibling.exists():
        return inspect_environment(sibling)
    raise ServerError(
        f"there is no Triton here: neither this Python nor {sibling} holds the nvidia-pytriton wheel",
        hint=f"{_MAKE}, or name its Python with --triton-python or {VARIABLE}.",
    )


def inspect_environment(python: Path) -> TritonEnvironment:
    """Ask one Python what it holds; raises ServerError that says what is missing there."""
    try:
        answer = subprocess.run(
            [python, "-c", _QUESTIONS], capture_output=True, text=True, timeout=ASK_SECONDS, env=_clean(), check=True
        )
        found = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else type(problem).__name__
        raise ServerError(f"{python} is not a Python that runs ({reason})", hint=f"{_MAKE}.") from None
    if not found["wheel"]:
        raise ServerError(f"{python} does not hold the nvidia-pytriton wheel", hint=f"{_MAKE}.")
    if not found["onnxruntime"]:
        raise ServerError(f"{python} holds no onnxruntime, which runs the networks", hint=f"{_MAKE}.")
    if not found["numpy"] or int(found["numpy"].split(".")[0]) >= 2:
        raise ServerError(
            f"{python} holds numpy {found['numpy'] or '(none)'}, and Triton's Python stub needs numpy below 2",
            hint="It would answer garbage. Use an environment of its own for the server: make setup",
        )
    wheel = Path(found["wheel"])
    stub = wheel / "tritonserver" / "python_backend_stubs" / found["python"] / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(f"the wheel in {python} has no stub for Python {found['python']}", hint=f"{_MAKE}.")
    if not found["library"].startswith(f"libpython{found['python']}.so"):
        raise ServerError(
            f"{python} was built without a shared library (libpython{found['python']}.so), which Triton's stub needs",
            hint="Make the server environment with a Python that has one, such as the system's or uv's.",
        )
    return TritonEnvironment(
        python=python.absolute(),
        wheel=wheel,
        libraries=wheel.parent / "nvidia_pytriton.libs",
        stub=stub,
        packages=tuple(found["packages"]),
        library_folder=found["library_folder"],
        onnxruntime=found["onnxruntime"],
    )


def _clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
