"""Plots of studies as PNG, drawn alike."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mindllm_engine.studies.findings import Picture

if TYPE_CHECKING:
    import numpy as np


# Entries of a legend that stands among the curves; a longer one would hide some, and stands beside them.
MOST_INSIDE = 6


def picture(
    name: str,
    caption: str,
    draw: Callable[..., None],
    columns: int = 1,
    height: float = 5.0,
    one_scale: bool = False,
) -> Picture:
    """Draw on one axes or on several side by side: `draw` gets them as its arguments.

    Args:
        name: of the file, without its ending.
        caption: what it shows, in a sentence.
        one_scale: whether all axes have the same vertical scale.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (6.5 * columns, height)
    figure, axes = pyplot.subplots(1, columns, figsize=size, layout="constrained", squeeze=False, sharey=one_scale)
    draw(*axes[0])
    for part in axes[0]:
        if not part.images:
            part.grid(alpha=0.3)
        for axis in (part.xaxis, part.yaxis):
            if axis.get_scale() == "log":
                _label_logarithms(axis)
        if entries := len(part.get_legend_handles_labels()[0]):
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if entries > MOST_INSIDE else {}
            part.legend(fontsize=7, **beside)
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return Picture(name, file.getvalue(), caption)


def _label_logarithms(axis: Any) -> None:
    """Numbers that can be read where an axis spans few powers of ten; matplotlib labels every ninth of one there."""
    from matplotlib import ticker

    low, high = axis.get_view_interval()
    if high > 60 * low:
        return
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)) if high > 5 * low else ticker.MaxNLocator(6))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, place: f"{value:g}" if value < 1e5 else f"{value:.1e}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def smooth_mean(curves: Sequence[Mapping[int, float]], over: int) -> "tuple[list[int], np.ndarray]":
    """Mean of several curves, and of `over` points of it that follow each other: noise of single steps goes.

    Args:
        curves: {x: y} each; where they do not have the same x, those that all have.

    Returns:
        (x of the last of each `over` points, their mean); empty where there are fewer.
    """
    import numpy as np

    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if len(shared) < over:
        return [], np.empty(0)
    mean = np.mean([[curve[x] for x in shared] for curve in curves], axis=0)
    return shared[over - 1 :], np.convolve(mean, np.full(over, 1 / over), mode="valid")


def heat_map(axes: Any, values: list[list[float]], rows: list[str], columns: list[str], digits: int = 2) -> None:
    """A matrix as colours with its numbers; each column coloured by itself, from its least to its largest."""
    import numpy as np

    matrix = np.asarray(values, dtype=float)
    span = np.nanmax(matrix, axis=0) - np.nanmin(matrix, axis=0)
    shades = (matrix - np.nanmin(matrix, axis=0)) / np.where(span > 0, span, 1)
    axes.imshow(shades, cmap="viridis_r", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            colour = "white" if shades[row, column] > 0.5 else "black"
            text = f"{matrix[row, column]:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
