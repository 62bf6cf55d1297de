"""`fieldmark score`: what the analyst sees of a scoring job."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bundle import tensors
from bundle.console import say
from bundle.errors import OptionError
from bundle.folder import Bundle

if TYPE_CHECKING:
    from scoring.local.score import ScoreOptions
    from scoring.table.job import Crew

SOME_FAILED = 4  # 1 to 3 are errors: see bundle/errors.py


def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images (recursive), or a text file with a path a line and nothing else: no comments, no "
            "quotes; a relative path starts at the file's own folder. With --table also a prefix of a bucket (s3://, "
            "gs://, az://), a CSV or Parquet catalogue with the columns id and path, and URLs in lists.",
        ),
    ],
    bundle: Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="The bundle to score with.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the Parquet shards.")] = None,
    table: Annotated[
        str | None,
        typer.Option("--table", metavar="TABLE", help="A Delta table instead: a folder, or a URL of a bucket."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="Score on a Ray cluster, into --table: local for workers on this machine, auto, HOST:PORT, or "
            "ray://HOST:PORT.",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", help="full or attention; else the one that the bundle names.", show_default=False),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="HOST:PORT", help="Ask this Triton instead of ONNX Runtime in this process."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Images a call.")] = 64,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", help="Files a shard, or a data file of a table; a stop costs at most one.")
    ] = 4096,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="False-positive rate of is_adversarial, instead of the bundle's.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Threads that decode, one a core; with --cluster workers, one a --threads."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            help="Cores that infer: all here, 1 in a worker of a cluster. Last digits may differ with it.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away the scores in --out and begin anew.")] = False,
    another_bundle: Annotated[
        bool,
        typer.Option(
            "--another-bundle", help="Score everything again in a --table that another bundle has scored before."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON summary.")] = False,
) -> None:
    """Score images into Parquet shards, or into a Delta table. Run the same command again after a stop: it continues;
    after the end: it scores what is new or has changed. What is gone loses its row in --out, and gets one that says so
    in --table.

    Ends with 4 when some files could not be scored, with 1 when none could.
    """
    _check_together(out, table, cluster)
    _check_kind(table, cluster, url, restart, another_bundle)
    if threads is not None and threads < 1:
        raise OptionError(f"--threads {threads} is not at least 1")
    from scoring.local.cli import safe
    from scoring.local.score import AGAIN, ScoreOptions

    options = ScoreOptions(
        network=network or tensors.FULL,
        alpha=alpha,
        batch=batch,
        shard_rows=shard_rows,
        workers=workers,
        restart=restart,
    )
    try:
        opened = Bundle.open(bundle)
        if network is None:
            options = replace(options, network=opened.manifest.main_network)
        if table is None:
            rows, errors = _into_shards(source, opened, out or Path(), options, url, threads, json)
        else:
            crew = _crew(opened, url, cluster, workers, threads)
            rows, errors = _into_table(source, opened, table, options, crew, another_bundle, json)
    except KeyboardInterrupt as stop:
        half = safe(out) if out is not None else "data files that are finished are safe; "
        say(Console(stderr=True), f"stopped; {half}{AGAIN}.")
        raise typer.Exit(128 + (stop.args[0] if stop.args else signal.SIGINT)) from None
    if errors:
        raise typer.Exit(1 if errors == rows else SOME_FAILED)


def _check_together(out: Path | None, table: str | None, cluster: str | None) -> None:
    """Raise OptionError where it is not clear what is to be written, or by whom."""
    if (out is None) == (table is None):
        raise OptionError(
            "give either --out DIR or --table TABLE", hint="--out writes Parquet shards, --table a Delta table."
        )
    if cluster is not None and table is None:
        raise OptionError("--cluster needs --table", hint="A cluster writes a table; --out is written by one process.")


def _check_kind(table: str | None, cluster: str | None, url: str | None, restart: bool, another_bundle: bool) -> None:
    """Raise OptionError for an option of the other kind of job."""
    if table is not None and restart:
        raise OptionError("--restart is for --out: a table is never thrown away", hint="Use another table.")
    if table is None and another_bundle:
        raise OptionError("--another-bundle is for --table", hint="Use another --out, or pass --restart.")
    if cluster is not None and url is not None:
        raise OptionError("--cluster and --url exclude each other", hint="A cluster's workers infer themselves.")


def _into_shards(
    source: str, bundle: Bundle, out: Path, options: "ScoreOptions", url: str | None, threads: int | None, json: bool
) -> tuple[int, int]:
    from scoring.inference import check_served, open_inference
    from scoring.local.cli import score_shards

    inference = open_inference(bundle, url, threads)
    return score_shards(Path(source), bundle, inference, out, options, lambda: check_served(bundle, url), json)


def _into_table(
    source: str, bundle: Bundle, table: str, options: "ScoreOptions", crew: "Crew", another_bundle: bool, json: bool
) -> tuple[int, int]:
    from scoring.table.cli import score_table
    from scoring.table.job import TableOptions

    wanted = TableOptions(asking=options.asking, chunk_rows=options.shard_rows, another_bundle=another_bundle)
    return score_table(source, bundle, table, wanted, crew, json)


def _crew(bundle: Bundle, url: str | None, cluster: str | None, workers: int | None, threads: int | None) -> "Crew":
    """Whoever scores a table's chunks."""
    if cluster is None:
        from scoring.inference import check_served, open_inference
        from scoring.table.crew_of_one import CrewOfOne

        return CrewOfOne(inference=open_inference(bundle, url, threads), check=lambda: check_served(bundle, url))
    from scoring.cluster.connection import check_address
    from scoring.cluster.crew import Cluster

    check_address(cluster)
    return Cluster(address=cluster, threads=threads or 1, workers=workers)
