"""Plots of `experiment.py`: learning curves (as MindLLM's Figure 3) and matrices as heat maps (as its Figure 4)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.studies.findings import Picture
from mindllm_engine.studies.pictures import heat_map, picture
from mindllm_engine.studies.sources.runs import Measured


def source_pictures(measured: Measured, alike: NDArray[np.float64]) -> list[Picture]:
    """Learning curves, the matrix of bits per byte, and the likeness of sources; means over seeds."""
    names, languages = measured.names, sorted({place.language for place in measured.places})
    height = 2 + 0.34 * len(names)

    def curves(*axes: Any) -> None:
        for language, part in zip(languages, axes, strict=True):
            for place, bits in zip(measured.places, measured.curves.mean(axis=0), strict=True):
                if place.language == language:
                    part.plot(measured.tokens, bits, marker=".", label=place.name)
            part.set(xlabel="tokens", ylabel="bits per byte, held out", title=language)

    def matrix(axes: Any) -> None:
        heat_map(axes, measured.trained.mean(axis=0).tolist(), names, names)
        axes.set(xlabel="text", ylabel="network of")

    def likeness(axes: Any) -> None:
        heat_map(axes, alike.tolist(), names, names)

    return [
        picture("curves", "Learning curves: each source's own network on its own text.", curves, len(languages)),
        picture("matrix", "Bits per byte of every network on every source; colours by column.", matrix, height=height),
        picture("similarity", "Likeness of sources: mean transfer in both directions.", likeness, height=height),
    ]
