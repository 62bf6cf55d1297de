"""What all verbs have in common: how their help reads, and how a wrong command line is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from bundle.errors import OptionError

Function = TypeVar("Function", bound=Callable[..., Any])


class Verb(TyperCommand):
    """A verb: flags that show no type, arguments in capitals, texts that flow, and one sentence for what is wrong."""

    def __init__(self, name: str | None, *, help: str | None = None, **settings: Any) -> None:
        super().__init__(name, help=_flowing(help), **settings)

    def get_params(self, ctx: Any) -> list[Any]:
        """Options and arguments, as the help shows them."""
        return _shown(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line: RUN where Typer writes {RUN}."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        return [self.options_metavar or "", *map(_usage, arguments)]

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Read the command line; raises OptionError."""
        with _one_sentence():
            return super().make_context(*arguments, **settings)


class Group(TyperGroup):
    """Verbs under one word: the same."""

    def __init__(self, *, help: str | None = None, **settings: Any) -> None:
        super().__init__(help=_flowing(help), **settings)

    def get_params(self, ctx: Any) -> list[Any]:
        """Options, as the help shows them."""
        return _shown(super().get_params(ctx))

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Read the command line; raises OptionError."""
        with _one_sentence():
            return super().make_context(*arguments, **settings)

    def resolve_command(self, *arguments: Any) -> Any:
        """The verb that is meant; raises OptionError."""
        with _one_sentence():
            return super().resolve_command(*arguments)


class App(typer.Typer):
    """A room's application: what is registered with it becomes a `Verb`, or a `Group` of them."""

    def __init__(self, **settings: Any) -> None:
        ours = {"cls": Group, "no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
        super().__init__(**{**ours, **settings})

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any
    ) -> Callable[[Function], Function]:
        """Register a function as a verb."""
        return super().command(name, cls=cls or Verb, **settings)


def _flowing(text: str | None) -> str | None:
    """Paragraphs without the ends of their lines, which belong to the source file."""
    return text and "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _shown(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if isinstance(each, TyperOption) and each.is_flag:
            each.metavar = ""  # it takes no value; Typer would show <bool>
        elif isinstance(each, TyperArgument) and each.metavar is None:
            each.metavar = each.name.upper() + "..." * (each.nargs != 1)
    return parameters


def _usage(argument: TyperArgument) -> str:
    name = argument.metavar or ""
    return name if argument.required or name.startswith("[") else f"[{name}]"


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Typer draws a box around what is wrong with a command line; we tell it as every other mistake."""
    try:
        yield
    except typer.TyperException as problem:
        sentence, context = problem.format_message(), getattr(problem, "ctx", None)
        if not sentence:  # nothing was given, and the help has been shown
            raise
        hint = "" if context is None else f"'{context.command_path} --help' explains it."
        raise OptionError(sentence[0].lower() + sentence[1:], hint=hint) from None
