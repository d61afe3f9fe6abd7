"""L(N, D) from the decay branches of WSD runs, and the compute-optimal tokens a parameter (MiniCPM, section 4.5).

For each network one stable run, in segments that end where branches leave it, and from each of these points a branch
that decays: m budgets cost one run and m tenths of a run (O(m C) over networks, where runs of their own cost O(m^2 C)).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.claims import Claim, Verdict, judge_above, judge_within
from mindllm_engine.studies.findings import Picture, Table
from mindllm_engine.studies.fits import Array, Fit, fit_law, predictions
from mindllm_engine.studies.laws import (
    FLOPS,
    HOFFMANN_TOKENS_PER_PARAMETER,
    MINICPM_ALPHA,
    MINICPM_BETA,
    MINICPM_TOKENS_PER_PARAMETER,
    default_curve_fit,
    log_tokens_per_parameter,
    loss_law,
)
from mindllm_engine.studies.networks import NetworkSize, WidthRule, check_sizes, layer_parameters_of, steps_of
from mindllm_engine.studies.pictures import picture
from mindllm_engine.studies.results import Result, Results, refuse_mixed_text
from mindllm_engine.studies.seeds import Estimate
from mindllm_engine.studies.trials import Trial

SOURCE = "MiniCPM, section 4.5"
PAPERS_RATIO = f"{MINICPM_TOKENS_PER_PARAMETER:g} on average, 96 to 834 by text, at C = 1e21 (Figure 10)"
# Of a budget, what decays (MiniCPM, section 4.3: about a tenth suffices).
DECAY = 0.1
LEAST = 3
KIND = "data_law"


@dataclass
class DataLawConfig:
    """Networks and budgets for L(N, D)."""

    sizes: list[NetworkSize]
    """Networks, three at least."""
    tokens: list[float] = field(default_factory=list)
    """Budgets in tokens, the same for all networks, three at least; or give tokens_per_parameter."""
    tokens_per_parameter: list[float] = field(default_factory=list)
    """Budgets in tokens for each of a network's parameters without the embedding, three at least; or give tokens."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        check_sizes(self.sizes, LEAST, "batch_size.data_law.sizes")
        if bool(self.tokens) == bool(self.tokens_per_parameter):
            raise ConfigError("batch_size.data_law.tokens: give this or tokens_per_parameter, one of the two")
        budgets = self.tokens or self.tokens_per_parameter
        if len(set(budgets)) < max(LEAST, len(budgets)) or not min(budgets) > 0:
            raise ConfigError(
                f"batch_size.data_law.tokens: {budgets} must be {LEAST} different budgets at least, above 0"
            )

    def trials(self, base: Mapping[str, Any], seed: int, learning_rate: WidthRule) -> list[Trial]:
        """Of each network the segments of the stable run, each followed by its branch. Raises ConfigError."""
        self.validate()
        return [trial for size in self.sizes for trial in self._of_size(size, base, seed, learning_rate)]

    def _of_size(self, size: NetworkSize, base: Mapping[str, Any], seed: int, learning_rate: WidthRule) -> list[Trial]:
        changes = size.changes(base)
        unit = layer_parameters_of(changes, base) if self.tokens_per_parameter else 1
        batch = int(base["train"]["global_batch_size"])
        ends = sorted(steps_of(unit * budget, batch, base) for budget in self.tokens or self.tokens_per_parameter)
        # As the schedule rounds it (optim/schedules.py).
        leaves = [end - round(DECAY * end) for end in ends]
        warmup = int((base.get("optim") or {}).get("schedule", {}).get("warmup_steps", 0))
        if leaves[0] <= warmup or len(set(leaves)) < len(leaves):
            raise ConfigError(
                f"batch_size.data_law.tokens: {size.name} would branch at steps {leaves}, which must differ and lie "
                f"beyond optim.schedule.warmup_steps = {warmup}; take larger budgets or smaller batches"
            )
        changes |= learning_rate.changes(size) | {"run.seed": seed}
        settings = {"experiment": KIND, "size": size.name, "seed": seed}
        trials: list[Trial] = []
        before: tuple[str, int] | None = None
        for place, (leave, end) in enumerate(zip(leaves, ends, strict=True)):
            stable = f"{KIND}_{size.name}_stable{leave}_seed{seed}"
            reads = _blocks(base, batch, leaves[: place + 1])
            steady = {"train.steps": leave, "optim.schedule.kind": "constant", "data.blocks": reads}
            trials.append(Trial(stable, changes | steady, settings | {"part": "stable"}, continues=before))
            decaying = {
                "train.steps": end,
                "optim.schedule.kind": "wsd",
                "optim.schedule.decay_fraction": DECAY,
                "data.blocks": _blocks(base, batch, [*leaves[: place + 1], end]),
            }
            branch = f"{KIND}_{size.name}_decayed{end}_seed{seed}"
            trials.append(Trial(branch, changes | decaying, settings | {"part": "decayed"}, continues=(stable, leave)))
            before = (stable, leave)
        return trials


