"""Whatever is typed, the answer is a sentence and an exit code: never a traceback, never silence."""

import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from PIL import Image

import fieldmark
from bundle import Bundle

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "bundle" / "golden"


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wide lines, so that no sentence is broken; and the process's own signals stay as they were."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("FIELDMARK_DEBUG", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Run:
    """One call of the command in this process: exit code and what a person sees."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        try:
            fieldmark.main([str(argument) for argument in arguments])
            self.code: Any = 0
        except SystemExit as ended:
            self.code = ended.code
        self.out, self.err = capsys.readouterr()
        assert "Traceback" not in self.out + self.err
        assert "bug in fieldmark" not in self.err


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that lead to it."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*words, name))
    else:
        yield words, command


def commands() -> dict[str, tuple[tuple[str, ...], Any]]:
    found = {}
    for verb, (module, _) in fieldmark.VERBS.items():
        root = typer.main.get_command(importlib.import_module(module).app)
        top = root.commands[verb] if hasattr(root, "commands") else root
        for words, command in leaves(top, (verb,)):
            found[" ".join(words)] = (words, command)
    return found


COMMANDS = commands()


def test_every_verb_has_a_command() -> None:
    assert {words[0] for words, _ in COMMANDS.values()} == set(fieldmark.VERBS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, _ = COMMANDS[name]
    run = Run(capsys, *words, "--help")
    assert (run.code, run.err) == (0, "")
    assert f"fieldmark {name}" in run.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_each_word_as_it_is_typed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 80 columns nothing is cut; a flag takes no value; RUN stands for what is to be given, without braces."""
    words, _ = COMMANDS[name]
    monkeypatch.setenv("COLUMNS", "80")
    said = Run(capsys, *words, "--help").out
    assert "…" not in said
    assert "bool" not in said
    assert re.search(rf"Usage: fieldmark {name} \[OPTIONS\][][A-Z|:. -]+$", said, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_texts_of_help_flow(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a line ends in the source is nothing that a wide terminal shows."""
    words, command = COMMANDS[name]
    said = Run(capsys, *words, "--help").out
    texts = [inspect.getdoc(inspect.unwrap(command.callback)) or "", *(each.help or "" for each in command.params)]
    for paragraph in (paragraph for text in texts for paragraph in text.split("\n\n")):
        assert " ".join(paragraph.split()) in said


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, command = COMMANDS[name]
    arguments = [str(GOLDEN) for each in command.params if each.param_type_name == "argument"]
    run = Run(capsys, *words, *arguments, "--no-such-flag")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: no such option: --no-such-flag. ")
    assert run.err.endswith(f"'fieldmark {name} --help' explains it.\n")
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, command = COMMANDS[name]
    required = [each for each in command.params if each.required]
    assert required, "a command that needs nothing would start working here"
    run = Run(capsys, *words)
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(("error: missing argument '", "error: missing option '--"))
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_too_many_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, command = COMMANDS[name]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    if any(each.nargs == -1 for each in arguments):
        pytest.skip("takes any number")
    options = [
        word for each in command.params if each.required and each not in arguments for word in (each.opts[0], "x")
    ]
    run = Run(capsys, *words, *options, *["x"] * len(arguments), "one-too-many")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ")
    assert "one-too-many" in run.err
    assert run.err.count("\n") == 1


def numbers() -> list[tuple[str, str]]:
    return [
        (name, option.opts[0])
        for name, (_, command) in COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option" and option.type_descriptor.annotation in (int, float)
    ]


def test_there_are_numbers_to_mistype() -> None:
    assert ("classify", "--top") in numbers()
    assert ("train", "--seed") in numbers() or ("data make", "--seed") in numbers()


@pytest.mark.parametrize(("name", "option"), numbers())
def test_text_where_a_number_belongs(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, command = COMMANDS[name]
    arguments = [str(GOLDEN) for each in command.params if each.param_type_name == "argument"]
    run = Run(capsys, *words, *arguments, option, "nonsense")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: invalid value for '")
    assert option in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["serv", "SERVE", "", "-x", "--nonsense", "../serve", "\x1b[2J", "[bold]"])
def test_an_unknown_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, verb)
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: unknown verb ")
    assert run.err.count("\n") == 1
    assert "\x1b" not in run.err
    for known in fieldmark.VERBS:
        assert known in run.err


@pytest.mark.parametrize("group", ["data", "bundle"])
def test_an_unknown_word_after_a_verb(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, group, "nonsense")
    assert (run.code, run.out) == (2, "")
    assert run.err == f"error: no such command 'nonsense'. 'fieldmark {group} --help' explains it.\n"


@pytest.mark.parametrize("group", ["data", "bundle", "roll"])
def test_a_verb_of_verbs_alone_shows_them(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, group)
    assert (run.code, run.err) == (2, "")
    assert f"Usage: fieldmark {group} [OPTIONS] COMMAND" in run.out
    assert "bool" not in run.out


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("help",)])
def test_help_names_every_verb(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, *arguments)
    assert (run.code, run.err) == (0, "")
    assert [line for line in run.out.splitlines() if line.endswith(" ")] == []
    for verb, (_, line) in fieldmark.VERBS.items():
        assert verb in run.out
        assert line in run.out


def test_the_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for flag in ("-V", "--version"):
        assert Run(capsys, flag).out == f"fieldmark {version}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "show", "{nowhere}"),
        ("train", "{nowhere}", "--out", "{tmp}/run"),
        ("attack", "{nowhere}", "--out", "{tmp}/attacked"),
        ("export", "{nowhere}", "--out", "{tmp}/bundle"),
        ("bundle", "show", "{nowhere}"),
        ("bundle", "verify", "{nowhere}"),
        ("serve", "{nowhere}"),
        ("gateway", "{nowhere}"),
        (
            "envoy",
            "h:1",
            "--out",
            "{tmp}/e.json",
            "--certificate",
            "{nowhere}",
            "--certificate-key",
            "x",
            "--keys",
            "x",
        ),
        ("score", "{nowhere}", "--bundle", "{golden}", "--out", "{tmp}/scores"),
        ("score", "{tmp}", "--bundle", "{nowhere}", "--out", "{tmp}/scores"),
        ("drift", "{nowhere}", "--bundle", "{golden}", "--plot", "{tmp}/drift.png"),
        ("drift", "{tmp}", "--bundle", "{nowhere}", "--plot", "{tmp}/drift.png"),
    ],
    ids=" ".join,
)
def test_a_path_that_does_not_exist(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "no such [thing]\n\x1b[31m"
    filled = [word.format(nowhere=nowhere, tmp=tmp_path, golden=GOLDEN) for word in arguments]
    run = Run(capsys, *filled)
    assert run.code in (1, 2)
    assert r"no such [thing]\n\x1b[31m" in run.err
    assert "\x1b[31m" not in run.err
    assert run.err.strip().count("\n") == 0, run.err
    assert list(tmp_path.iterdir()) == [], "and nothing was made"


# What may go wrong inside a verb, and how it is told


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`verb(function)` makes `fieldmark trial` call the function."""

    def make(body: Any) -> None:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.callback()(lambda: None)
        app.command("trial")(body)
        module = ModuleType("trial_room")
        module.app = app  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "trial_room", module)
        monkeypatch.setitem(fieldmark.VERBS, "trial", ("trial_room", ""))

    return make


def test_a_bug_names_its_place(verb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise ZeroDivisionError("one\nover [none]")

    verb(body)
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["trial"])
    error = capsys.readouterr().err
    assert ended.value.code == 70
    assert error.startswith(r"error: this is a bug in fieldmark: ZeroDivisionError: one\nover [none] (")
    assert "test_cli.py:" in error
    assert error.count("\n") == 1
    monkeypatch.setenv("FIELDMARK_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        fieldmark.main(["trial"])


def test_ctrl_c_is_heard(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda: os.kill(os.getpid(), signal.SIGINT))
    run = Run(capsys, "trial")
    assert (run.code, run.err) == (130, "stopped; nothing half-written was left behind\n")


def test_sigterm_runs_what_cleans_up(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def body() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    verb(body)
    run = Run(capsys, "trial")
    assert (run.code, run.err) == (143, "stopped; nothing half-written was left behind\n")
    assert cleaned == [True]


def test_sigterm_to_a_worker_process_cleans_nothing_up(verb: Any, tmp_path: Path) -> None:
    """What its parent has opened is not a forked worker's to remove."""

    def body() -> None:
        (tmp_path / "precious").touch()
        try:
            if (child := os.fork()) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
            assert (tmp_path / "precious").exists()
        finally:
            (tmp_path / "precious").unlink()

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    verb(body)
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["trial"])
    assert ended.value.code == 0


def test_a_verbs_own_exit_code_is_kept(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise typer.Exit(130)

    verb(body)
    run = Run(capsys, "trial")
    assert (run.code, run.err) == (130, "")


@pytest.mark.parametrize(("last", "code"), [("sys.exit(4)", 4), ("sys.exit()", 0), ("pass", 0)])
def test_a_process_ends_with_its_verb(last: str, code: int, tmp_path: Path) -> None:
    """Handlers run and output is whole, but the interpreter is not taken apart under threads that still need it."""
    verb = f"""
        import atexit, os, sys
        import typer

        class Kept:
            def __del__(self, say=os.write):
                say(2, b"taken apart")

        sys.kept = Kept()
        app = typer.Typer()
        app.callback()(lambda: None)

        @app.command()
        def kept() -> None:
            atexit.register(os.write, 2, b"handled")
            sys.stdout.write("no line")
            {last}
    """
    (tmp_path / "kept.py").write_text(textwrap.dedent(verb))
    begin = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]; import fieldmark; "
    begin += "fieldmark.VERBS['kept'] = ('kept', ''); sys.argv[1:] = ['kept']; fieldmark.command()"
    run = subprocess.run([sys.executable, "-c", begin], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (code, "no line", "handled")


def test_a_system_error_names_the_file(verb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda: (tmp_path / "gone").read_text())
    run = Run(capsys, "trial")
    assert (run.code, run.err) == (1, f"error: {tmp_path}/gone: No such file or directory\n")


@pytest.mark.parametrize(
    ("library", "arguments", "extra"),
    [
        ("torch", ("train", "x", "--out", "y"), "training"),
        ("pyarrow", ("score", "{photos}", "--bundle", "{toy}", "--out", "{tmp}/scores"), "scoring"),
        ("onnx", ("export", "x", "--out", "y"), "export"),
        ("grpc_health", ("gateway", "{toy}"), "gateway"),
        ("prometheus_client", ("gateway", "{toy}"), "gateway"),
        # Used only at the end of minutes of work, and yet missed at its beginning.
        ("onnxscript", ("export", "x", "--out", "y"), "export"),
    ],
)
def test_a_missing_extra_is_named(
    library: str, arguments: tuple[str, ...], extra: str, tmp_path: Path, toy_bundle: Bundle
) -> None:
    """As in an environment where it was never installed: the import itself fails."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
    words = [word.format(toy=toy_bundle.path, photos=tmp_path / "photos", tmp=tmp_path) for word in arguments]
    script = f"import sys; sys.modules[{library!r}] = None; import fieldmark; fieldmark.main({words!r})"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert run.returncode == 3, run.stderr
    assert run.stderr.startswith("error: ")
    assert f"pip install '.[{extra}]'" in run.stderr
    assert run.stderr.count("\n") == 1


def shell(line: str) -> subprocess.CompletedProcess[str]:
    command = f"set -o pipefail; fieldmark() {{ '{sys.executable}' -m fieldmark \"$@\"; }}; {line}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("fieldmark bundle show --json tests/bundle/golden | true", 1, ""),
        ("fieldmark bundle show --json tests/bundle/golden >/dev/full", 1, "error: No space left on device\n"),
        ("fieldmark --help >/dev/full", 1, "error: No space left on device\n"),
        ("fieldmark bundle show --json tests/bundle/golden >&-", 0, ""),
        ("fieldmark nonsense 2>&-", 2, ""),
        ("LC_ALL=C PYTHONIOENCODING=ascii fieldmark bundle show --json tests/bundle/golden >/dev/null", 0, ""),
    ],
)
def test_output_that_cannot_be_written(line: str, code: int, error: str) -> None:
    run = shell(line)
    assert (run.returncode, run.stderr) == (code, error)


def test_a_full_disk_behind_a_few_words(tmp_path: Path) -> None:
    """What fits into the buffer is written only at the end, after the verb has done its work."""
    script = """
import sys, types, typer, fieldmark
app = typer.Typer()
app.callback()(lambda: None)
app.command("trial")(lambda: sys.stdout.write("few words") and None)
sys.modules["trial_room"] = types.ModuleType("trial_room")
sys.modules["trial_room"].app = app
fieldmark.VERBS["trial"] = ("trial_room", "")
fieldmark.main(["trial"])
"""
    with open("/dev/full", "w") as full:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        run = subprocess.run(
            [sys.executable, "-c", script],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
            env=environment,
        )
    assert (run.returncode, run.stderr) == (1, "error: No space left on device\n")
