"""Figures as SVG for a page in light or dark: words in the page's colour, nothing behind them.

Colours are Okabe and Ito's (2008), which colour-blind readers tell apart; lines differ in their
dashes, too. The same input gives the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import category

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_INK = "#010203"  # stands for the page's own colour until the SVG is written
_SIZE = (4.2, 2.9)  # inches, 72 points each: as wide as a phone
_WIDE = 20.0  # ratio from which an axis of positive values is logarithmic
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
    "grid.color": _INK,
}


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one name.

    Attributes:
      name: in the legend.
      x, y: finite, equally many.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
      title: what it shows.
      svg: an ``<svg>`` element.
      note: how to read it, or nothing.
    """

    title: str
    svg: str
    note: str = ""


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    note: str = "",
    mark: tuple[float, str] | None = None,
    points: bool = False,
    least: float | None = None,
) -> Figure:
    """Curves; the y axis is logarithmic where positive values differ by more than a factor of 20.

    Args:
      title: of the figure.
      x_label, y_label: of the axes, with their units.
      series: at least one.
      note: how to read it.
      mark: a place on the x axis and what it is.
      points: whether every point is marked, as where there are few, whole numbers.
      least: where the y axis begins; None = as the values, and the axis may be logarithmic.
    """
    with _axes(title) as (figure, axes):
        for index, one in enumerate(series):
            axes.plot(
                one.x,
                one.y,
                label=_clean(one.name),
                color=COLORS[index % len(COLORS)],
                linestyle=_DASHES[index % len(_DASHES)],
                marker="o" if points or len(one.x) < 3 else None,
                markersize=4,
                linewidth=1.6,
            )
        values = [y for one in series for y in one.y]
        if least is not None:
            axes.set_ylim(bottom=least)
        elif min(values) > 0 and max(values) > _WIDE * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        if mark:
            axes.axvline(mark[0], color=_INK, linewidth=0.8, linestyle=":", label=mark[1])
        if points:
            axes.set_xticks(sorted({x for one in series for x in one.x}))
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(axes, x_label, y_label, legend=len(series) > 1 or mark is not None)
        return Figure(title, _svg(figure, title), note)


def bars(
    title: str,
    label: str,
    names: Sequence[str],
    values: Sequence[float],
    *,
    form: str,
    errors: Sequence[float] | None = None,
    note: str = "",
) -> Figure:
    """A horizontal bar for each name, with its value in figures.

    Args:
      title: of the figure.
      label: of the axis, with its unit.
      names, values: equally many.
      form: how a value is written, as ``format`` has it.
      errors: half the length of each bar's error line.
      note: how to read it.
    """
    with _axes(title, height=0.6 + 0.34 * len(names)) as (figure, axes):
        places = range(len(names))
        colors = [COLORS[i % len(COLORS)] for i in places]
        axes.barh(places, values, color=colors, height=0.6, xerr=errors, ecolor=_INK)
        for place, value in zip(places, values, strict=True):
            error = errors[place] if errors else 0.0
            axes.annotate(
                format(value, form),
                (max(value + error, 0.0), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(places, labels=[_clean(name) for name in names])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.16)
        _finish(axes, label, "", legend=False)
        return Figure(title, _svg(figure, title), note)


def matrix(
    title: str,
    x_label: str,
    y_label: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    shades: Sequence[Sequence[float | None]],
    form: str,
    framed: Sequence[tuple[int, int]] = (),
    note: str = "",
) -> Figure:
    """A table of numbers, the darker the larger.

    Args:
      title: of the figure.
      x_label, y_label: what columns and rows are.
      columns, rows: their names.
      values: a list for each row; None is left empty.
      shades: the same shape, 0 to 1.
      form: how a value is written.
      framed: row and column of cells with a frame.
      note: how to read it.
    """
    side = 0.36 if len(columns) > 8 else 0.46
    width = max(len(columns) * max(side, 0.085 * _longest(values, form)), 1.6)
    with _axes(title, width=width, height=max(len(rows) * 0.3, 0.6)) as (figure, axes):
        from matplotlib.patches import Rectangle

        for i, row in enumerate(values):
            for j, value in enumerate(row):
                alpha = 0.75 * min(max(shades[i][j] or 0.0, 0.0), 1.0)
                place = (j - 0.5, i - 0.5)
                axes.add_patch(Rectangle(place, 1, 1, color=COLORS[0], alpha=alpha, linewidth=0))
                if (i, j) in framed:
                    axes.add_patch(
                        Rectangle(place, 1, 1, fill=False, edgecolor=COLORS[1], linewidth=1.6)
                    )
                if value is not None:
                    axes.text(j, i, format(value, form), ha="center", va="center", fontsize=8)
        longest = max(map(len, columns))
        turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 4 else {}
        axes.set_xticks(range(len(columns)), labels=[_clean(c) for c in columns], **turn)
        axes.set_yticks(range(len(rows)), labels=[_clean(r) for r in rows])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False)
        _finish(axes, x_label, y_label, legend=False)
        return Figure(title, _svg(figure, title), note)


