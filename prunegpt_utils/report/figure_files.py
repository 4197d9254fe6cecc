"""What all figures share: one style, axes, and files with the drawn data and a text alternative."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from prunegpt_utils.report.tables import number

INK = "#222222"


def style() -> None:
    """Set the look of all figures; call once a notebook."""
    import seaborn as sns  # and with it half a second of scipy, which who only saves does not need

    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 200, "savefig.bbox": "tight", "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": "#999999", "grid.color": "#e6e6e6",
        "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 12,
        "axes.labelsize": 10.5, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
        "legend.frameon": False, "svg.hashsalt": "prunegpt", "text.color": INK,
    })  # fmt: skip


def percent_axis(axis: Axis) -> None:
    """Write the fractions of an axis as percentages."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def plain_log_axis(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis in full, and more of them where it is short."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value).removesuffix(".00")))
    low, high = sorted(axis.get_view_interval())
    if high / low < 30:
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axis.set_minor_formatter(NullFormatter())


def log_axes(axes: Axes, percent: bool = False, **settings: object) -> None:
    """`axes.set(**settings)`, y logarithmic with its numbers in full, x in percent if `percent`."""
    axes.set(yscale="log", **settings)
    if percent:
        percent_axis(axes.xaxis)
    plain_log_axis(axes.yaxis)


def left_out(figure: str, why: str) -> Figure | None:
    """Say that a figure is not drawn; None is what there is instead, and `save` passes it on."""
    print(f"No figure of {figure}: {why}.")
    return None


def legend(axes: Axes, **settings: object) -> None:
    """`axes.legend(**settings)` where there is something to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**settings)


def save(figure: Figure | None, folder: Path, name: str) -> Path | None:
    """Write PNG (its path is returned), SVG and the drawn data as CSV: equal data, equal bytes.

    PNG and SVG carry `description` with them, where a page finds its alternative text. A figure
    that was `left_out` is None, and so is its path.
    """
    if figure is None:  # nor does one stay from a time when there was more to draw
        for kind in ("svg", "png", "csv"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    about = {"Title": name, "Description": description(figure)}
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, **about})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None, **about})
    points(figure).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    return folder / f"{name}.png"


def points(figure: Figure) -> pd.DataFrame:
    """The data of a figure as it is drawn, with columns panel (title), series, x, y.

    A row a point of a line that has a label (x is empty where the line is level, from edge to
    edge), or a row a cell of a heat map; or the figure's own attribute `drawn`, where a line is not
    what carries a series. What is not a number is not drawn.
    """
    if hasattr(figure, "drawn"):
        return figure.drawn.dropna(subset="y")
    rows = []
    for axes in figure.axes:
        rows += [(_title(axes), *point) for line in axes.lines for point in _of_line(axes, line)]
        for mesh in axes.findobj(QuadMesh) if axes.get_label() != "<colorbar>" else ():
            rows += [(_title(axes), *cell) for cell in _of_heat_map(axes, mesh)]
    return pd.DataFrame(rows, columns=["panel", "series", "x", "y"]).dropna(subset="y")


def _of_line(axes, line):
    if str(line.get_label()).startswith("_"):
        return []
    level = line.get_transform() == axes.get_yaxis_transform(which="grid")  # of `axhline`
    pairs = [("", line.get_ydata()[0])] if level else line.get_xydata().tolist()
    return [(line.get_label(), x, y) for x, y in pairs]


def _of_heat_map(axes, mesh):
    labels = axes.get_yticklabels(), axes.get_xticklabels()
    names = itertools.product(*([text.get_text() for text in texts] for texts in labels))
    values = mesh.get_array().ravel().tolist()
    return [(*name, value) for name, value in zip(names, values, strict=True)]


def description(figure: Figure) -> str:
    """Alternative text: what the axes are, and where each series begins and ends, in numbers."""
    parts, axes = [], {_title(axes): axes for axes in figure.axes}
    for panel, rows in points(figure).groupby("panel", sort=False):
        place = axes[panel]
        labels = [place.get_ylabel(), place.get_xlabel() or figure.axes[-1].get_xlabel()]
        names = " against ".join(filter(None, labels))
        parts.append(names if names.startswith(panel) else f"{panel}: {names}".removesuffix(": "))
        for series, mine in rows.groupby("series", sort=False):
            first, last = (_in_words(place, mine.iloc[end]) for end in (0, -1))
            parts.append(f"{series}: {first}" + (f" to {last}" if len(mine) > 1 else ""))
    return ". ".join(filter(None, parts))


def _title(axes):
    return axes.get_title(loc="left") or axes.get_title() or axes.get_ylabel()


def _in_words(axes, row):
    """One point in words; its x as the axis writes it, where the axis has a way of its own."""
    if row.x == "":
        return number(row.y)
    write = axes.xaxis.get_major_formatter()
    own = isinstance(write, FuncFormatter) and not isinstance(row.x, str)
    x = write(row.x) if own else row.x if isinstance(row.x, str) else f"{row.x:,.4g}"
    return f"{number(row.y)} at {x}"
