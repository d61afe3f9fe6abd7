"""Chooses instruction data by entropy (arXiv 2310.15777, section 5.3): clusters scored records, samples each cluster,
says which one the paper's rule recommends, and sets baselines beside every choice.

The paper finds that data whose entropy lies 1 to 1.5 nats above the pre-training entropy tunes best for zero-shot use,
0.5 to 1 for few-shot use. Selection by entropy often loses to random data at scale (arXiv 2410.09335), so that each
choice comes with as many random records, and with random records of the same lengths of answers.

`selection_files.py` reads the scores and writes the choices, `selection_report.py` says what was chosen.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mindllm_engine.errors import ConfigError
from mindllm_engine.tuning.clusters import Labels, Method, Values, cluster, within_cluster_sum

Rows = npt.NDArray[np.int64]

# How far above the pre-training entropy, in nats, by use (section 5.3).
BANDS: dict[str, tuple[float, float]] = {"zero-shot": (1.0, 1.5), "few-shot": (0.5, 1.0)}
# Groups of like length in which a length-matched baseline is drawn.
LENGTH_GROUPS = 50


@dataclass
class SelectConfig:
    """Which scores, how they are clustered, and how much is sampled."""

    scores: str
    """The folder that score_instructions.py wrote."""
    out: str
    """Folder for the choices and the report; must not exist."""
    entropy: Literal["response", "whole"] = "response"
    """What is clustered: the entropy of the answers, or of whole records."""
    method: Method = "exact"
    """exact: the best clusters there are; kmeans: scikit-learn's, as in the paper."""
    clusters: int = 10
    """How many clusters."""
    smallest_cluster: int = 1000
    """Clusters of fewer records are dropped."""
    sample: int = 50_000
    """Records drawn from each cluster (the paper's number), all where it has fewer; 0 draws all."""
    seed: int = 0
    """The same seed draws the same records."""
    pretraining_entropy: float | None = None
    """Nats a token that the network reached in pre-training; by default the last held-out loss of its run."""

    def validate(self) -> None:
        """Raises ConfigError naming the first field that cannot be used."""
        for name, least in (("clusters", 1), ("smallest_cluster", 1), ("sample", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, not {getattr(self, name)}")
        if self.pretraining_entropy is not None and not 0 < self.pretraining_entropy < math.inf:
            raise ConfigError(f"pretraining_entropy: {self.pretraining_entropy} must be above 0, in nats a token")
        if Path(self.out).exists():
            raise ConfigError(f"out: {self.out} exists already; choose another folder, or delete it")


@dataclass(eq=False)
class Pool:
    """The records that have scores, in their order.

    Attributes:
        rows: the row of each in the file of scores, which is its number among the lines that are not blank.
        entropy: what is clustered, nats a token.
        columns: of the file of scores, by name.
        left_out: how many records have no scores, by status.
    """

    rows: Rows
    entropy: Values
    columns: dict[str, npt.NDArray[Any]]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Recommendation:
    """The cluster for a use: `gap` is its mean entropy less the pre-training entropy, `inside` whether that lies in the
    band (otherwise the cluster is only the nearest), and `share` of its records lies there."""

    use: str
    cluster: int
    gap: float
    inside: bool
    share: float


@dataclass(eq=False)
class Selection:
    """All that was chosen: positions in the pool, by name of the choice."""

    pool: Pool
    labels: Labels
    kept: list[int]
    recommendations: list[Recommendation]
    pretraining_entropy: float
    within_sum: float
    choices: dict[str, Rows]


def choose(config: SelectConfig, pool: Pool, before: float) -> Selection:
    """Cluster the pool, and draw from it. The same pool and config give the same choices.

    Args:
        before: the pre-training entropy, nats a token.
    """
    labels = cluster(pool.entropy, config.clusters, config.method, config.seed)
    sizes = np.bincount(labels)
    kept = [number for number, size in enumerate(sizes) if size >= config.smallest_cluster]
    if not kept:
        raise ConfigError(
            f"smallest_cluster: no cluster has {config.smallest_cluster:,} records; the largest has {sizes.max():,}"
        )
    recommendations = [recommend(use, band, pool.entropy, labels, kept, before) for use, band in BANDS.items()]
    limit = config.sample or len(pool.rows)
    choices: dict[str, Rows] = {}
    for number in kept:
        members = np.flatnonzero(labels == number)
        # A stream of its own: what is drawn from a cluster does not depend on the others.
        drawn = np.random.default_rng([config.seed, number]).permutation(members)[:limit]
        _add_with_baselines(choices, f"cluster_{number:02d}", np.sort(drawn), pool, [config.seed, number])
    wanted = len(choices[f"cluster_{recommendations[0].cluster:02d}"])
    _add_with_baselines(choices, "ifd", highest_ifd(pool, wanted), pool, [config.seed, len(sizes)])
    within = within_cluster_sum(pool.entropy, labels)
    return Selection(pool, labels, kept, recommendations, before, within, choices)


def recommend(
    use: str,
    band: tuple[float, float],
    entropy: npt.NDArray[np.float64],
    labels: Labels,
    kept: list[int],
    before: float,
) -> Recommendation:
    """The kept cluster whose mean entropy lies in the band; of several the one with most of its records in it, of none
    the nearest."""
    low, high = before + band[0], before + band[1]
    found = []
    for number in kept:
        members = entropy[labels == number]
        mean = float(members.mean())
        share = float(((members >= low) & (members <= high)).mean())
        distance = max(low - mean, mean - high, 0.0)
        found.append((distance, -share, number, mean - before))
    distance, share, number, gap = min(found)
    return Recommendation(use, number, gap, distance == 0, -share)


def highest_ifd(pool: Pool, wanted: int) -> Rows:
    """The records of the highest IFD below 1 (from 1 on the instruction does not help; arXiv 2308.12032), in order."""
    ifd = pool.columns["ifd"]
    eligible = np.flatnonzero(ifd < 1)  # false for NaN
    return np.sort(eligible[np.argsort(-ifd[eligible], kind="stable")[:wanted]])


def _add_with_baselines(choices: dict[str, Rows], name: str, chosen: Rows, pool: Pool, seed: list[int]) -> None:
    choices[name] = chosen
    everyone = np.arange(len(pool.rows))
    choices[f"{name}_random"] = np.sort(np.random.default_rng([*seed, 1]).permutation(everyone)[: len(chosen)])
    choices[f"{name}_length_matched"] = length_matched(
        chosen, pool.columns["response_tokens"].astype(np.int64), np.random.default_rng([*seed, 2])
    )


def length_matched(chosen: Rows, tokens: npt.NDArray[np.int64], rng: np.random.Generator) -> Rows:
    """As many records of the whole pool, the chosen ones among it, with answers as long as theirs: as many from each of
    `LENGTH_GROUPS` groups of like length.

    tokens: of the answer of every record of the pool.
    """
    borders = np.unique(np.quantile(tokens, np.linspace(0, 1, LENGTH_GROUPS + 1)[1:-1]))
    groups = np.searchsorted(borders, tokens, side="right")
    wanted = np.bincount(groups[chosen], minlength=len(borders) + 1)
    drawn = [
        rng.permutation(np.flatnonzero(groups == group))[:count] for group, count in enumerate(wanted) if count > 0
    ]
    return np.sort(np.concatenate(drawn)) if drawn else chosen
