"""Scaling law of the loss with compute (MindLLM, arXiv 2310.15777, section 2.4.1, equation 1, Figures 1 and 2).

A ladder of networks, each trained on a constant number of tokens a parameter. The largest is left out of the fit and
predicted from the others. Figure 1 is redrawn as the loss of each run along its training, Figure 2 as the fitted law.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.claims import Claim, judge_below, judge_within
from mindllm_engine.studies.findings import Findings, Picture, Table
from mindllm_engine.studies.fits import Fit, fit_law, predictions
from mindllm_engine.studies.laws import (
    FLOPS,
    MINDLLM_PRINTED_A,
    MINDLLM_PRINTED_LIMIT,
    default_curve_fit,
    power_law,
    printed_law,
)
from mindllm_engine.studies.networks import NetworkSize, WidthRule, check_sizes, parameters_of, steps_of
from mindllm_engine.studies.pictures import picture, smooth_mean
from mindllm_engine.studies.results import Result, Results, refuse_mixed_text
from mindllm_engine.studies.seeds import LEVEL, Estimate
from mindllm_engine.studies.trials import Trial, named

SOURCE = "MindLLM, section 2.4.1"
# Rungs without the one that is predicted, for the law's three unknowns.
LEAST_RUNGS = 4
# Logged steps over which the training loss is averaged in the plot.
SMOOTHING = 10
# A prediction this near is good enough to plan by, as a share of the loss.
NEAR = 0.02


@dataclass
class ScalingConfig:
    """A ladder of networks at their budgets."""

    sizes: list[NetworkSize]
    """The rungs, five at least: the largest in compute is predicted from the others."""
    tokens_per_parameter: float
    """Tokens that each is trained on, for each of its parameters (of which the embedding counts once)."""
    learning_rate: WidthRule
    """Peak learning rate of each."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        check_sizes(self.sizes, LEAST_RUNGS + 1, "scaling.sizes")
        self.learning_rate.validate("scaling.learning_rate")
        if not self.tokens_per_parameter > 0:
            raise ConfigError(f"scaling.tokens_per_parameter: {self.tokens_per_parameter} must be above 0")

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """A run for each rung and seed. Raises ConfigError."""
        self.validate()
        batch = int(base["train"]["global_batch_size"])
        trials = []
        for size in self.sizes:
            changes = size.changes(base)
            tokens = self.tokens_per_parameter * parameters_of(changes, base)
            changes |= self.learning_rate.changes(size) | {"train.steps": steps_of(tokens, batch, base)}
            for seed in seeds:
                settings = {"size": size.name, "seed": seed}
                trials.append(Trial(named(**settings), changes | {"run.seed": seed}, settings))
        return trials

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """Fit all rungs but the largest, and predict that. Raises DataError."""
        purpose = "the scaling law L(C)"
        refuse_mixed_text(results, purpose)
        largest = _largest(results, purpose)
        fitted = [result for result in results if result.settings["size"] != largest]
        held_out = [result for result in results if result.settings["size"] == largest]
        fit = _fit(fitted, purpose)
        everything = _fit(list(results), purpose)
        target = float(np.mean([_compute(result) for result in held_out]))
        measured = float(np.mean([result.loss for result in held_out]))
        predicted = fit.predict({"C": target}, measured=len(held_out))
        plain = default_curve_fit(power_law, _computes(fitted), _losses(fitted))
        printed = default_curve_fit(printed_law, _computes(fitted), _losses(fitted))
        return Findings(
            "Scaling law: loss against compute",
            _claims(list(results), everything, predicted, measured, largest),
            [_ladder_table(results), _fits_table(fit, plain, printed, target, measured, predicted)],
            [_curves_picture(results), _law_picture(results, fit, largest, target, predicted, plain)],
            {
                "largest": largest,
                "measured": measured,
                "predicted": predicted.as_json(),
                "relative_error": predicted.value / measured - 1,
                "law_without_largest": _law_json(fit),
                "law_of_all": _law_json(everything),
                "curve_fit_power_law": plain,
                "curve_fit_printed_law": printed,
            },
        )


def _largest(results: Results, purpose: str) -> str:
    """The rung of the most compute; there must be enough others."""
    compute: dict[str, float] = {result.settings["size"]: _compute(result) for result in results}
    if len(compute) <= LEAST_RUNGS:
        missing = "; ".join(f"{entry.name}: {entry.reason}" for entry in results.left_out)
        raise DataError(
            f"{purpose}: too few points: {len(compute)} rungs have finished, and {LEAST_RUNGS + 1} are needed, one of "
            f"them to predict; add rungs to scaling.sizes" + (f" (left out: {missing})" if missing else "")
        )
    return max(compute, key=lambda name: compute[name])


def _compute(result: Result) -> float:
    """Operations of the training, 6 N D."""
    return FLOPS * result.parameters * result.tokens


def _computes(results: list[Result]) -> Any:
    return np.array([_compute(result) for result in results])


def _losses(results: list[Result]) -> Any:
    return np.array([result.loss for result in results])


def _fit(results: list[Result], purpose: str) -> Fit:
    return fit_law({"C": _computes(results)}, _losses(results), purpose)


def _law_json(fit: Fit) -> dict[str, Any]:
    return {
        "floor": fit.unknown(0).as_json(),
        "coefficient": fit.unknown(1).as_json(),
        "exponent": fit.unknown(2).as_json(),
    }


def _line(results: list[Result]) -> Estimate:
    """a of the printed form, with its interval: a straight line of the loss over log C."""
    from scipy.stats import linregress, t

    line = linregress(np.log(_computes(results)), _losses(results))
    half = float(t.ppf(0.5 + LEVEL / 2, len(results) - 2) * line.stderr)
    return Estimate(float(line.slope), float(line.slope) - half, float(line.slope) + half, len(results))


