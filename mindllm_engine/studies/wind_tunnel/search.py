"""Part of the wind tunnel: Bayesian search of a small network's hyperparameters (MiniCPM, appendix A.1 and Fig. 14).

Optuna's tree-structured Parzen estimator asks for a batch of trials at a time. Its study is built again for every
batch from the trials that have ended, with a seed of the batch's own, so that a search which was interrupted asks for
the same trials again. The best setting is then trained with every seed beside the paper's, which is that of the runs'
config.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.claims import Claim, judge_below, judge_within, not_decidable
from mindllm_engine.studies.findings import Findings, Picture, Table
from mindllm_engine.studies.pictures import picture
from mindllm_engine.studies.results import Results, refuse_mixed_text
from mindllm_engine.studies.seeds import Estimate, paired_estimate
from mindllm_engine.studies.trials import Trial, named
from mindllm_engine.studies.wind_tunnel.parametrization import base_network, rate_changes
from mindllm_engine.studies.wind_tunnel.trial_loss import loss_or_ignorance

SOURCE = "MiniCPM appendix A.1, Fig. 14"
PART = "search"
# Nats by which two settings may differ and count as equally good.
EQUAL = 0.03
# The search's own trials have this seed, which is not among those that compare what it found: the least of many
# noisy losses is too low.
SEARCH_SEED = 0

Setting = dict[str, float]


@dataclass
class Ranges:
    """Between which values to search, evenly in their logarithm."""

    scale_emb: tuple[float, float]
    """Factor of the embedding's output."""
    scale_depth: tuple[float, float]
    """Factor of the branches, over the root of the number of layers."""
    init_std: tuple[float, float]
    """Initial standard deviation at the base width."""
    lr: tuple[float, float]
    """Peak learning rate at the base width."""


@dataclass
class SearchConfig:
    """A search over the network of the runs' config."""

    ranges: Ranges
    """Of the four hyperparameters."""
    batches: int = 4
    """How often the search asks."""
    batch_size: int = 6
    """Trials that it asks for at a time; those of the first batch are drawn at random."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Further changes of the runs' config, by dotted key: a search may be of shorter runs."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """The paper's setting with every seed, the batches of which the earlier ones have ended, and at last the best
        setting with every seed."""
        self._validate(seeds)
        found = [self._compared(base, "paper", paper_setting(base), seed) for seed in seeds]
        asked: list[tuple[Setting, float]] = []
        for batch in range(self.batches):
            settings = propose(self.ranges, asked, self.batch_size, seed=batch)
            found += [self._searched(base, batch, number, setting) for number, setting in enumerate(settings)]
            if finished is None:
                return found
            losses = [loss_or_ignorance(finished, _name(batch, number)) for number in range(self.batch_size)]
            if all(loss is None for loss in losses):
                return found  # not trained yet
            asked += [(setting, loss) for setting, loss in zip(settings, losses, strict=True) if loss is not None]
        best = min(asked, key=lambda entry: entry[1])[0]
        return found + [self._compared(base, "found", best, seed) for seed in seeds]

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """What was found, how sharply, and whether it is better than the paper's setting."""
        results = results.where(lambda result: result.settings.get("part") == PART)
        refuse_mixed_text(results, "hyperparameter search")
        searched = [(result.settings["setting"], result.loss) for result in results.with_settings(kind="searched")]
        paper, found = (results.with_settings(kind=kind) for kind in ("paper", "found"))
        noise = _deviation([[result.loss for result in of] for of in (paper, found)])
        claims = [self._equal_claim(paper, found)]
        given: Setting = next((result.settings["setting"] for result in paper), {})
        claims += [_place_claim(name, given.get(name), near_best(searched, name, noise)) for name in _names()]
        return Findings(
            "Hyperparameter search",
            claims,
            [_table(searched, noise)],
            [_picture(searched, given)],
            {"searched": [setting | {"loss": loss} for setting, loss in searched], "deviation_over_seeds": noise},
        )

    def _validate(self, seeds: Sequence[int]) -> None:
        for name, (low, high) in ((name, getattr(self.ranges, name)) for name in _names()):
            if not 0 < low < high < math.inf:
                raise ConfigError(f"search.ranges.{name}: {low} to {high} must be a range above 0")
        if self.batches < 1 or self.batch_size < 1:
            raise ConfigError(f"search: batches {self.batches} and batch_size {self.batch_size} must be at least 1")
        if SEARCH_SEED in seeds:
            raise ConfigError(f"study.seeds: {SEARCH_SEED} is the search's own; take another")

    def _searched(self, base: Mapping[str, Any], batch: int, number: int, setting: Setting) -> Trial:
        settings = {"part": PART, "kind": "searched", "setting": setting, "batch": batch}
        return Trial(_name(batch, number), self._changed(base, setting, SEARCH_SEED), settings)

    def _compared(self, base: Mapping[str, Any], kind: str, setting: Setting, seed: int) -> Trial:
        settings = {"part": PART, "kind": kind, "setting": setting, "seed": seed}
        return Trial(f"{PART}_{kind}_" + named(seed=seed), self._changed(base, setting, seed), settings)

    def _changed(self, base: Mapping[str, Any], setting: Setting, seed: int) -> dict[str, Any]:
        network = {f"model.minicpm.{name}": value for name, value in setting.items() if name != "lr"}
        return network | rate_changes(base, setting["lr"]) | {"run.seed": seed} | self.changes

    def _equal_claim(self, paper: Results, found: Results) -> Claim:
        statement = f"The paper's setting is as good as the best that the search finds (to {EQUAL} nats)"
        if not set(_by_seed(paper)) & set(_by_seed(found)):
            return not_decidable(statement, SOURCE, "", "no seed has trained both settings")
        worse = paired_estimate(_by_seed(paper), _by_seed(found))
        return Claim(statement, SOURCE, "", f"worse by {worse.text(3)} nats", *judge_below(worse, EQUAL))


