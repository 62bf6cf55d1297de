"""What a person reads of names that others chose: text, whatever brackets and control characters they hold."""

from rich.console import Console

from bundle.errors import printable


def say(console: Console, text: str) -> None:
    """Print lines in which names stand: neither markup nor control characters, and no breaks but those in `text`."""
    for line in text.split("\n"):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
