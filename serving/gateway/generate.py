"""Makes `generated/` from the proto: `python -m serving.gateway.generate`. A test makes it again and compares."""

import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from bundle.errors import MissingExtra, ServerError

HERE = Path(__file__).parent
PROTO = HERE / "proto"
SOURCE = "fieldmark/v1/fieldmark.proto"
GENERATED = HERE / "generated"
FILES = ("fieldmark_pb2.py", "fieldmark_pb2.pyi", "fieldmark_pb2_grpc.py")


def generate(folder: Path) -> None:
    """Write the three generated files into `folder`; raises ServerError when the compiler refuses the proto."""
    try:
        from grpc_tools import protoc
    except ImportError as problem:
        raise MissingExtra.named("dev", "serving.gateway.generate", problem) from None

    well_known = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as made:
        outputs = [f"--{kind}={made}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
        if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", *outputs, SOURCE]) != 0:
            raise ServerError(f"{SOURCE} cannot be compiled", hint="The compiler has said why.")
        made_here = Path(made) / Path(SOURCE).parent
        for file in FILES:
            shutil.copyfile(made_here / file, folder / file)
    # A package named `fieldmark` would hide the command's own module, so the code lives in this room instead.
    stub = folder / "fieldmark_pb2_grpc.py"
    stub.write_text(stub.read_text().replace("from fieldmark.v1 import", "from serving.gateway.generated import"))


if __name__ == "__main__":
    generate(GENERATED)
    sys.exit(0)
