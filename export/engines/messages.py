"""What a runtime says while it builds: nothing is printed, and what matters goes into our sentences."""

import re
from typing import Any


class Messages:
    """What a runtime has said since `clear`, as far as it is worth keeping."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.errors: list[str] = []
        self.layers = ""

    def add(self, text: str, *, is_error: bool) -> None:
        if is_error:
            self.errors.append(text)
        elif text.startswith("Layers:"):
            self.layers = text

    def error(self) -> str:
        """The first complaint in one line; what follows it is the runtime's own unwinding."""
        return plain(self.errors[0]) if self.errors else "it does not say why"


def plain(text: str) -> str:
    """A runtime's complaint in one line, without places in its source and without the GPU that it missed meanwhile."""
    lines = [line for line in text.splitlines() if "cudaError" not in line]
    words = " ".join(" ".join(lines or [text]).split())
    for noise in (
        r"\(?\bIn \w+ at \S+:\d+\)?",
        r"\[\w+\.\w+:\d+: \w+\] ?",
        r"\b\w+::\w+: Error Code \d+: ",
        r"\bMyelin \(",
    ):
        words = re.sub(noise, "", words)
    return words.strip(" .")[:400]


def logger(trt: Any, messages: Messages) -> Any:
    """A logger for the runtime's module `trt` that keeps what it hears in `messages`."""
    errors = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Logger(trt.ILogger):
        """Nothing is printed: what matters goes into our sentences."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.add(text, is_error=severity in errors)

    return Logger()


def refusal(parser: Any) -> str:
    """Why a graph was refused, from the parser's first error: node, operator, reason."""
    if not parser.num_errors:
        return "it does not say why"
    error = parser.get_error(0)
    reason = plain(str(error.desc()))
    if reason in ("", "false"):  # the condition of a check that failed, and no word about it
        reason = error.code().name.lower().replace("_", " ")
    if not error.node_operator():
        return reason
    return f"node {error.node_name() or error.node()} of type {error.node_operator()}: {reason}"
