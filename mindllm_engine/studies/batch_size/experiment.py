"""The optimal batch size against loss (MiniCPM, arXiv 2404.06395, section 3.2, Figures 1 and 2), and L(N, D) beside it.

Networks of several sizes are trained with several batch sizes at one learning rate a network, as the paper's are. The
rate stays constant after the warm-up, where the paper's falls by a cosine: so every evaluation along a run is the end
of a run of that many tokens, and curves of one network compare at every level of loss.

L(N, D) and the compute-optimal tokens a parameter come from runs of their own (data_law.py).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.batch_size.data_law import DataLawConfig, fit_data_law
from mindllm_engine.studies.batch_size.optima import (
    LEAST_BATCHES,
    BatchLaw,
    Curve,
    Optimum,
    fit_batch_law,
    levels_of,
    optimum_at,
)
from mindllm_engine.studies.claims import Claim, judge_above, judge_within, not_decidable
from mindllm_engine.studies.findings import Findings, Picture, Table
from mindllm_engine.studies.laws import MINICPM_BATCH_COEFFICIENT, MINICPM_BATCH_EXPONENT
from mindllm_engine.studies.networks import NetworkSize, WidthRule, check_sizes, steps_of
from mindllm_engine.studies.pictures import picture
from mindllm_engine.studies.results import Result, Results, refuse_mixed_text
from mindllm_engine.studies.trials import Trial

SOURCE = "MiniCPM, section 3.2, Figure 2"
KIND = "batch_size"
# Of a run's tokens, how many warm it up, whatever the batch.
WARMUP = 0.05
# The paper's exponent counts as found where the interval stays within this factor of it.
NEAR = 1.25

Optima = dict[tuple[str, int], list[Optimum]]


@dataclass
class BatchSizeConfig:
    """Batch sizes for each of a few networks, and the runs of L(N, D)."""

    sizes: list[NetworkSize]
    """Networks whose optimal batch is looked for."""
    batches: list[int]
    """Samples a batch, three at least."""
    tokens: float
    """That each of these runs is trained on."""
    evaluations: int
    """Points of each curve of held-out loss, evenly spaced in steps."""
    learning_rate: WidthRule
    """Peak learning rate of each network, whatever the batch."""
    data_law: DataLawConfig
    """Runs of L(N, D), of the first seed alone, at the base config's batch."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        check_sizes(self.sizes, 1, "batch_size.sizes")
        self.learning_rate.validate("batch_size.learning_rate")
        if len(set(self.batches)) < max(LEAST_BATCHES, len(self.batches)) or min(self.batches) < 1:
            raise ConfigError(f"batch_size.batches: {self.batches} must be {LEAST_BATCHES} different numbers at least")
        if not self.tokens > 0:
            raise ConfigError(f"batch_size.tokens: {self.tokens} must be above 0")
        if self.evaluations < 3:
            raise ConfigError(f"batch_size.evaluations: {self.evaluations} are too few; give 3 at least")

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """Every network with every batch size and seed, then the runs of L(N, D). Raises ConfigError."""
        self.validate()
        grid = [
            self._trial(size, samples, seed, base) for size in self.sizes for samples in self.batches for seed in seeds
        ]
        return grid + self.data_law.trials(base, seeds[0], self.learning_rate)

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """The optima, their law, and L(N, D). Raises DataError."""
        grid = results.with_settings(experiment=KIND)
        if not len(grid):
            raise DataError("the batch-size law: too few points: no run of the grid has finished; see what is left out")
        refuse_mixed_text(grid, "the batch-size law")
        optima = _optima(grid)
        by_seed: dict[int, list[Optimum]] = defaultdict(list)
        for (_, seed), found in optima.items():
            by_seed[seed] += found
        law = fit_batch_law(by_seed)
        data_law = fit_data_law(results)
        return Findings(
            "Optimal batch size, and L(N, D)",
            _claims(law, optima) + data_law.claims,
            [_optima_table(optima), *data_law.tables],
            [_levels_picture(optima), _law_picture(optima, law), *data_law.pictures],
            {
                "batch_law": None
                if law is None
                else {"exponent": law.exponent.as_json(), "coefficient": law.coefficient},
                "optima": [
                    {"size": size, "seed": seed, "level": one.level, "batch": one.batch, "reason": one.reason}
                    for (size, seed), found in optima.items()
                    for one in found
                ],
                "data_law": data_law.numbers,
            },
        )

    def _trial(self, size: NetworkSize, samples: int, seed: int, base: Mapping[str, Any]) -> Trial:
        steps = steps_of(self.tokens, samples, base)
        if steps < self.evaluations:
            raise ConfigError(
                f"batch_size.batches: {samples} samples leave {steps} steps for {self.evaluations} evaluations; take "
                "smaller batches or more tokens"
            )
        changes = size.changes(base) | {
            "run.seed": seed,
            "optim.lr": self.learning_rate.at(size),
            "optim.schedule.kind": "constant",
            "optim.schedule.min_lr": 0.0,
            "optim.schedule.warmup_steps": max(1, round(WARMUP * steps)),
            "train.steps": steps,
            "train.global_batch_size": samples,
            "train.micro_batch_size": min(samples, int(base["train"]["micro_batch_size"])),
            "train.eval_every": steps // self.evaluations,
        }
        settings = {"experiment": KIND, "size": size.name, "samples": samples, "seed": seed}
        return Trial(f"{KIND}_{size.name}_samples{samples}_seed{seed}", changes, settings)


