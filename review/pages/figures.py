"""Figures: what comes in against what was promised, and what became of the flags. They follow the source."""

from starlette.requests import Request
from starlette.responses import Response

from bundle.errors import OptionError
from review import figures
from review.figures import FDR
from review.pages import charts
from review.pages.page import console_of, is_part, render
from review.store.agreement import agreements, precisions
from review.store.decisions import VERDICTS, strokes
from scoring.drift.comparison import KS_LEVEL
from serving.martingale import CAPITAL

SECONDS = 10  # between two looks


def figures_page(request: Request) -> Response:
    """All of them, of one network."""
    console = console_of(request)
    manifest = console.bundle.manifest
    network = request.query_params.get("network") or _busiest(request)
    if network not in manifest.networks:
        raise OptionError(
            f"the bundle has no network {network[:40]!r}", hint=f"It has: {', '.join(manifest.networks)}."
        )
    alpha = manifest.networks[network].detector.alpha
    found = figures.rows(console.database, console.bundle, network, console.source.totals.get(network))
    histogram, shares = figures.histogram(found, console.bundle, network), figures.shares(found)
    stream = figures.stream(found, console.bundle, network)
    listed = figures.discoveries(found, console.bundle, network)
    days = precisions(console.database)
    return render(
        request,
        "figures_part.html.j2" if is_part(request) else "figures.html.j2",
        network=network,
        networks=list(manifest.networks),
        alpha=alpha,
        items=len(found.states),
        histogram=histogram,
        histogram_svg=None if histogram is None else charts.p_values(histogram, alpha),
        shares_svg=None if shares is None else charts.flagged(shares, alpha),
        stream=stream,
        ks_level=KS_LEVEL,
        capital=CAPITAL,
        stream_svg=None if stream is None else charts.drift(stream),
        listed=listed,
        fdr=FDR,
        decided=sum(each.decided for each in days),
        attacks=sum(each.attacks for each in days),
        precision_svg=charts.precision(days, listed) if any(each.decided for each in days) else None,
        seconds=SECONDS,
    )


def decisions_page(request: Request) -> Response:
    """Who decided what, and where two agree."""
    database = console_of(request).database
    return render(
        request,
        "decisions.html.j2",
        strokes=strokes(database),
        agreements=agreements(database),
        verdicts=VERDICTS,
    )


def _busiest(request: Request) -> str:
    """The network that most items are of."""
    console = console_of(request)
    with console.database.reading() as connection:
        found = connection.execute(
            "SELECT network FROM items WHERE bundle_id = ? AND told GROUP BY network ORDER BY count(*) DESC LIMIT 1",
            [console.bundle.bundle_id],
        ).fetchone()
    known = console.bundle.manifest.networks
    return found["network"] if found is not None and found["network"] in known else console.bundle.manifest.main_network
