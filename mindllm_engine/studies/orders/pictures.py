"""Plots of `experiment.py`: training loss, held-out loss by language, and by category, over the course of the runs."""

from typing import Any

import numpy as np

from mindllm_engine.studies.findings import Picture
from mindllm_engine.studies.orders.runs import Measured
from mindllm_engine.studies.pictures import picture, smooth_mean

# Steps over which the training loss is averaged.
SMOOTHING = 5
COLOURS = {"shuffled": "tab:blue", "blocked": "tab:red", "chunked": "tab:green"}


def order_pictures(measured: Measured) -> list[Picture]:
    """Means over seeds; vertical lines where the blocked order goes on to the category named there."""
    runs = {order: list(of_order.values()) for order, of_order in measured.runs.items()}
    first = next(iter(runs.values()))[0]

    def training(axes: Any) -> None:
        for order, of_order in runs.items():
            curve = smooth_mean([run.losses for run in of_order], SMOOTHING)
            axes.plot(*curve, label=order, color=COLOURS[order], linewidth=1)
        _mark_changes(axes, measured)
        axes.set(xlabel="step", ylabel="training loss, nats a token")

    def languages(*axes: Any) -> None:
        for language, part in zip(first.languages, axes, strict=True):
            for order, of_order in runs.items():
                bits = np.mean([run.languages[language] for run in of_order], axis=0)
                part.plot(first.steps, bits, label=order, color=COLOURS[order], marker=".")
            _mark_changes(part, measured)
            part.set(xlabel="step", ylabel="bits per byte, held out", title=language)

    def categories(*axes: Any) -> None:
        for (order, of_order), part in zip(runs.items(), axes, strict=True):
            for category in first.categories:
                part.plot(first.steps, np.mean([run.categories[category] for run in of_order], axis=0), label=category)
            _mark_changes(part, measured)
            part.set(xlabel="step", ylabel="bits per byte, held out", title=order)

    return [
        picture("training", f"Training loss, mean of {SMOOTHING} steps; dotted: the blocked order goes on.", training),
        picture("languages", "Held-out text by language.", languages, len(first.languages)),
        picture(
            "categories", "Held-out text by category: what is forgotten rises.", categories, len(runs), one_scale=True
        ),
    ]


def _mark_changes(axes: Any, measured: Measured) -> None:
    for step, category in measured.changes:
        axes.axvline(step, color="grey", linestyle=":", linewidth=0.7)
        place = {"xycoords": ("data", "axes fraction"), "xytext": (2, -2), "textcoords": "offset points"}
        axes.annotate(category, (step, 1), rotation=90, va="top", fontsize=6, color="grey", **place)
