"""The share of each source over the course of a plan. A few hundred windows of samples are located, however long it is:
the orders are arithmetic, so any part of a plan can be looked at by itself."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.data.mixture import Block
from mindllm_engine.data.plan import Plan

WINDOWS = 300
"""Windows of a long plan, about."""
LEAST_SAMPLES = 64
"""Samples of a window at least, so that a short plan has fewer windows instead of noisier ones."""
MOST_SAMPLES = 4096
"""Samples of a window that are located: successive ones in its middle."""


@dataclass(frozen=True, eq=False)
class PlanCourse:
    """Windows that follow each other from the beginning of a plan to its end. None crosses the border of a block.

    Attributes:
        edges: (windows + 1,) int64, tokens consumed where each window begins, and where the last one ends.
        shares: (windows, sources) float64, of the window's tokens; each row sums to 1.
        blocks: tokens consumed where each block begins.
    """

    edges: NDArray[np.int64]
    shares: NDArray[np.float64]
    blocks: list[int]


def follow(plan: Plan) -> PlanCourse:
    """The course of a plan, which has one sample at least. Exact where a window has at most `MOST_SAMPLES` samples, and
    otherwise the share among so many."""
    parts = [_shares_in(plan, block) for block in plan.blocks if block.samples]
    edges = [plan.tokens_in(0, first) for firsts, _ in parts for first in firsts]
    return PlanCourse(
        edges=np.array([*edges, plan.tokens_in(0, plan.samples)]),
        shares=np.concatenate([shares for _, shares in parts]),
        blocks=[plan.tokens_in(0, block.first_sample) for block in plan.blocks],
    )


def _shares_in(plan: Plan, block: Block) -> tuple[list[int], NDArray[np.float64]]:
    """The windows of a block: the first sample of each, and (windows, sources) shares."""
    windows = max(1, min(WINDOWS * block.samples // plan.samples, block.samples // LEAST_SAMPLES))
    bounds = [block.first_sample + block.samples * number // windows for number in range(windows + 1)]
    located, counts = [], []
    for first, end in itertools.pairwise(bounds):
        count = min(end - first, MOST_SAMPLES)
        located.append(np.arange(count) + (first + (end - first - count) // 2))
        counts.append(count)
    source_ids, _ = plan.locate(np.concatenate(located))
    cells = np.repeat(np.arange(windows), counts) * len(plan.sources) + source_ids
    totals = np.bincount(cells, minlength=windows * len(plan.sources)).reshape(windows, -1)
    return bounds[:-1], totals / np.array(counts)[:, None]