def propose(ranges: Ranges, asked: Sequence[tuple[Setting, float]], count: int, seed: int) -> list[Setting]:
    """The settings to try next, by what (setting, loss) pairs say; the same arguments give the same settings.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("search: needs Optuna; install mindllm-engine[studies]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bounds: dict[str, tuple[float, float]] = {name: getattr(ranges, name) for name in _names()}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=True) for name, (low, high) in bounds.items()
    }
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
    study = optuna.create_study(sampler=sampler)
    for setting, loss in asked:
        study.add_trial(optuna.trial.create_trial(params=setting, distributions=distributions, value=loss))
    proposed = [study.ask(distributions).params for _ in range(count)]
    return [{name: _rounded(value, *bounds[name]) for name, value in params.items()} for params in proposed]


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.4g}"), low), high)


def paper_setting(base: Mapping[str, Any]) -> Setting:
    """The setting of the runs' config. Raises ConfigError where a hyperparameter is missing."""
    values = {**base_network(base), "lr": (base.get("optim") or {}).get("lr")}
    missing = [name for name in _names() if values.get(name) is None]
    if missing:
        raise ConfigError(f"{missing[0]}: missing in the runs' config; the search compares itself with it")
    return {name: float(values[name]) for name in _names()}


def near_best(searched: Sequence[tuple[Setting, float]], name: str, deviation: float | None) -> Estimate | None:
    """A hyperparameter's best value, and between which values lie the settings whose loss is within two deviations of
    a difference between seeds from the least. None where there are none, or the deviation is unknown."""
    if not searched or deviation is None:
        return None
    best, least = min(searched, key=lambda entry: entry[1])
    near = [setting[name] for setting, loss in searched if loss <= least + 2 * math.sqrt(2) * deviation]
    if len(near) < 3:
        return Estimate(best[name], -math.inf, math.inf, len(near))
    return Estimate(best[name], min(near), max(near), len(near))


def _place_claim(name: str, paper: float | None, here: Estimate | None) -> Claim:
    """Whether the good values of a hyperparameter lie within a factor of two of the paper's."""
    statement = (
        f"{name} is best within a factor of two of {paper:g}" if paper else f"{name} is best where the paper's is"
    )
    shown = f"{paper:g}" if paper else ""
    if paper is None or here is None:
        return not_decidable(statement, SOURCE, shown, "too few trials have finished")
    verdict, reason = judge_within(here, paper / 2, paper * 2)
    if not here.is_bounded:
        reason = f"only {here.count} of the settings tried are as good as the best; search longer"
    return Claim(statement, SOURCE, shown, here.text(3), verdict, reason)


def _deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation over seeds, pooled over settings; None where no setting has two."""
    squares = [sum((loss - sum(group) / len(group)) ** 2 for loss in group) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    return math.sqrt(sum(squares) / freedom) if freedom else None


def _table(searched: Sequence[tuple[Setting, float]], noise: float | None) -> Table:
    rows = [
        [f"{loss:.4f}", *(f"{setting[name]:.4g}" for name in _names())]
        for setting, loss in sorted(searched, key=lambda entry: entry[1])[:8]
    ]
    note = "The best of all." if noise is None else f"The best of all; standard deviation over seeds {noise:.4f} nats."
    return Table("Settings searched", ["held-out loss", *_names()], rows, note)


def _picture(searched: Sequence[tuple[Setting, float]], given: Setting) -> Picture:
    def draw(*panels: Any) -> None:
        for name, axes in zip(_names(), panels, strict=True):
            axes.plot([setting[name] for setting, _ in searched], [loss for _, loss in searched], "o", markersize=4)
            if name in given:
                axes.axvline(given[name], color="grey", linestyle=":", linewidth=1, label="paper")
            axes.set(xscale="log", xlabel=name)
        panels[0].set_ylabel("held-out loss (nats a token)")

    caption = "Held-out loss of every setting searched; dotted: the paper's."
    return picture("search", caption, draw, columns=len(_names()), height=4.0, one_scale=True)


def _by_seed(results: Results) -> dict[int, float]:
    return results.by_seed(lambda result: result.loss)


def _names() -> list[str]:
    return [entry.name for entry in fields(Ranges)]


def _name(batch: int, number: int) -> str:
    return f"{PART}_" + named(batch=batch, trial=number)
