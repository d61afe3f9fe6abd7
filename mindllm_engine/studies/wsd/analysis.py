"""What the trials of experiment.py say of MiniCPM's claims (arXiv 2404.06395, sections 4.2 to 4.5 and 5).

A loss is the mean over the pre-training sources of the held-out loss, nats a token; that of instructions is the mean
over the sources of instructions. Comparisons are paired by seed.
"""

from statistics import fmean
from typing import TYPE_CHECKING, Any

from mindllm_engine.errors import DataError
from mindllm_engine.studies.claims import Claim, judge_above, judge_below, not_decidable
from mindllm_engine.studies.findings import Findings, Picture, Table
from mindllm_engine.studies.paired import Value, difference, judged, mean_loss, reasons
from mindllm_engine.studies.pictures import picture, smooth_mean
from mindllm_engine.studies.results import Result, Results, refuse_mixed_text
from mindllm_engine.studies.seeds import mean_estimate
from mindllm_engine.studies.wsd.instructions import instruction_claims, instruction_table

if TYPE_CHECKING:
    from mindllm_engine.studies.wsd.experiment import WsdConfig

PAPER = "MiniCPM (arXiv 2404.06395)"
# Logged steps over which the training loss is averaged in the plot.
SMOOTHING = 10
FIGURE_5 = f"{PAPER}, section 4.3, Figure 5"


def wsd_findings(config: "WsdConfig", results: Results) -> Findings:
    """Claims, tables and the picture.

    Raises:
        DataError: no budget has both a branch and a cosine run of one seed, or runs cannot be compared.
    """
    refuse_mixed_text(results, "schedules", same_sources=False)
    names = _pretraining_sources(config, results)
    loss = mean_loss(names)
    claims = [
        *(_equal_to_cosine(config, results, loss, budget) for budget in config.budgets),
        _steep_fall(config, results, loss),
        *_lengths(config, results, loss),
        *_other_periods(config, results, loss),
        _cost_claim(config),
    ]
    tables = [_schedule_table(config, results, loss), _cost_table(config)]
    if config.instruction is not None:
        claims += instruction_claims(config, config.instruction, results, names)
        tables.append(instruction_table(config, config.instruction, results, names))
    return Findings(
        "WSD: decays from one stable run against cosine runs",
        claims,
        tables,
        [_picture(config, results, loss)],
        {"loss_sources": names, "points": _points(results, loss)},
    )


def _pretraining_sources(config: "WsdConfig", results: Results) -> list[str]:
    """Those that runs without instructions have read. Raises DataError where too few of these runs have ended well."""
    pairs = [
        branch
        for budget in config.budgets
        for branch in results.with_settings(kind="wsd", steps=budget, decay=config.decay)
        if results.with_settings(kind="cosine", steps=budget, seed=branch.settings["seed"])
    ]
    if not pairs:
        raise DataError(
            f"wsd: too few points: no budget has a branch and a cosine run of the same seed; {reasons(results)}"
        )
    return sorted(pairs[0].text.keys() - {"tokenizer"})


def _branch_losses(config: "WsdConfig", results: Results, loss: Value, budget: int, share: float) -> dict[int, float]:
    return results.by_seed(loss, kind="wsd", steps=budget, decay=share)


def _equal_to_cosine(config: "WsdConfig", results: Results, loss: Value, budget: int) -> Claim:
    branch = _branch_losses(config, results, loss, budget, config.decay)
    return judged(
        f"Of {budget:,} steps, a stable run that decays over {_percent(config.decay)} ends with a loss equal to the "
        f"cosine run's (within {config.equal_within:g} nats) or lower",
        FIGURE_5,
        "equal or lower",
        ("WSD less cosine", difference(branch, results.by_seed(loss, kind="cosine", steps=budget))),
        lambda estimate: judge_below(estimate, config.equal_within),
        results,
    )


