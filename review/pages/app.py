"""The console as a web application: every address, and what answers there."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from bundle.errors import FieldmarkError
from review.pages import downloads, figures, groups, item, queue, sample
from review.pages.access import Access
from review.pages.page import Console, acts, failed, sentence

STATIC = Path(__file__).parent / "static"


def application(console: Console) -> Starlette:
    """The pages of a console."""
    register_url_convertor("number", _Number())
    app = Starlette(
        routes=[
            Route("/", queue.queue),
            Route("/rows", queue.block),
            Route("/items/{item:number}", item.item_page),
            Route("/items/{item:number}/{kind:str}.img", item.picture),
            Route("/items/{item:number}/decide", acts(queue.decide_item), methods=["POST"]),
            Route("/prototypes/{index:number}.img", item.prototype),
            Route("/groups", groups.groups_page),
            Route("/groups/decide", acts(queue.decide_group), methods=["POST"]),
            Route("/incident", groups.incident),
            Route("/sample", sample.sample_page),
            Route("/sample/draw", acts(sample.draw_sample), methods=["POST"]),
            Route("/sample/next", sample.next_page),
            Route("/figures", figures.figures_page),
            Route("/decisions", figures.decisions_page),
            Route("/undo", acts(queue.undo_stroke), methods=["POST"]),
            Route("/reviewer", acts(queue.name_reviewer), methods=["POST"]),
            Route("/export", downloads.export_page),
            Route("/export/{format:str}", downloads.download),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Access, door=console.door)],
        exception_handlers={FieldmarkError: _failed, 404: _missing, 405: _missing},
    )
    app.state.console = console
    return app


class _Number(Convertor[int]):
    """A number that is one for SQLite, too; Starlette's own stumbles over thousands of digits."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


def _failed(request: Request, problem: Exception) -> Response:
    return failed(request, problem)


def _missing(request: Request, problem: Exception) -> Response:
    return sentence(
        request, "There is no such page. The queue is at the top left.", getattr(problem, "status_code", 404)
    )
