"""A plan drawn: the share of each source over its course, and some successive samples from its middle (after Figure 5
of the MindLLM paper, arXiv 2310.15777)."""

import colorsys
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.data.plan import Plan
from mindllm_engine.data.plan_course import PlanCourse

ROWS, COLUMNS = 6, 96
"""Successive samples that are shown one by one."""
_TINT = 0.6  # how far towards white the last language's colours are

Colour = tuple[float, float, float]


def draw(plan: Plan, course: PlanCourse, path: Path) -> None:
    """Write the picture of a plan as a PNG. A category is a hue and a language a lightness; vertical lines are borders
    of blocks. Raises DataError if it cannot be written."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    order = drawing_order(plan)
    colours = source_colours(plan)
    figure = Figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[4, 1.1])
    draw_shares(above, plan, course, order, colours)

    count = min(ROWS * COLUMNS, plan.samples)
    first = (plan.samples - count) // 2
    cells = np.full(ROWS * COLUMNS, np.nan)
    cells[:count] = plan.locate(np.arange(first, first + count))[0]
    palette = ListedColormap([colours[source] for source in range(len(plan.sources))])
    below.imshow(
        cells.reshape(ROWS, COLUMNS), cmap=palette, vmin=-0.5, vmax=len(plan.sources) - 0.5, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    below.set(xticks=[], yticks=[])
    below.set_title(f"{count:,} successive samples from number {first:,} on, by line", fontsize=9, loc="left")

    # From top to bottom as they are stacked. The space before a name keeps one that begins with "_" from being hidden.
    legend = figure.legend(
        [Patch(color=colours[source]) for source in reversed(order)],
        [f" {plan.sources[source].name}" for source in reversed(order)],
        loc="outside right upper", fontsize=8, frameon=False, ncols=-(-len(order) // 30), title="source",
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold a dollar
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that no font has, names wider than the picture
        figure.savefig(content, format="png", dpi=100, pil_kwargs={"optimize": True})
    write_atomically(path, content.getvalue())


def draw_shares(axes: Any, plan: Plan, course: PlanCourse, order: list[int], colours: dict[int, Colour]) -> None:
    """Stacked areas, a step for each window."""
    unit, word = next((u, w) for u, w in ((1e9, "billions"), (1e6, "millions"), (1, "")) if course.edges[-1] >= u)
    steps = np.concatenate([course.shares, course.shares[-1:]])[:, order].T
    axes.stackplot(
        course.edges / unit, steps, colors=[colours[source] for source in order], step="post", antialiased=False
    )
    for number, block in enumerate(plan.blocks):
        begin, end = ([*course.blocks, course.edges[-1]][number + i] / unit for i in (0, 1))
        if number:
            axes.axvline(begin, color="black", linewidth=1.2)
        if block.samples * block.seq_len * 12 >= course.edges[-1]:  # where there is room for the word
            axes.text((begin + end) / 2, 1.01, block.order, ha="center", va="bottom", fontsize=10)
    axes.set(xlim=(0, course.edges[-1] / unit), ylim=(0, 1), ylabel="share of the tokens")
    axes.set_xlabel("tokens consumed" + (f" ({word})" if word else ""))


def drawing_order(plan: Plan) -> list[int]:
    """The sources that are read, from bottom to top: by language, and in each by category, the largest first."""
    tokens = _tokens_taken(plan)
    ranks = {category: rank for rank, category in enumerate(_categories(plan))}

    def place(source: int) -> tuple[str, int, str]:
        facts = plan.sources[source]
        return facts.language, ranks[facts.category], facts.name

    return sorted((source for source, taken in enumerate(tokens) if taken), key=place)


def source_colours(plan: Plan) -> dict[int, Colour]:
    """By source: a hue for its category, with more white the later its language stands in the alphabet."""
    languages = sorted({source.language for source in plan.sources})
    categories = _categories(plan)
    colours = {}
    for number, source in enumerate(plan.sources):
        place = categories.index(source.category)
        white = _TINT * languages.index(source.language) / max(1, len(languages) - 1)
        hue = colorsys.hsv_to_rgb(place / len(categories), 0.8, (0.85, 0.65)[place % 2])
        red, green, blue = (part + (1 - part) * white for part in hue)
        colours[number] = (red, green, blue)
    return colours


def _categories(plan: Plan) -> list[str]:
    """The one that most tokens are of first."""
    totals: dict[str, int] = {}
    for source, taken in zip(plan.sources, _tokens_taken(plan), strict=True):
        totals[source.category] = totals.get(source.category, 0) + taken
    return sorted(totals, key=lambda category: (-totals[category], category))


def _tokens_taken(plan: Plan) -> list[int]:
    return [sum(block.quotas[source] * block.seq_len for block in plan.blocks) for source in range(len(plan.sources))]