def _claims(results: list[Result], fit: Fit, predicted: Estimate, measured: float, largest: str) -> list[Claim]:
    verdict, reason = judge_within(predicted, measured * (1 - NEAR), measured * (1 + NEAR))
    slope = _line(results)
    falls, because = judge_below(slope, 0.0)
    return [
        Claim(
            f"The law of the smaller networks predicts the loss of the largest to {NEAR:.0%}",
            f"{SOURCE}, Figure 2",
            "",
            f"{largest}: predicted {predicted.text()}, measured {measured:.3f} nats a token, an error of "
            f"{predicted.value / measured - 1:+.2%}",
            verdict,
            reason,
        ),
        Claim(
            "The loss falls with compute; the printed L = a log C + L_inf rises with it where a is above 0",
            f"{SOURCE}, equation 1",
            f"a = {MINDLLM_PRINTED_A}, L_inf = {MINDLLM_PRINTED_LIMIT}",
            f"the printed form fits a = {slope.text()}; the power law that is meant, (C0 / C)^a + L_inf, fits "
            f"a = {fit.unknown(2).text()}, L_inf = {fit.unknown(0).text(2)}",
            falls,
            because + " of the printed form's a",
        ),
    ]


def _ladder_table(results: Results) -> Table:
    rows = [
        [
            result.name,
            f"{result.parameters / 1e6:,.2f}",
            f"{result.tokens / 1e6:,.2f}",
            f"{_compute(result):.2e}",
            f"{result.config.optim.lr:.2e}",
            f"{result.loss:.4f}",
            f"{result.last['heldout_bpb']:.4f}",
        ]
        for result in results
    ]
    header = ["run", "parameters (M)", "tokens (M)", "compute 6 N D", "learning rate", "held-out loss", "bits per byte"]
    note = "Learning rates follow a rule of the width; no rung was tuned. Losses are nats a token."
    return Table("The ladder", header, rows, note)


def _fits_table(
    fit: Fit,
    plain: list[float] | None,
    printed: list[float] | None,
    target: float,
    measured: float,
    predicted: Estimate,
) -> Table:
    rows = [
        _fit_row("power law, grid of starts, log-Huber", list(fit.law), predicted.value, measured, predicted.text())
    ]
    if plain is not None:
        value = float(power_law(target, *plain))
        rows.append(_fit_row("power law, curve_fit from its default start", plain, value, measured))
    if printed is not None:
        value = float(printed_law(target, *printed))
        rows.append(_fit_row("as printed, a log C + L_inf, curve_fit", [printed[1], printed[0]], value, measured))
    header = [
        "fit without the largest",
        "L_inf",
        "k, or a as printed",
        "exponent",
        "predicted",
        "error",
        "with interval",
    ]
    gave_up = [name for name, found in (("power law", plain), ("printed form", printed)) if found is None]
    return Table(
        "The largest network predicted from the others",
        header,
        rows,
        f"curve_fit gave up on: {', '.join(gave_up)}." if gave_up else "",
    )


def _fit_row(name: str, law: list[float], value: float, measured: float, text: str = "") -> list[str]:
    numbers = [f"{number:.4g}" for number in law] + [""] * (3 - len(law))
    return [name, *numbers, f"{value:.4f}", f"{value / measured - 1:+.2%}", text]


def _curves_picture(results: Results) -> Picture:
    """Figure 1: the loss along the runs of each rung."""

    def draw(axes: Any) -> None:
        for parameters in sorted({result.parameters for result in results}):
            runs = [result.training_losses for result in results if result.parameters == parameters]
            tokens, losses = smooth_mean(runs, SMOOTHING)
            compute = [FLOPS * parameters * count for count in tokens]
            axes.plot(compute, losses, lw=0.9, label=f"{parameters / 1e6:,.2f} M")
        axes.set(xscale="log", xlabel="compute 6 N D", ylabel="training loss (nats a token)")

    caption = f"Training loss against compute (MindLLM, Figure 1), mean over seeds and {SMOOTHING} logged steps."
    return picture("loss_curves", caption, draw)


def _law_picture(
    results: Results, fit: Fit, largest: str, target: float, predicted: Estimate, plain: list[float] | None
) -> Picture:
    """Figure 2: the fitted law, and the largest beside its prediction."""

    def draw(axes: Any) -> None:
        fitted = [result for result in results if result.settings["size"] != largest]
        held_out = [result for result in results if result.settings["size"] == largest]
        compute = np.geomspace(_computes(fitted).min() * 0.8, target * 1.5, 80)
        axes.plot(compute, predictions(fit.law[None], compute[None])[0], label="power law, log-Huber")
        band = np.quantile(predictions(fit.samples, compute[None]), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
        axes.fill_between(compute, *band, alpha=0.2)
        if plain is not None:
            axes.plot(compute, power_law(compute, *plain), "--", lw=0.9, label="power law, curve_fit")
        axes.plot(_computes(fitted), _losses(fitted), "o", ms=4, label="fitted")
        axes.plot(_computes(held_out), _losses(held_out), "r*", ms=9, label="left out")
        if predicted.is_bounded:
            spread = [[predicted.value - predicted.low], [predicted.high - predicted.value]]
            axes.errorbar([target], [predicted.value], spread, fmt="kx", capsize=4, label="predicted")
        axes.set(xscale="log", xlabel="compute 6 N D", ylabel="held-out loss (nats a token)")

    caption = "The law fitted to all but the largest, and the largest beside its prediction (MindLLM, Figure 2)."
    return picture("scaling_law", caption, draw)
