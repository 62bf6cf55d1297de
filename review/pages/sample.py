"""The random sample: draw it, decide all of it, and hand the clean ones to `fieldmark calibrate`."""

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from bundle.errors import FieldmarkError, OptionError
from bundle.false_alarms import coarser, needed
from review.pages.access import reviewer_of
from review.pages.page import back, console_of, render
from review.pages.queue import saying
from review.store.sample import DEFAULT, clean_images, draw, drawable, next_open, samples


def sample_page(request: Request) -> Response:
    """What was drawn, how far it is decided, and what to do with it."""
    console = console_of(request)
    drawn = samples(console.database)
    clean, why = None, ""
    try:
        clean = clean_images(console.database)
    except FieldmarkError as problem:
        why = console.told(str(problem))
    networks = console.bundle.manifest.networks
    former = max(each.detector.calibration_n for each in networks.values())
    return render(
        request,
        "sample.html.j2",
        drawn=drawn,
        clean=clean,
        why=why,
        drawable=drawable(console.database),
        wanted=DEFAULT,
        needed=needed(networks[console.bundle.manifest.main_network].detector.alpha),
        coarser="" if clean is None else coarser(len(clean.items), former),
        database=console.told(str(console.database.path)),
        calibrated=console.told(str(console.bundle.path)),
    )


def draw_sample(request: Request, form: FormData) -> Response:
    """A new one."""
    console = console_of(request)
    text = str(form.get("wanted", DEFAULT))
    if not text.isdecimal():
        raise OptionError("the size of a sample is a number")
    drawn = draw(console.database, int(text[:9]), reviewer_of(request, console.door))
    return back(saying("/sample", f"Drawn: {drawn.size:,} images"))


def next_page(request: Request) -> Response:
    """To the next image of a sample that this reviewer has to decide."""
    console = console_of(request)
    query = request.query_params
    text = query.get("number", "")
    if not text.isdecimal():
        raise OptionError("there is no such sample")
    past = query.get("past", "")
    found = next_open(
        console.database,
        int(text[:9]),
        reviewer_of(request, console.door),
        past=int(past[:18]) if past.isdecimal() else None,
        again=bool(query.get("again")),
    )
    said, stroke = query.get("said", ""), query.get("stroke", "")
    if found is None:
        return back(saying("/sample", said, stroke))
    return back(saying(f"/items/{found}?sample={text[:9]}&state=any", said, stroke))
