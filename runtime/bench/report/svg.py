"""matplotlib figures as inline SVG whose colours and fonts are those of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from quasar.engines.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 580  # of a figure, in its own units; the page shows it up to a quarter larger, and as much smaller on a phone
INK, MUTED, GRID, PAPER, HEAT = "#1c2127", "#5b6570", "#dfe3e8", "#fefefd", "#8fbdec"
SERIES = ("#2468b2", "#c2590f", "#1f8457", "#8447b8", "#b52f5b", "#0b8390", "#86681a", "#64707d")
# drawn with these, shown with the page's variables, so that one picture serves light and dark
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper", HEAT: "--heat"},
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES, start=1)},
}
SETTINGS: Any = {  # newer matplotlib types every key, older ones none
    "svg.fonttype": "none",  # text stays text: small, sharp, and in the reader's font
    "svg.hashsalt": "quasar",  # the same results give the same bytes
    "text.parse_math": False,  # a name with a dollar is a name
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],  # ships with matplotlib and is wider than most: what fits in it fits in the reader's
    "font.size": 11,
    "figure.constrained_layout.h_pad": 0.08,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
}


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib; worth asking before an hour of measuring."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError("a report needs matplotlib, which is not installed; pip install 'quasar-toolchain[bench]'") from None


def draw(ident: str, title: str, height: float, paint: Callable[[Figure], object]) -> Markup:
    """A figure as an inline SVG.

    Args:
        ident: unique in the page; every id in the SVG begins with it.
        title: what a screen reader says.
        height: in units of WIDTH.
        paint: fills the figure.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    out = io.StringIO()
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that matplotlib lacks is drawn by the browser all the same
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained", facecolor="none")
        paint(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_inline(out.getvalue(), ident, title))


def _inline(svg: str, ident: str, title: str) -> str:
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', body)
    body = body[body.index(">") + 1 :].rstrip()
    body = re.sub(r'\b(id="|href="#)', rf"\g<1>{ident}-", body).replace("url(#", f"url(#{ident}-")
    body = re.sub(r"font: (?:[\w.]+ )*?([\d.]+px) '[^;\"]*", r"font-size: \1", body)
    body = re.sub(r"; font-family: [^;\"]*|font-family: [^;\"]*; ", "", body)
    body = re.sub("|".join(VARIABLES), lambda found: f"var({VARIABLES[found[0]]})", body)
    box = view[1] if view else f"0 0 {WIDTH} {WIDTH}"
    label = escape(title)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
    return f'{head}role="img" aria-label="{label}">\n<title>{label}</title>{body}'


def standalone(drawing: str) -> str:
    """An inline SVG as a file of its own, for a README: with paper and colours of its own, in any sans-serif font."""
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(f"var({variable})", colour)
    end = drawing.index(">")
    view = re.search(r'viewBox="([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)"', drawing)
    size = f' width="{float(view[3]):.0f}" height="{float(view[4]):.0f}"' if view else ""
    paper = f'\n<rect width="100%" height="100%" fill="{PAPER}"/>'
    return f'{drawing[:end]}{size} font-family="sans-serif">{paper}{drawing[end + 1 :]}\n'


def short(text: str, limit: int = 40) -> str:
    """A name that fits beside a plot; both ends of a long one stay."""
    return text if len(text) <= limit else f"{text[: limit // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - limit // 2 + 1 :]}"


def plain(axes: Axes, *, grid: str) -> None:
    """Grid lines along one axis and no tick marks."""
    axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]
    axes.tick_params(length=0)


def legend(figure: Figure, entries: dict[str, Any], columns: int = 4) -> None:
    """Names above the plot."""
    labels = [f" {label}" if label.startswith("_") else label for label in entries]  # matplotlib hides a leading underscore
    figure.legend(
        list(entries.values()), labels,
        loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.6, borderpad=0, borderaxespad=0.2,
    )  # fmt: skip