def _steep_fall(config: "WsdConfig", results: Results, loss: Value) -> Claim:
    """Fall over the decay, less what the stable run falls in as many steps from the same point on."""
    budget = config.compared_at
    point, last = config.branch_point(budget, config.decay), config.branch_points()[-1]
    before = results.by_seed(loss, kind="stable", steps=point)
    decayed = _branch_losses(config, results, loss, budget, config.decay)
    stable = results.by_seed(loss, kind="stable", steps=last) if last > point else {}
    seeds = sorted(before.keys() & decayed.keys() & stable.keys())
    scale = (budget - point) / max(1, last - point)
    falls = [(before[seed] - decayed[seed]) - scale * (before[seed] - stable[seed]) for seed in seeds]
    return judged(
        f"The loss falls faster in the decay ({_percent(config.decay)} of {budget:,} steps) than without it",
        FIGURE_5,
        "falls dramatically",
        ("fall of the decay less that of as many stable steps", mean_estimate(falls) if falls else None),
        lambda estimate: judge_above(estimate, 0),
        results,
    )


def _lengths(config: "WsdConfig", results: Results, loss: Value) -> list[Claim]:
    """The shortest and the longest decay against that of `config.decay`, at one budget."""
    budget = config.compared_at
    usual = _branch_losses(config, results, loss, budget, config.decay)
    shares = sorted([config.decay, *config.other_decays])
    claims = []
    if (longest := shares[-1]) > config.decay:
        longer = _branch_losses(config, results, loss, budget, longest)
        claims.append(
            judged(
                f"A decay over {_percent(config.decay)} of {budget:,} steps suffices: {_percent(longest)} do not lower "
                f"the loss by more than {config.equal_within:g} nats",
                FIGURE_5,
                "10 % suffices",
                (f"{_percent(config.decay)} less {_percent(longest)}", difference(usual, longer)),
                lambda estimate: judge_below(estimate, config.equal_within),
                results,
            )
        )
    if (shortest := shares[0]) < config.decay:
        shorter = _branch_losses(config, results, loss, budget, shortest)
        claims.append(
            judged(
                f"A decay over {_percent(shortest)} of {budget:,} steps falls short of {_percent(config.decay)}",
                FIGURE_5,
                "2.5 % falls short",
                (f"{_percent(shortest)} less {_percent(config.decay)}", difference(shorter, usual)),
                lambda estimate: judge_above(estimate, 0),
                results,
            )
        )
    return claims


def _other_periods(config: "WsdConfig", results: Results, loss: Value) -> list[Claim]:
    """Cosine runs that end before their period does, or after it, against that which ends with it."""
    if (periods := config.periods()) is None:
        return []
    shorter, steps, longer = periods
    fitting = results.by_seed(loss, kind="cosine", steps=steps)
    others = {
        f"of period {longer:,} that is stopped there": "cosine_stopped",
        f"of period {shorter:,} that is prolonged at the rate in which it ends": "cosine_prolonged",
    }
    return [
        judged(
            f"Of {steps:,} steps, a cosine run {what} has a higher loss than one of period {steps:,}",
            f"{PAPER}, section 4.1, Figure 4",
            "lowest where the period is as long as the training",
            ("other less fitting period", difference(results.by_seed(loss, kind=kind, steps=steps), fitting)),
            lambda estimate: judge_above(estimate, 0),
            results,
        )
        for what, kind in others.items()
    ]


def _cost(config: "WsdConfig") -> tuple[int, int]:
    """Steps that a loss at every budget takes: (one stable run and its branches, a cosine run each)."""
    stable = max(config.branch_point(budget, config.decay) for budget in config.budgets)
    decays = sum(budget - config.branch_point(budget, config.decay) for budget in config.budgets)
    return stable + decays, sum(config.budgets)


def _cost_claim(config: "WsdConfig") -> Claim:
    ours, theirs = _cost(config)
    statement = "Losses at several budgets cost less by branches of one stable run than by cosine runs"
    source, paper = f"{PAPER}, section 4.5", "O(m) against O(m²) for m budgets"
    if len(config.budgets) < 2:
        return not_decidable(statement, source, paper, "the grid has one budget only")
    here = f"{ours:,} steps against {theirs:,} for {len(config.budgets)} budgets: {ours / theirs:.2f} of them"
    return Claim(
        statement, source, paper, here, "confirmed" if ours < theirs else "not confirmed", "counted, for these budgets"
    )


