"""The matrices that `experiment.py` analyses, read from the finished networks of all sources and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.errors import DataError
from mindllm_engine.studies.results import Result, Results
from mindllm_engine.studies.sources.measures import Place, late_share, taught, teaches, transfer_matrix
from mindllm_engine.training.setup import open_prepared


@dataclass(frozen=True)
class Measured:
    """What the networks of all sources came to. Axes: seeds, then networks, then texts; in the order of `places`.

    Attributes:
        tokens: of the points of the learning curves.
        untrained: (seeds, texts) bits per byte before training.
        trained: (seeds, networks, texts) bits per byte after it.
        curves: (seeds, sources, points) bits per byte of each source's own text while its network learns.
        transfer: (seeds, networks, texts), see `transfer_matrix`.
        teaches, taught, late: (seeds, sources), see `measures.py`.
        seq_len: tokens that a network sees at a time.
    """

    places: list[Place]
    tokens: list[int]
    untrained: NDArray[np.float64]
    trained: NDArray[np.float64]
    curves: NDArray[np.float64]
    transfer: NDArray[np.float64]
    teaches: NDArray[np.float64]
    taught: NDArray[np.float64]
    late: NDArray[np.float64]
    seq_len: int

    @property
    def names(self) -> list[str]:
        return [place.name for place in self.places]


def measure(results: Results, seeds: Sequence[int]) -> Measured:
    """Read the matrices of all seeds from finished trials. A source of which a trial is missing is left out.

    Raises:
        DataError: fewer than two sources are left.
    """
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.settings["source"], []).append(result)
    names = sorted(name for name, of in found.items() if len(of) == len(seeds))
    if len(names) < 2:
        missing = "; ".join(f"{entry.name}: {entry.reason}" for entry in results.left_out) or "none has finished"
        raise DataError(f"what each source teaches: only {len(names)} sources have networks of all seeds; {missing}")
    by_seed = [{name: _of_seed(found[name], seed) for name in names} for seed in seeds]
    first = by_seed[0][names[0]]
    manifests = {name: source.manifest for name, source in open_prepared(first.config).items()}
    places = [Place(name, manifests[name].lang, manifests[name].category, manifests[name].tokens) for name in names]
    untrained = np.array([_bits(runs[names[0]].evaluations[0], names) for runs in by_seed])
    trained = np.array([[_bits(runs[name].last, names) for name in names] for runs in by_seed])
    curves = np.array(
        [[[_bits(point, [name])[0] for point in runs[name].evaluations] for name in names] for runs in by_seed]
    )
    transfer = np.array([transfer_matrix(*pair, names) for pair in zip(untrained, trained, strict=True)])
    steps = [int(point["step"]) for point in first.evaluations]
    return Measured(
        places,
        [int(point["tokens"]) for point in first.evaluations],
        untrained,
        trained,
        curves,
        transfer,
        np.array([teaches(matrix, places) for matrix in transfer]),
        np.array([taught(matrix, places) for matrix in transfer]),
        np.array([[late_share(steps, curve) for curve in of_seed] for of_seed in curves]),
        first.config.data.seq_len,
    )


def _of_seed(results: Sequence[Result], seed: int) -> Result:
    return next(result for result in results if result.settings["seed"] == seed)


def _bits(record: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    return [float(record[f"heldout_bpb/{name}"]) for name in names]