def curve_of(result: Result) -> Curve:
    """Held-out loss along a run, without the untrained network's."""
    points = [record for record in result.evaluations if record["tokens"] > 0]
    return Curve([float(p["tokens"]) for p in points], [float(p["heldout_loss"]) for p in points])


def _optima(grid: Results) -> Optima:
    """(network, seed) -> optima by level; no levels where the curves do not overlap."""
    curves: dict[tuple[str, int], dict[float, Curve]] = defaultdict(dict)
    for result in grid:
        batch = float(result.settings["samples"] * result.config.data.seq_len)
        curves[result.settings["size"], result.settings["seed"]][batch] = curve_of(result)
    return {key: [optimum_at(level, found) for level in levels_of(found)] for key, found in curves.items()}


def _claims(law: BatchLaw | None, optima: Optima) -> list[Claim]:
    everything = [one for found in optima.values() for one in found]
    inner = [one for one in everything if one.batch is not None]
    paper = f"B = {MINICPM_BATCH_COEFFICIENT:.3g} / L^{MINICPM_BATCH_EXPONENT} tokens (C4, its own tokenizer)"
    grows = "The optimal batch grows as the loss falls"
    follows = f"It does so as a power of the loss with exponent {MINICPM_BATCH_EXPONENT}, within a factor of {NEAR}"
    if law is None:
        reasons = sorted({one.reason for one in everything if one.reason}) or [
            "no level of loss is passed by enough runs"
        ]
        reason = f"too few optima within the grid for a line: {len(inner)} of {len(everything)}; {'; '.join(reasons)}"
        return [not_decidable(statement, SOURCE, paper, reason) for statement in (grows, follows)]
    exponent = law.exponent
    here = (
        f"B = {law.coefficient:.3g} / L^{exponent.text(2)} tokens; the grid brackets {len(inner)} of {len(everything)} "
        "optima"
    )
    growth, why = judge_above(exponent, 0.0)
    near, why_near = judge_within(exponent, MINICPM_BATCH_EXPONENT / NEAR, MINICPM_BATCH_EXPONENT * NEAR)
    return [Claim(grows, SOURCE, paper, here, growth, why), Claim(follows, SOURCE, paper, here, near, why_near)]


def paper_batch(loss: float) -> float:
    """MiniCPM's optimal batch in tokens at a loss in nats a token."""
    return float(MINICPM_BATCH_COEFFICIENT * loss**-MINICPM_BATCH_EXPONENT)


def _optima_table(optima: Optima) -> Table:
    rows = []
    for (size, seed), found in optima.items():
        for one in found:
            best = f"{one.batch:,.0f}" if one.batch is not None else one.reason
            passed = f"{min(one.passed.values()) / 1e6:,.3f}" if one.passed else ""
            rows.append([f"{size}, seed {seed}", f"{one.level:.3f}", best, f"{paper_batch(one.level):,.0f}", passed])
    header = ["network", "loss", "optimal batch (tokens)", "by the paper's law", "fewest tokens (M)"]
    note = (
        "The paper's law is of another tokenizer and text, whose nats a token are not these. Learning rates are "
        "untuned, and the optimal batch moves with them."
    )
    return Table("Optimal batch by loss", header, rows, note)


def _levels_picture(optima: Optima) -> Picture:
    """Figure 1: tokens to a level over batch size, with the optima."""

    def draw(*panels: Any) -> None:
        for axes, ((size, seed), found) in zip(panels, _first_seeds(optima).items(), strict=True):
            for one in found:
                if one.passed:
                    (line,) = axes.plot(
                        one.passed.keys(), one.passed.values(), "o-", ms=3, lw=0.8, label=f"{one.level:.2f}"
                    )
                    if one.batch is not None:
                        axes.axvline(one.batch, color=line.get_color(), lw=0.6, ls=":")
            axes.set(xscale="log", yscale="log", title=f"{size}, seed {seed}", xlabel="batch (tokens)")
        panels[0].set_ylabel("tokens to a held-out loss")

    caption = "Tokens that each batch size takes to a level of loss, and the optima, dotted (MiniCPM, Figure 1)."
    return picture("batch_levels", caption, draw, columns=len(_first_seeds(optima)))


def _first_seeds(optima: Optima) -> Optima:
    """One entry a network: its first seed's."""
    first: dict[str, tuple[str, int]] = {}
    for key in optima:
        first.setdefault(key[0], key)
    return {key: optima[key] for key in first.values()}


def _law_picture(optima: Optima, law: BatchLaw | None) -> Picture:
    """Figure 2: the optima over the loss, and the laws."""

    def draw(axes: Any) -> None:
        levels = [one.level for found in optima.values() for one in found]
        for (size, seed), found in optima.items():
            inner = [(one.level, one.batch) for one in found if one.batch is not None]
            if inner:
                axes.plot(*zip(*inner, strict=True), "o", ms=4, label=f"{size}, seed {seed}")
        if levels:
            span = np.geomspace(min(levels), max(levels), 30)
            axes.plot(span, [paper_batch(level) for level in span], "k--", lw=0.9, label="paper's law")
            if law is not None:
                axes.plot(span, law.coefficient * span**-law.exponent.value, "r-", label="law here")
        axes.set(xscale="log", yscale="log", xlabel="held-out loss (nats a token)", ylabel="optimal batch (tokens)")

    return picture("batch_law", "Optimal batch size against loss (MiniCPM, Figure 2).", draw)
