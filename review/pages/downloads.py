"""Out of the console: tables, and zipped folders that other tools import."""

import shutil
import tempfile
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bundle.errors import OptionError
from bundle.files import full_disk
from review.out.export import FILES, FORMATS, export
from review.pages.page import console_of, render
from review.store.queue import DECIDED, Filter

TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def export_page(request: Request) -> Response:
    """What can be had, and of what."""
    wanted = Filter.of({"state": DECIDED, **request.query_params})
    return render(request, "export.html.j2", wanted=wanted, formats=FORMATS)


def download(request: Request) -> Response:
    """One format, as an attachment."""
    format = request.path_params["format"]
    if format not in FORMATS:
        raise OptionError(f"there is no format {format[:40]!r}", hint=f"Choose from: {', '.join(FORMATS)}.")
    console = console_of(request)
    wanted = Filter.of({"state": DECIDED, **request.query_params})
    folder = Path(tempfile.mkdtemp(prefix="fieldmark-review-"))
    try:
        with full_disk(folder):
            made = export(
                format,
                folder / f"review-{format}",
                console.database,
                console.source,
                console.bundle.manifest.image,
                wanted,
            ).path
            if format not in FILES:
                made = Path(shutil.make_archive(str(folder / "archive"), "zip", folder, made.name))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    suffix = format if format in FILES else "zip"
    return FileResponse(
        made,
        media_type=TYPES.get(format, "application/zip"),
        filename=f"review-{format}.{suffix}" if suffix == "zip" else f"review.{suffix}",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )
