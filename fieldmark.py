"""The one command: `fieldmark VERB`. Each verb lives in its room's `cli.py` and is imported only when it is called."""

import atexit
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bundle.console import lay_out
from bundle.errors import FieldmarkError, Interrupted, MissingExtra, OptionError, Terminated, printable

# verb -> (module whose `app` is a Typer application with a command of that name, one line of help)
VERBS: dict[str, tuple[str, str]] = {
    "data": ("training.data.cli", "Draw the built-in set of birds; look at any dataset, or check it."),
    "train": ("training.cli", "Train a robust classifier on a dataset."),
    "evaluate": (
        "robustness.cli",
        "Measure a trained classifier under attack, and how well attacks that came as files are told.",
    ),
    "attack": ("training.cli", "Attack a trained classifier; write the attacked images as 8-bit files."),
    "export": ("export.cli", "Turn a training run into a bundle: ONNX graphs with preprocessing and detector inside."),
    "calibrate": ("calibration.cli", "Count a bundle's p-values from clean images of your own."),
    "engine": ("export.engines.cli", "Compile a bundle's graphs for GPUs: TensorRT or TensorRT for RTX engines."),
    "bundle": ("bundle.cli", "Show, verify or sign a bundle."),
    "serve": ("serving.upkeep.cli", "Serve a bundle: a real Triton and fieldmark.v1, kept up."),
    "roll": ("serving.upkeep.roll_cli", "Move a running service to another bundle, or back."),
    "gateway": ("serving.gateway.cli", "Answer image bytes over gRPC, fieldmark.v1, before a Triton."),
    "envoy": ("serving.envoy.cli", "Write the configuration of an Envoy before a gateway or a review console."),
    "repository": ("serving.triton.cli", "Write a Triton model repository: roll a bundle out, or back."),
    "classify": ("serving.client.cli", "Classify images over gRPC, each with its adversarial p-value."),
    "score": ("scoring.cli", "Score images into Parquet shards, or a bucket of them into a Delta table."),
    "flags": ("scoring.cli", "List what looks tampered with in a table of scores, at a false discovery rate."),
    "drift": ("scoring.cli", "Compare scored images with clean data: an attack, a broken camera?"),
    "review": ("review.cli", "Look at what was flagged, decide, and make the next calibration better."),
}
# library -> the extra that brings it; the base install has none of them
EXTRAS: dict[str, str] = {
    "torch": "training",
    "torchvision": "training",
    "lightning_fabric": "training",
    "pytorch_metric_learning": "training",
    "tensorboard": "training",
    "pyautoattack": "attacks",
    "imagehash": "training",
    "sklearn": "training",
    "scipy": "training",
    "jinja2": "training",
    "starlette": "review",
    "uvicorn": "review",
    "onnx": "export",
    "onnxscript": "export",
    "tensorrt": "gpu",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
    "onnxruntime": "scoring",
    "pyarrow": "scoring",
    "deltalake": "scoring",
    "fsspec": "scoring",
    "ray": "cluster",
    "matplotlib": "figures",
    "grpc_health": "gateway",
    "grpc_reflection": "gateway",
    "prometheus_client": "gateway",
    "envoy": "envoy",
    "cryptography": "signing",
}
VERSION = "0.1.0"


def command() -> None:
    """What the shell runs: one verb."""
    as_process(main)


def as_process(action: Callable[[], object]) -> None:
    """Do something, and end the process with it, without taking the interpreter apart.

    Threads of pyarrow drop what they have read a little later than they hand it over, and one that needs the
    interpreter while it is taken apart aborts the process: a finished job would end with 134 instead of its exit code.
    """
    code: int | str | None = None

    def leave() -> None:  # the last of all handlers, since it is the first that is there
        if isinstance(code, int):
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            except OSError:
                return  # the interpreter has its own way of saying so
            os._exit(code)

    atexit.register(leave)
    try:
        action()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
        raise


def main(arguments: list[str] | None = None) -> None:
    """Run one verb."""
    guarded(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def guarded(action: Callable[[], object]) -> None:
    """Do something for a person: every failure ends in one sentence on stderr and a non-zero exit code."""
    # ONNX Runtime reports its use to its makers over the internet unless this is set before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    _prepare_streams()
    _clean_up_on_sigterm()
    try:
        action()
        sys.stdout.flush()  # a full disk behind `>` shows itself here, where it can still be told
    except FieldmarkError as problem:
        asked = isinstance(problem, Interrupted) and os.environ.get("FIELDMARK_NEXT") == "no"
        _fail(problem.what if asked else str(problem), problem.exit_code)  # who started us says how to go on
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        _drop_output()
        sys.exit(1)
    except OSError as problem:
        _drop_output()
        _fail((f"{problem.filename}: " if problem.filename else "") + (problem.strerror or str(problem)), 1)
    except (KeyboardInterrupt, Terminated) as stop:
        Console(stderr=True).print("stopped; nothing half-written was left behind")
        sys.exit(stop.code if isinstance(stop, Terminated) else 130)
    except Exception as problem:
        if os.environ.get("FIELDMARK_DEBUG"):
            raise
        place = traceback.extract_tb(problem.__traceback__)[-1]
        _fail(
            f"this is a bug in fieldmark: {type(problem).__name__}: {problem} ({place.filename}:{place.lineno}). "
            "Run it with FIELDMARK_DEBUG=1 and report what it prints.",
            70,
        )


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"fieldmark {VERSION}\n")
        return
    if arguments[0] not in VERBS:
        raise OptionError(f"unknown verb {arguments[0]!r}", hint=f"Verbs: {', '.join(VERBS)}.")
    try:
        importlib.import_module(VERBS[arguments[0]][0]).app(args=arguments, prog_name="fieldmark")
    except SystemExit as ended:
        # Typer turns Ctrl-C into a silent exit; we say that it has been heard.
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            raise KeyboardInterrupt from None
        sys.stdout.flush()
        raise
    except ModuleNotFoundError as problem:
        room = VERBS[arguments[0]][0].partition(".")[0]
        if (problem.name or "").partition(".")[0] == room:  # the images hold what serves, and no more
            raise OptionError(
                f"'fieldmark {arguments[0]}' is not installed here", hint=f"A whole installation has it, in {room}/."
            ) from None
        if extra := EXTRAS.get((problem.name or "").partition(".")[0]):
            raise MissingExtra.named(extra, f"fieldmark {arguments[0]}", problem) from None
        raise


def _fail(sentence: str, code: int) -> NoReturn:
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    errors.print(f"[bold red]error:[/] {escape(printable(sentence))}")
    sys.exit(code)


def _prepare_streams() -> None:
    if sys.stdout is None:  # `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold bytes that no encoding knows
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is still buffered and cannot be written: let nobody try again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _clean_up_on_sigterm() -> None:
    """Leave through every `finally` when a supervisor stops us, as on Ctrl-C; a verb may take the signal over."""
    owner = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker process of ours owns nothing to clean up
            os._exit(128 + number)
        raise Terminated(128 + number)

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, stop)


def _print_help() -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for verb, (_, line) in VERBS.items():
        table.add_row(f"[bold cyan]{verb}[/]", line)
    lay_out(
        Console(highlight=False),
        "Fine-grained image recognition that stays right under attack, and says when it is being attacked.\n",
        "[bold]usage:[/] fieldmark VERB [OPTIONS]    (fieldmark VERB --help explains one)\n",
        table,
    )


if __name__ == "__main__":
    command()
