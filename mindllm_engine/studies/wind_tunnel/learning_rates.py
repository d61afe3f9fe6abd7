"""Part of the wind tunnel: the best learning rate across widths (MiniCPM, arXiv 2404.06395, section 3.3 and Fig. 3).

Each network of the ladder is trained at each rate of a grid, by both parametrisations and every seed. Where the best
rate lies at an end of the grid, the grid grows there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.claims import Claim, judge_above, judge_below, judge_within, not_decidable
from mindllm_engine.studies.findings import Findings, Picture, Table
from mindllm_engine.studies.pictures import picture
from mindllm_engine.studies.results import Results, refuse_mixed_text
from mindllm_engine.studies.seeds import Estimate, mean_estimate, paired_estimate
from mindllm_engine.studies.trials import Trial, named
from mindllm_engine.studies.wind_tunnel.best_rate import BestRate, best_rate
from mindllm_engine.studies.wind_tunnel.parametrization import (
    PARAMETRIZATIONS,
    SHOWN,
    Parametrization,
    base_network,
    network_at,
    rate_changes,
)
from mindllm_engine.studies.wind_tunnel.trial_loss import loss_or_ignorance

SOURCE = "MiniCPM section 3.3, Fig. 3"
PART = "learning_rates"
# MiniCPM section 3.3: the best rate that it finds at every width.
PAPER_RATE = 0.01


@dataclass
class LearningRatesConfig:
    """The ladder of widths, and the grid of learning rates."""

    rates: list[float]
    """Learning rates, each the same factor above the one before."""
    widths: list[int]
    """Hidden sizes, the smallest first."""
    layers: list[int] = field(default_factory=list)
    """Layers at each width; empty for those of the runs' config."""
    extensions: int = 3
    """By how many rates the grid may grow at either end, for a network whose best rate lies there."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """The grid of every network, and what it grows by."""
        self._validate()
        base_width = base_network(base)["width_base"]
        depths = dict(zip(self.widths, self.layers, strict=True)) if self.layers else {}
        found: dict[str, Trial] = {}
        for width in self.widths:
            for parametrization in PARAMETRIZATIONS:
                shared = _parametrization(width, base_width, parametrization)
                for rate in self._grid(finished, width, shared, seeds):
                    for seed in seeds:
                        name = _name(width, shared, rate, seed)
                        changes = network_at(base, width, depths.get(width), shared) | rate_changes(base, rate)
                        settings = {
                            "part": PART, "width": width, "parametrization": shared, "base": width == base_width,
                            "rate": rate, "seed": seed,
                        }  # fmt: skip
                        found[name] = Trial(name, changes | {"run.seed": seed}, settings)
        return list(found.values())

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """The best rate of every network, and how far it moves with the width."""
        results = results.where(lambda result: result.settings.get("part") == PART)
        refuse_mixed_text(results, "best learning rates")
        base_widths = {result.settings["width"] for result in results if result.settings["base"]}
        best = {
            (parametrization, width): self._best(
                results, width, "minicpm" if width in base_widths else parametrization, seeds
            )
            for parametrization in PARAMETRIZATIONS
            for width in self.widths
        }
        return Findings(
            "Best learning rate across widths",
            [*self._claims(best), self._transfer_claim(results, base_widths, seeds)],
            [self._table(best)],
            [self._picture(results, seeds, base_widths)],
            {f"{name}_{width}": _as_json(of_seeds) for (name, width), of_seeds in best.items()},
        )

    def _validate(self) -> None:
        if len(set(self.rates)) < 3 or not all(0 < rate < math.inf for rate in self.rates):
            raise ConfigError(f"learning_rates.rates: {self.rates} must be three different rates at least, above 0")
        factors = [later / rate for rate, later in zip(self.rates, self.rates[1:], strict=False)]
        if any(factor <= 1 or abs(factor - factors[0]) > 1e-6 * factors[0] for factor in factors):
            raise ConfigError(f"learning_rates.rates: {self.rates} must each be the same factor above the one before")
        if len(self.widths) < 2 or self.widths != sorted(set(self.widths)):
            raise ConfigError(f"learning_rates.widths: {self.widths} must be two at least, the smallest first")
        if self.layers and len(self.layers) != len(self.widths):
            raise ConfigError(f"learning_rates.layers: {len(self.layers)} numbers for {len(self.widths)} widths")
        if self.extensions < 0:
            raise ConfigError(f"learning_rates.extensions: {self.extensions} must not be negative")

    def _grid(
        self, results: Results | None, width: int, parametrization: Parametrization, seeds: Sequence[int]
    ) -> list[float]:
        """The rates at which to train a network: those asked for, grown at an end as long as some seed is best there
        and all that the grid has is known."""
        grid, factor = list(self.rates), self.rates[1] / self.rates[0]
        if results is None:
            return grid
        down = up = 0
        while True:
            losses = [_losses(results, width, parametrization, grid, seed) for seed in seeds]
            if not all(len(of_seed) == len(grid) for of_seed in losses):
                return grid
            edges = {best_rate(of_seed).edge for of_seed in losses}
            if "lowest" in edges and down < self.extensions:
                down += 1
                grid = [_rounded(grid[0] / factor), *grid]
            elif "highest" in edges and up < self.extensions:
                up += 1
                grid = [*grid, _rounded(grid[-1] * factor)]
            else:
                return grid

    def _best(
        self, results: Results, width: int, parametrization: Parametrization, seeds: Sequence[int]
    ) -> dict[int, BestRate]:
        """Seed -> best rate, of the seeds that have trials enough."""
        grid = self._grid(results, width, parametrization, seeds)
        losses = {seed: _losses(results, width, parametrization, grid, seed) for seed in seeds}
        return {seed: best_rate(of_seed) for seed, of_seed in losses.items() if len(of_seed) >= 3}

    def _claims(self, best: Mapping[tuple[Parametrization, int], Mapping[int, BestRate]]) -> list[Claim]:
        first, last = self.widths[0], self.widths[-1]
        claims = []
        statements: dict[Parametrization, str] = {
            "minicpm": "By MiniCPM's rules the best learning rate moves by less than a factor of two",
            "standard": "Without them the best learning rate falls by more than a factor of two",
        }
        for parametrization, statement in statements.items():
            statement += f" from width {first} to {last}"
            paper = "no noticeable shift from 0.04B to 0.5B and 2.1B" if parametrization == "minicpm" else ""
            ends = (best[parametrization, first], best[parametrization, last])
            reason = _undecided(ends)
            if reason:
                claims.append(not_decidable(statement, SOURCE, paper, reason))
                continue
            factor = _power(paired_estimate(_logs(ends[1]), _logs(ends[0])))
            verdict = judge_within(factor, 1 / 2, 2) if parametrization == "minicpm" else judge_below(factor, 1 / 2)
            claims.append(Claim(statement, SOURCE, paper, f"times {factor.text(2)}", *verdict))
        statement = f"At width {last} the best learning rate by MiniCPM's rules lies above the one without them"
        ends = (best["minicpm", last], best["standard", last])
        reason = _undecided(ends)
        if reason:
            claims.append(not_decidable(statement, SOURCE, "", reason))
        else:
            factor = _power(paired_estimate(_logs(ends[0]), _logs(ends[1])))
            claims.append(Claim(statement, SOURCE, "", f"times {factor.text(2)}", *judge_above(factor, 1)))
        statement = f"By MiniCPM's rules width {last} is best within a factor of two of the learning rate {PAPER_RATE}"
        paper, of_seeds = f"{PAPER_RATE}", best["minicpm", last]
        reason = _undecided((of_seeds,))
        if reason:
            claims.append(not_decidable(statement, SOURCE, paper, reason))
        else:
            rate = _rate_estimate(of_seeds)
            verdict = judge_within(rate, PAPER_RATE / 2, PAPER_RATE * 2)
            claims.append(Claim(statement, SOURCE, paper, rate.text(4), *verdict))
        return claims

    def _transfer_claim(self, results: Results, base_widths: set[int], seeds: Sequence[int]) -> Claim:
        """What the rules are for: a rate found on the narrowest network serves the widest."""
        first, last = self.widths[0], self.widths[-1]
        unruled: Parametrization = "minicpm" if last in base_widths else "standard"
        networks: list[tuple[int, Parametrization]] = [(first, "minicpm"), (last, "minicpm"), (last, unruled)]
        narrow, ours, theirs = (
            {seed: _losses(results, width, rules, self.rates, seed) for seed in seeds} for width, rules in networks
        )
        known = [rate for rate in self.rates if all(rate in losses for losses in narrow.values())]
        statement = f"At the learning rate that is best for width {first}, width {last} learns more by MiniCPM's rules"
        if known:
            rate = min(known, key=lambda rate: sum(losses[rate] for losses in narrow.values()))
            statement += f" than without them ({rate:g})"
            by_seed = [{seed: losses[rate] for seed, losses in of.items() if rate in losses} for of in (ours, theirs)]
            if by_seed[0].keys() & by_seed[1].keys():
                apart = paired_estimate(*by_seed)
                return Claim(statement, SOURCE, "", f"{apart.text(3)} nats a token", *judge_below(apart, 0))
        return not_decidable(statement, SOURCE, "", "too few rates have a loss")

    def _table(self, best: Mapping[tuple[Parametrization, int], Mapping[int, BestRate]]) -> Table:
        rows = [
            [str(width), *(_shown(best[parametrization, width]) for parametrization in PARAMETRIZATIONS)]
            for width in self.widths
        ]
        header = ["width", *(SHOWN[parametrization] for parametrization in PARAMETRIZATIONS)]
        note = "Geometric mean over seeds, with its interval by Student's t."
        return Table("Best learning rate", header, rows, note)

    def _picture(self, results: Results, seeds: Sequence[int], base_widths: set[int]) -> Picture:
        def draw(*panels: Any) -> None:
            for parametrization, axes in zip(PARAMETRIZATIONS, panels, strict=True):
                for width in self.widths:
                    shared = "minicpm" if width in base_widths else parametrization
                    grid = self._grid(results, width, shared, seeds)
                    of_seeds = [_losses(results, width, shared, grid, seed) for seed in seeds]
                    rates = [rate for rate in grid if any(rate in losses for losses in of_seeds)]
                    means = [
                        sum(losses[rate] for losses in of_seeds if rate in losses)
                        / sum(rate in losses for losses in of_seeds)
                        for rate in rates
                    ]
                    axes.plot(rates, means, "o-", markersize=3, label=f"width {width}")
                axes.set(xscale="log", xlabel="peak learning rate", title=SHOWN[parametrization])
                axes.set_ylabel("held-out loss (nats a token)")

        caption = "Held-out loss over peak learning rate, mean over seeds; a diverged run counts as a uniform guess."
        return picture("learning_rates", caption, draw, columns=len(PARAMETRIZATIONS), one_scale=True)


def _parametrization(width: int, base_width: int, wanted: Parametrization) -> Parametrization:
    """At the base width both are the same network, which is trained once."""
    return "minicpm" if width == base_width else wanted


def _name(width: int, parametrization: Parametrization, rate: float, seed: int) -> str:
    return f"{PART}_{parametrization}_" + named(width=width, lr=rate, seed=seed)


def _losses(
    results: Results, width: int, parametrization: Parametrization, grid: Sequence[float], seed: int
) -> dict[float, float]:
    """Rate -> loss, of the rates that have one."""
    found = {rate: loss_or_ignorance(results, _name(width, parametrization, rate, seed)) for rate in grid}
    return {rate: loss for rate, loss in found.items() if loss is not None}


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")


def _logs(best: Mapping[int, BestRate]) -> dict[int, float]:
    """Seed -> binary logarithm of the best rate."""
    return {seed: math.log2(entry.rate) for seed, entry in best.items()}


def _power(logs: Estimate) -> Estimate:
    """From binary logarithms back to numbers."""
    return Estimate(2**logs.value, 2**logs.low, 2**logs.high, logs.count)


def _rate_estimate(best: Mapping[int, BestRate]) -> Estimate:
    return _power(mean_estimate(list(_logs(best).values())))


def _edges(best: Mapping[int, BestRate]) -> list[str]:
    return sorted({f"the {entry.edge} rate tried, {entry.rate:g}" for entry in best.values() if entry.edge})


def _undecided(networks: Sequence[Mapping[int, BestRate]]) -> str | None:
    """Why the best rates of these networks cannot be compared; None where they can."""
    for best in networks:
        if not best:
            return "too few rates have a loss"
        if _edges(best):
            return f"a best rate is {_edges(best)[0]}, and the true one may lie beyond; let the grid grow further"
    return None


def _shown(best: Mapping[int, BestRate]) -> str:
    if not best:
        return "too few rates"
    edges = _edges(best)
    return f"at {' and '.join(edges)}" if edges else _rate_estimate(best).text(4)


def _as_json(best: Mapping[int, BestRate]) -> dict[str, Any]:
    return {str(seed): {"rate": entry.rate, "edge": entry.edge} for seed, entry in best.items()}