def against(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    note: str = "",
    joined: bool = False,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Points that would lie on the diagonal if both axes agreed.

    Args:
      title: of the figure.
      x_label, y_label: of the axes, with their units.
      series: at least one.
      note: how to read it.
      joined: whether the points of a series are joined by a line.
      limits: of both axes; those of the points by default.
    """
    with _axes(title, height=3.2) as (figure, axes):
        values = [v for one in series for v in (*one.x, *one.y)]
        ends = limits or (min(values), max(values))
        axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle=":", label="x = y")
        for index, one in enumerate(series):
            axes.plot(
                one.x,
                one.y,
                label=_clean(one.name),
                color=COLORS[index % len(COLORS)],
                linestyle=_DASHES[index % len(_DASHES)] if joined else "none",
                marker="os^D"[index % 4],
                markersize=4,
                alpha=1.0 if joined else 0.5,
            )
        _finish(axes, x_label, y_label, legend=True)
        return Figure(title, _svg(figure, title), note)


@contextlib.contextmanager
def _axes(
    title: str, width: float = _SIZE[0], height: float = _SIZE[1]
) -> Iterator[tuple[Any, Any]]:
    """A figure with axes, in the page's style whatever the user's own is."""
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    salt = {"svg.hashsalt": title}
    with matplotlib.style.context(["default", {**_STYLE, **salt}]), warnings.catch_warnings():
        # Names in scripts that its font lacks: the page's font draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        drawing = Drawing(figsize=(width, height))
        FigureCanvasSVG(drawing)
        yield drawing, drawing.add_axes((0.14, 0.16, 0.84, 0.8))


def _finish(axes: Any, x_label: str, y_label: str, *, legend: bool) -> None:
    axes.set_xlabel(_clean(x_label, 40))
    axes.set_ylabel(_clean(y_label, 40))
    axes.tick_params(length=3)
    if legend:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _svg(drawing: Any, title: str) -> str:
    """The ``<svg>`` element, as wide as it is drawn or as the page, whichever is less."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    drawing.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.05, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    # Ids are of the whole page.
    mark = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{mark}", text)
    found = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) ', text)
    assert found is not None
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    kept = re.sub(r'\s(width|height)="[^"]*"', "", head[0][:-1])
    name = html.escape(plain(title))
    start = f'{kept} role="img" aria-label="{name}" style="max-width: {found[1]}pt">'
    return f"{start}<title>{name}</title>{text[head.end() :]}".strip()


def _longest(values: Sequence[Sequence[float | None]], form: str) -> int:
    return max(len(format(v, form)) for row in values for v in row if v is not None)


def plain(text: Any) -> str:
    """Text without control characters, which neither a page nor an SVG may have.

    Nor those that turn the direction of whatever comes after them, figures of ours among it.
    """
    return "".join(
        "�" if (category(c) in ("Cc", "Cs") and c not in "\n\t") or c in _TURNS else c
        for c in str(text)
    )


def _clean(name: str, most: int = 24) -> str:
    """A name as a figure shows it, cut where it is long."""
    name = plain(name)
    return name if len(name) <= most else name[: most - 1] + "…"
