"""`fieldmark score`, `flags` and `drift`, from files of their own."""

import typer

from scoring.drift.cli import drift
from scoring.flags_cli import flags
from scoring.score_cli import score

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(score)
app.command()(flags)
app.command()(drift)