def _blocks(base: Mapping[str, Any], batch: int, ends: list[int]) -> list[dict[str, Any]]:
    """The base's block once for each stretch of steps, so that what a branch goes on from has its own size in every
    trial that reads it."""
    given = base["data"].get("blocks") or [{}]
    if len(given) > 1 or given[0].get("tokens"):
        raise ConfigError("data.blocks: the branches need one block without a token budget; give one such")
    tokens = batch * int(given[0].get("seq_len") or base["data"]["seq_len"])
    return [{**given[0], "tokens": (end - begin) * tokens} for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class DataLaw:
    """What the branches say.

    Attributes:
        claims, tables, pictures, numbers: as `Findings` has them.
    """

    claims: list[Claim]
    tables: list[Table]
    pictures: list[Picture]
    numbers: dict[str, Any]


def fit_data_law(results: Results) -> DataLaw:
    """Fit L(N, D), in bits per byte as the paper does, to the decayed branches. Raises DataError."""
    purpose = "L(N, D)"
    branches = list(results.with_settings(experiment=KIND, part="decayed"))
    refuse_mixed_text(branches, purpose)
    parameters = np.array([float(result.layer_parameters) for result in branches])
    all_parameters = np.array([float(result.parameters) for result in branches])
    tokens = np.array([float(result.tokens) for result in branches])
    loss = np.array([float(result.last["heldout_bpb"]) for result in branches])
    fit = fit_law({"N": parameters, "D": tokens}, loss, purpose)
    compute = float((FLOPS * parameters * tokens).max())
    # The same with the embedding in N, which small networks mostly consist of: how much hangs on what is counted.
    other = _optimal_ratio(
        fit_law({"N": all_parameters, "D": tokens}, loss, purpose), float((FLOPS * all_parameters * tokens).max())
    )
    ratio = _optimal_ratio(fit, compute)
    gap = fit.estimate(lambda law: law[..., 2] - law[..., 4])
    plain = default_curve_fit(
        lambda point, *law: loss_law(point[0], point[1], np.array(law)), (parameters, tokens), loss
    )
    measured = tokens / parameters
    return DataLaw(
        _claims(fit, ratio, gap, compute, (float(measured.min()), float(measured.max()))),
        [_runs_table(branches), _law_table(fit, plain, compute, other)],
        [_loss_picture(branches, fit), _contour_picture(parameters, tokens, fit)],
        {
            "law": {
                name: fit.unknown(place).as_json() for place, name in enumerate(("floor", "A", "alpha", "B", "beta"))
            },
            "compute": compute,
            "tokens_per_parameter": ratio.as_json(),
            "tokens_per_parameter_with_embedding": other.as_json(),
            "measured_tokens_per_parameter": [float(measured.min()), float(measured.max())],
            "curve_fit": plain,
        },
    )


def _optimal_ratio(fit: Fit, compute: float) -> Estimate:
    return fit.estimate(lambda law: np.exp(log_tokens_per_parameter(compute, law)))


def _claims(fit: Fit, ratio: Estimate, gap: Estimate, compute: float, measured: tuple[float, float]) -> list[Claim]:
    here = f"{_short(ratio)} at C = {compute:.2e}; the runs have {measured[0]:.2g} to {measured[1]:.2g}"
    paper = MINICPM_TOKENS_PER_PARAMETER
    above, why_above = _bracketed(judge_above(ratio, HOFFMANN_TOKENS_PER_PARAMETER), ratio, measured)
    near, why_near = _bracketed(judge_within(ratio, paper / 2, paper * 2), ratio, measured)
    grows, why_grows = judge_above(gap, 0.0)
    alpha, beta = fit.unknown(2), fit.unknown(4)
    return [
        Claim(
            f"Compute-optimal training takes more than {HOFFMANN_TOKENS_PER_PARAMETER:g} tokens a parameter",
            SOURCE,
            PAPERS_RATIO,
            here,
            above,
            why_above,
        ),
        Claim(
            f"It takes {paper:g} tokens a parameter, within a factor of two",
            SOURCE,
            PAPERS_RATIO,
            here,
            near,
            why_near,
        ),
        Claim(
            "alpha is above beta: with more compute, tokens should grow faster than parameters",
            f"{SOURCE}, equation 2",
            f"alpha = {MINICPM_ALPHA}, beta = {MINICPM_BETA}",
            f"alpha = {_short(alpha)}, beta = {_short(beta)}, alpha - beta = {_short(gap)}",
            grows,
            why_grows,
        ),
    ]


def _bracketed(judged: tuple[Verdict, str], ratio: Estimate, measured: tuple[float, float]) -> tuple[Verdict, str]:
    """An optimum is one only where the runs lie on both sides of it, as one of the batch sizes is."""
    least, most = measured
    if least <= ratio.value <= most:
        return judged
    reason = f"{ratio.value:.3g} is an extrapolation beyond the runs' D / N, {least:.2g} to {most:.2g} ({judged[1]})"
    return "not decidable", reason


def _short(estimate: Estimate) -> str:
    """Three digits, whatever the size: an interval may reach over many powers of ten."""
    interval = f" ({estimate.low:.3g} to {estimate.high:.3g})" if estimate.is_bounded else " (no interval)"
    return f"{estimate.value:.3g}{interval}"


def _runs_table(branches: list[Result]) -> Table:
    rows = [
        [
            result.name,
            f"{result.layer_parameters / 1e6:,.2f}",
            f"{result.tokens / 1e6:,.2f}",
            f"{result.tokens / result.layer_parameters:.2f}",
            f"{result.last['heldout_bpb']:.4f}",
            f"{result.loss:.4f}",
        ]
        for result in branches
    ]
    header = ["branch", "N (M)", "D (M)", "D / N", "bits per byte", "nats a token"]
    return Table("Decay branches", header, rows, f"Each decays over {DECAY:.0%} of its budget. One seed.")


def _law_table(fit: Fit, plain: list[float] | None, compute: float, with_embedding: Estimate) -> Table:
    rows = []
    for place, name in enumerate(("L0", "C_N", "alpha", "C_D", "beta")):
        found = f"{plain[place]:.4g}" if plain is not None else "gave up"
        rows.append([name, _short(fit.unknown(place)), found])
    for scale in (0.1, 1.0, 10.0):
        ratio = _optimal_ratio(fit, scale * compute)
        found = "gave up"
        if plain is not None:
            with np.errstate(all="ignore"):
                found = f"{np.exp(log_tokens_per_parameter(scale * compute, np.array(plain))):.3g}"
        rows.append([f"optimal D / N at C = {scale * compute:.1e}", _short(ratio), found])
    rows.append(["the same at the largest, N with the embedding", _short(with_embedding), ""])
    header = ["L = C_N N^-alpha + C_D D^-beta + L0", "grid of starts, log-Huber", "curve_fit from its default start"]
    note = "Bits per byte; N is without the embedding. The largest compute of the runs is the middle one."
    return Table("The law and the optimum", header, rows, note)


def _loss_picture(branches: list[Result], fit: Fit) -> Picture:
    def draw(axes: Any) -> None:
        for size in dict.fromkeys(result.settings["size"] for result in branches):
            of_size = sorted((r for r in branches if r.settings["size"] == size), key=lambda r: r.tokens)
            tokens = np.array([float(result.tokens) for result in of_size])
            line = np.geomspace(tokens.min(), tokens.max(), 40)
            parameters = np.full_like(line, of_size[0].layer_parameters)
            (drawn,) = axes.plot(line, predictions(fit.law[None], np.array([parameters, line]))[0], lw=0.9)
            losses = [result.last["heldout_bpb"] for result in of_size]
            axes.plot(
                tokens, losses, "o", ms=4, color=drawn.get_color(), label=f"{of_size[0].layer_parameters / 1e6:,.2f} M"
            )
        axes.set(xscale="log", xlabel="tokens D", ylabel="held-out bits per byte")

    return picture("data_law", "Decay branches and the fitted L(N, D) (MiniCPM, Figure 17).", draw)


def _contour_picture(parameters: Array, tokens: Array, fit: Fit) -> Picture:
    def draw(axes: Any) -> None:
        sizes = np.geomspace(parameters.min() / 2, parameters.max() * 2, 60)
        grid_n, grid_d = np.meshgrid(sizes, np.geomspace(tokens.min(), tokens.max() * 4, 60))
        loss = loss_law(grid_n, grid_d, fit.law)
        axes.contour(FLOPS * grid_n * grid_d, grid_n, loss, levels=20, linewidths=0.7)
        axes.plot(FLOPS * parameters * tokens, parameters, "k.", label="branches")
        compute = np.geomspace((FLOPS * parameters * tokens).min(), (FLOPS * parameters * tokens).max() * 4, 40)
        best = [np.sqrt(c / FLOPS / np.exp(log_tokens_per_parameter(c, fit.law))) for c in compute]
        axes.plot(compute, best, "r-", label="optimal N")
        axes.set(xscale="log", yscale="log", xlabel="compute 6 N D", ylabel="parameters N")

    return picture("data_law_optimum", "Equal loss over compute and size, and the optimum (MiniCPM, Figure 10).", draw)
