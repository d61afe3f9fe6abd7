"""What `experiment.py` compares, read from the finished runs of the three orders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from mindllm_engine.data.mixture import Order
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from mindllm_engine.studies.orders.in_context import in_context_gain
from mindllm_engine.studies.orders.measures import category_changes, forgetting, mean_curves, mean_jump
from mindllm_engine.studies.results import Result, Results
from mindllm_engine.training.setup import Data, open_data
from mindllm_engine.training.weights import load_model

ORDERS: tuple[Order, ...] = ("shuffled", "blocked", "chunked")


@dataclass(frozen=True)
class RunMeasures:
    """What one run came to. Losses in nats a token, held-out ones in bits per byte.

    Attributes:
        losses: step -> training loss.
        steps: of the evaluations.
        overall: held-out bits per byte of all sources at the evaluations.
        categories, languages: the same of each, the mean over its sources.
        forgotten: see `forgetting`; None without an earlier category.
        jump: see `mean_jump`, at the steps where the blocked order changes category.
        gains: language -> in-context gain, the mean over its sources.
    """

    losses: dict[int, float]
    steps: list[int]
    overall: list[float]
    categories: dict[str, list[float]]
    languages: dict[str, list[float]]
    forgotten: float | None
    jump: float | None
    gains: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain data, without the training losses, which the run folders have."""
        return {key: value for key, value in vars(self).items() if key != "losses"}

    @property
    def gain(self) -> float | None:
        """In-context gain, the mean over languages."""
        return fmean(self.gains.values()) if self.gains else None


@dataclass(frozen=True)
class Measured:
    """What all runs came to.

    Attributes:
        runs: order -> seed -> measures; orders without a finished run are absent.
        changes: (step after which it begins, category) in the blocked order.
    """

    runs: dict[Order, dict[int, RunMeasures]]
    changes: list[tuple[int, str]]

    def by_seed(self, order: Order, value: Callable[[RunMeasures], float | None]) -> dict[int, float]:
        """Seed -> a number of the runs of an order, without those that have none."""
        numbers = {seed: value(run) for seed, run in self.runs.get(order, {}).items()}
        return {seed: number for seed, number in numbers.items() if number is not None}


def measure(results: Results, examples: int) -> Measured:
    """Read all runs. Raises DataError where fewer than two orders have one."""
    by_order = {order: results.with_settings(order=order) for order in ORDERS}
    finished = {order: list(of_order) for order, of_order in by_order.items() if len(of_order)}
    if len(finished) < 2:
        missing = "; ".join(f"{entry.name}: {entry.reason}" for entry in results.left_out) or "none has finished"
        raise DataError(f"orders of data: only {len(finished)} of {len(ORDERS)} orders have a finished run; {missing}")
    changes: list[tuple[int, str]] = []
    for result in finished.get("blocked", [])[:1]:
        changes = category_changes(open_data(result.config).plan, result.config.train.global_batch_size)
    return Measured(
        {
            order: {int(result.settings["seed"]): _measure_run(result, changes, examples) for result in of_order}
            for order, of_order in finished.items()
        },
        changes,
    )


def _measure_run(result: Result, changes: list[tuple[int, str]], examples: int) -> RunMeasures:
    data = open_data(result.config)
    categories: dict[str, list[str]] = {}
    languages: dict[str, list[str]] = {}
    for source in data.plan.sources:
        if f"heldout_bpb/{source.name}" in result.last and source.name in result.text:
            categories.setdefault(source.category, []).append(source.name)
            languages.setdefault(source.language, []).append(source.name)
    curves = mean_curves(result.evaluations, categories)
    last = changes[-1][1] if changes else None
    earlier = sorted({category for _, category in changes if category != last and category in curves})
    losses = {int(record["step"]): float(record["loss"]) for record in result.records if "loss" in record}
    return RunMeasures(
        losses,
        [int(record["step"]) for record in result.evaluations],
        [float(record["heldout_bpb"]) for record in result.evaluations],
        curves,
        mean_curves(result.evaluations, languages),
        forgetting(curves, earlier) if earlier else None,
        mean_jump(losses, [step for step, _ in changes if step > 0]),
        _gains(result, data, languages, examples),
    )


def _gains(result: Result, data: Data, languages: Mapping[str, Sequence[str]], examples: int) -> dict[str, float]:
    """In-context gain by language; languages in whose sources nothing can be scored are absent."""
    model, _ = load_model(result.folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found: dict[str, float] = {}
    for language, names in languages.items():
        gains = []
        for name in names:
            number = data.names.index(name)
            heldout, source = data.heldout[number], data.sources[number]
            training = source if isinstance(source, TokenFile) else source.whole()
            if heldout is not None:
                gains.append(in_context_gain(model, heldout, training, examples, result.config.data.seq_len))
        known = [gain for gain in gains if gain is not None]
        if known:
            found[language] = fmean(known)
    return found