def _cost_table(config: "WsdConfig") -> Table:
    ours, theirs = _cost(config)
    rows = [
        ["one stable run and its branches", f"{ours:,}", f"{ours / max(config.budgets):.2f}"],
        ["a cosine run for each budget", f"{theirs:,}", f"{theirs / max(config.budgets):.2f}"],
    ]
    return Table(
        f"Cost of a loss at {len(config.budgets)} budgets",
        ["", "steps", "times the longest run"],
        rows,
        "The branches of other lengths and those with instructions are not counted.",
    )


def _schedule_table(config: "WsdConfig", results: Results, loss: Value) -> Table:
    rows = []
    for budget in config.budgets:
        cosine = results.by_seed(loss, kind="cosine", steps=budget)
        shares = {config.decay, *(config.other_decays if budget == config.compared_at else ())}
        branches = {
            f"WSD, decay {_percent(share)}": _branch_losses(config, results, loss, budget, share)
            for share in sorted(shares)
        }
        others = {
            f"cosine, {how}": results.by_seed(loss, kind=f"cosine_{how}", steps=budget)
            for how in ("stopped", "prolonged")
        }
        for name, losses in {"cosine": cosine, **others, **branches}.items():
            if not losses:
                continue
            less = difference(losses, cosine) if losses is not cosine else None
            shown = less.text(4) if less else ""
            rows.append([f"{budget:,} steps, {name}", f"{fmean(losses.values()):.4f}", str(len(losses)), shown])
    return Table(
        "Held-out loss at the end, mean over the pre-training sources, nats a token",
        ["", "loss", "seeds", "less the cosine run's"],
        rows,
    )


def _points(results: Results, loss: Value) -> list[dict[str, Any]]:
    """Every run's end, for other plots and fits."""
    return [{**result.settings, "tokens": result.tokens, "loss": loss(result)} for result in results]


def _picture(config: "WsdConfig", results: Results, loss: Value) -> Picture:
    seeds = sorted({int(result.settings["seed"]) for result in results})

    def draw(curves: Any, ends: Any) -> None:
        stable = [run for seed in seeds for run in results.with_settings(kind="stable", seed=seed)[-1:]]
        _curve(curves, stable, label="stable", color="0.3")
        cosine = list(results.with_settings(kind="cosine", steps=config.compared_at))
        _curve(curves, cosine, label="cosine", color="tab:red")
        for budget in config.budgets:
            point = config.branch_point(budget, config.decay)
            branches = list(results.with_settings(kind="wsd", decay=config.decay, steps=budget))
            _curve(curves, branches, point / budget, label=f"decay from step {point:,}")
        curves.set(
            xlabel="tokens", ylabel="training loss, nats a token", title=f"mean over seeds and {SMOOTHING} logged steps"
        )
        for label, settings in (("WSD", {"kind": "wsd", "decay": config.decay}), ("cosine", {"kind": "cosine"})):
            means = {budget: results.by_seed(loss, steps=budget, **settings) for budget in config.budgets}
            reached = [budget for budget in config.budgets if means[budget]]
            ends.plot(reached, [fmean(means[budget].values()) for budget in reached], "o-", label=label)
        ends.set(xlabel="steps", ylabel="held-out loss at the end, nats a token", title="mean over seeds")

    caption = (
        "Left: training loss of the stable runs, of the branches that leave them, and of the cosine runs. "
        "Right: held-out loss at the end of each budget."
    )
    return picture("wsd", caption, draw, columns=2)


def _curve(axes: Any, runs: list[Result], begin: float = 0.0, **style: Any) -> None:
    """Training loss over tokens, from the share `begin` of the runs on."""
    if not runs:
        return
    first = begin * runs[0].tokens
    tokens, losses = smooth_mean([run.training_losses for run in runs], SMOOTHING)
    shown = [(x, y) for x, y in zip(tokens, losses, strict=True) if x >= first]
    axes.plot([x for x, _ in shown], [y for _, y in shown], linewidth=1, **style)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
