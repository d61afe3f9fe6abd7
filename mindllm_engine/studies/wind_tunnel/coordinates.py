"""Part of the wind tunnel: the coordinate check of MiniCPM's rules of width (Table 7).

A network whose parametrisation fits its width has activations of the same size at every width, and training moves them
by as much (Tensor Programs V, arXiv 2203.03466, appendix D.1). So networks of several widths are trained for a few
steps at one learning rate, and the slope of log size over log width is taken at each place.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.claims import Claim, judge_above, judge_within, not_decidable
from mindllm_engine.studies.findings import Findings, Picture, Table
from mindllm_engine.studies.pictures import picture
from mindllm_engine.studies.results import Results, refuse_mixed_text
from mindllm_engine.studies.seeds import Estimate, mean_estimate
from mindllm_engine.studies.trials import Trial, named
from mindllm_engine.studies.wind_tunnel.activation_sizes import Sizes, activation_sizes
from mindllm_engine.studies.wind_tunnel.parametrization import (
    PARAMETRIZATIONS,
    SHOWN,
    Parametrization,
    network_at,
    rate_changes,
)

SOURCE = "MiniCPM section 3.1, Table 7; arXiv 2203.03466, appendix D.1"
PART = "coordinates"
# Exponent of the width below which a size counts as flat: a tenth more at twice the width.
FLAT = 0.15

Quantity = Literal["size", "change"]
# (parametrization, width, seed) -> step -> place -> sizes
Measured = Mapping[tuple[str, int, int], Mapping[int, Mapping[str, Sizes]]]
# (step, place, quantity) -> slope, by parametrisation
Slopes = Mapping[Parametrization, Mapping[tuple[int, str, Quantity], Estimate]]


@dataclass
class CoordinatesConfig:
    """A few steps at several widths."""

    widths: list[int]
    """Hidden sizes; the layers stay those of the runs' config."""
    rate: float
    """Learning rate, from the first step on."""
    steps: int = 8
    """Optimizer steps."""
    every: int = 4
    """Steps between measurements; the fresh network and the last step are measured besides."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """Every width, parametrisation and seed, with the checkpoints that are measured."""
        if len(set(self.widths)) < 2 or len(set(self.widths)) < len(self.widths):
            raise ConfigError(f"coordinates.widths: {self.widths} must be two different widths at least")
        if self.steps < 1 or self.every < 1:
            raise ConfigError(f"coordinates: steps {self.steps} and every {self.every} must be at least 1")
        found = []
        for parametrization in PARAMETRIZATIONS:
            for width in self.widths:
                changes = network_at(base, width, None, parametrization) | rate_changes(base, self.rate)
                changes |= {
                    "optim.schedule.kind": "constant", "optim.schedule.warmup_steps": 0, "train.steps": self.steps,
                    "train.checkpoint_every": self.every, "train.keep_checkpoints": 0,
                }  # fmt: skip
                for seed in seeds:
                    settings = {"part": PART, "parametrization": parametrization, "width": width, "seed": seed}
                    name = f"{PART}_{parametrization}_" + named(width=width, seed=seed)
                    found.append(Trial(name, changes | {"run.seed": seed}, settings))
        return found

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """How the size of activations, and of what training adds to them, goes with the width."""
        results = results.where(lambda result: result.settings.get("part") == PART)
        refuse_mixed_text(results, "coordinate check")
        steps = sorted({*range(self.every, self.steps + 1, self.every), self.steps})
        measured = {
            (result.settings["parametrization"], result.settings["width"], result.settings["seed"]): activation_sizes(
                result, steps
            )
            for result in results
        }
        return self.findings(measured, seeds)

    def findings(self, measured: Measured, seeds: Sequence[int]) -> Findings:
        """What the measurements say."""
        by_name = {name: _slopes(measured, name, self.widths, seeds) for name in PARAMETRIZATIONS}
        return Findings(
            "Coordinate check",
            self._claims(by_name),
            [self._table(by_name)],
            [self._picture(measured)],
            {
                name: [
                    {"step": step, "place": place, "quantity": quantity, "slope": slope.as_json()}
                    for (step, place, quantity), slope in slopes.items()
                ]
                for name, slopes in by_name.items()
            },
        )

    def _claims(self, slopes: Slopes) -> list[Claim]:
        claims = []
        for place in ("residual stream", "logits"):
            statements: dict[Parametrization, str] = {
                "minicpm": f"By MiniCPM's rules training moves the {place} equally far at every width",
                "standard": f"Without them it moves the {place} farther the wider the network is",
            }
            for name, statement in statements.items():
                slope = slopes[name].get((self.steps, place, "change"))
                if slope is None:
                    claims.append(not_decidable(statement, SOURCE, "", "too few widths have been trained"))
                    continue
                verdict = judge_within(slope, -FLAT, FLAT) if name == "minicpm" else judge_above(slope, FLAT)
                claims.append(Claim(statement, SOURCE, "", f"as width to the {slope.text(2)}", *verdict))
        return claims

    def _table(self, slopes: Slopes) -> Table:
        last = slopes["minicpm"] or slopes["standard"]
        places = [place for step, place, quantity in last if step == self.steps and quantity == "change"]
        cells: tuple[tuple[int, Quantity], ...] = ((0, "size"), (self.steps, "size"), (self.steps, "change"))
        header = ["place"] + [
            f"{SHOWN[name]}: {quantity}, step {step}" for name in PARAMETRIZATIONS for step, quantity in cells
        ]
        rows = [
            [place]
            + [
                slopes[name][step, place, quantity].text(2) if (step, place, quantity) in slopes[name] else ""
                for name in PARAMETRIZATIONS
                for step, quantity in cells
            ]
            for place in places
        ]
        note = f"Slope of log root mean square over log width, mean over seeds; within {FLAT} of 0 counts as flat."
        return Table("Activation size against width", header, rows, note)

    def _picture(self, measured: Measured) -> Picture:
        def draw(*panels: Any) -> None:
            for name, axes in zip(PARAMETRIZATIONS, panels, strict=True):
                for place in _places(measured):
                    means = _mean_changes(measured, name, self.steps, place)
                    axes.plot(list(means), list(means.values()), "o-", markersize=3, label=place)
                axes.set(xscale="log", yscale="log", xlabel="width", title=SHOWN[name])
                axes.set_ylabel(f"change by step {self.steps} (root mean square)")

        caption = f"How far {self.steps} steps move the activations, over the width; mean over seeds."
        return picture("coordinates", caption, draw, columns=len(PARAMETRIZATIONS), one_scale=True)


def slope_over_width(sizes: Mapping[int, float]) -> float:
    """The exponent p of size ~ width^p, by least squares of the logarithms.

    Raises:
        DataError: fewer than two widths, or a size that is not above 0.
    """
    if len(sizes) < 2 or not all(0 < size < math.inf for size in sizes.values()):
        raise DataError(f"slope over width: needs two sizes at least, finite and above 0, not {dict(sizes)}")
    return float(np.polyfit(np.log(list(sizes)), np.log(list(sizes.values())), 1)[0])


def _slopes(
    measured: Measured, parametrization: str, widths: Sequence[int], seeds: Sequence[int]
) -> dict[tuple[int, str, Quantity], Estimate]:
    """(step, place, quantity) -> slope over the widths, of the seeds that have them all."""
    per_seed: dict[tuple[int, str, Quantity], list[float]] = {}
    for seed in seeds:
        of_width = {width: measured.get((parametrization, width, seed)) for width in widths}
        found = {width: steps for width, steps in of_width.items() if steps is not None}
        if len(found) < len(widths):
            continue
        for step, places in next(iter(found.values())).items():
            quantities: tuple[Quantity, ...] = ("size",) if step == 0 else ("size", "change")
            for place in places:
                for quantity in quantities:
                    sizes = {width: getattr(steps[step][place], quantity) for width, steps in found.items()}
                    per_seed.setdefault((step, place, quantity), []).append(slope_over_width(sizes))
    return {key: mean_estimate(slopes) for key, slopes in per_seed.items()}


def _places(measured: Measured) -> list[str]:
    return list(next(iter(next(iter(measured.values())).values()))) if measured else []


def _mean_changes(measured: Measured, parametrization: str, step: int, place: str) -> dict[int, float]:
    """Width -> change, mean over seeds."""
    changes: dict[int, list[float]] = {}
    for (name, width, _), steps in sorted(measured.items()):
        if name == parametrization:
            changes.setdefault(width, []).append(steps[step][place].change)
    return {width: sum(values) / len(values) for width, values in changes.items()}
