"""`fieldmark score`, `flags` and `drift`, from files of their own."""

from bundle.verbs import App
from scoring.drift.cli import drift
from scoring.flags_cli import flags
from scoring.score_cli import score

app = App()
app.command()(score)
app.command()(flags)
app.command()(drift)
