"""Blocked, shuffled, chunked (MindLLM, section 4.5, Figures 5 to 7): the same text and hyperparameters in three orders.

Of each run: its training loss where the category changes, held-out loss by language, what it forgets of earlier
categories, and what documents of the same source in the context are worth. `runs.py` reads the runs,
`measures.py` and `in_context.py` have the measures, `pictures.py` the plots.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mindllm_engine.data.mixture import Order
from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.claims import Claim, judge_above, not_decidable
from mindllm_engine.studies.findings import Findings, Table
from mindllm_engine.studies.orders.measures import rise_from_lowest
from mindllm_engine.studies.orders.pictures import order_pictures
from mindllm_engine.studies.orders.runs import ORDERS, Measured, RunMeasures, measure
from mindllm_engine.studies.results import Results, refuse_mixed_text
from mindllm_engine.studies.seeds import mean_estimate, paired_estimate
from mindllm_engine.studies.trials import Trial, named

# Steps at the end of a run over which its training loss is averaged.
LAST_STEPS = 20


@dataclass
class OrdersConfig:
    """The base config's run in three orders of its blocks."""

    steps: int
    """Steps of each run."""
    eval_every: int
    """Steps between evaluations of the held-out text; forgetting counts from the lowest of them."""
    samples_per_chunk: int = 4
    """Successive samples of one source in a run of `chunked`."""
    examples: int = 5
    """Documents of the same source in the context, for the in-context gain (the paper's C-Eval has five examples)."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """Three orders a seed. Raises ConfigError for impossible values."""
        del finished
        if self.examples < 1:
            raise ConfigError(f"orders.examples: {self.examples} must be at least 1")
        if not 1 <= self.eval_every <= self.steps // 2:
            raise ConfigError(
                f"orders.eval_every: {self.eval_every} must be between 1 and half of orders.steps = {self.steps}"
            )
        blocks = (base.get("data") or {}).get("blocks") or [{}]
        return [
            Trial(
                named(order=f"_{order}", seed=seed),
                {
                    "run.seed": seed,
                    "data.blocks": [
                        block | {"order": order, "samples_per_chunk": self.samples_per_chunk} for block in blocks
                    ],
                    "train.steps": self.steps,
                    "train.eval_every": self.eval_every,
                    "train.log_every": 1,
                    # A change of category looks like a bad step, and would be skipped.
                    "faults.sigma": 0.0,
                },
                {"order": order, "seed": seed},
            )
            for seed in seeds
            for order in ORDERS
        ]

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """Losses, forgetting and in-context gain of the three orders, compared seed by seed.

        Raises:
            DataError: fewer than two orders have a finished run; other text among the runs.
        """
        refuse_mixed_text(results, "orders of data")
        measured = measure(results, self.examples)
        claims = _claims(measured)
        numbers = {
            "orders": {
                order: {str(seed): run.as_json() for seed, run in runs.items()} for order, runs in measured.runs.items()
            },
            "seeds": list(seeds),
            "changes": measured.changes,
            "examples": self.examples,
        }
        tables = [_summary_table(measured), _forgetting_table(measured)]
        return Findings("Blocked, shuffled and chunked data", claims, tables, order_pictures(measured), numbers)


def _claims(measured: Measured) -> list[Claim]:
    return [
        _paired_claim(
            "In the blocked order the training loss jumps where the category changes",
            "MindLLM, section 4.5",
            measured,
            ("blocked", "shuffled"),
            lambda run: run.jump,
            "nats a token",
        ),
        _paired_claim(
            "The blocked order forgets earlier categories: their held-out loss rises again",
            "MindLLM, section 4.5",
            measured,
            ("blocked", "shuffled"),
            lambda run: run.forgotten,
            "bits per byte",
        ),
        *(
            _paired_claim(
                f"Evenly shuffled text is learnt better than {order} text",
                "MindLLM, section 4.5 (its authors' project page recommends to shuffle evenly)",
                measured,
                (order, "shuffled"),
                lambda run: run.overall[-1],
                "bits per byte",
            )
            for order in ("blocked", "chunked")
        ),
        _paired_claim(
            "Chunks serve learning from examples in the context: the in-context gain is larger than shuffled",
            "MindLLM, section 4.5 (its authors' project page recommends chunks for few-shot learning)",
            measured,
            ("chunked", "shuffled"),
            lambda run: run.gain,
            "nats a token",
            "; attention is within a document while training, so that only the order of steps can make a difference",
        ),
        not_decidable(
            "Blocked data is ahead on C-Eval with five examples at first, and falls behind later",
            "MindLLM, section 4.5",
            "",
            "networks of this size answer C-Eval at random",
        ),
    ]


def _paired_claim(
    statement: str,
    source: str,
    measured: Measured,
    orders: tuple[Any, Order],
    value: Callable[[RunMeasures], float | None],
    unit: str,
    caution: str = "",
) -> Claim:
    """A claim that a number is larger in the first order than in the second, seed by seed."""
    ours, theirs = (measured.by_seed(order, value) for order in orders)
    if not ours.keys() & theirs.keys():
        return not_decidable(statement, source, "", f"no seed has this number of both {orders[0]} and {orders[1]}")
    estimate = paired_estimate(ours, theirs)
    verdict, reason = judge_above(estimate, 0.0)
    here = f"{orders[0]} less {orders[1]}: {estimate.text(4)} {unit}; seeds: {estimate.count}"
    return Claim(statement, source, "", here, verdict, reason + caution)


def _summary_table(measured: Measured) -> Table:
    """Every number of a run, one column each: means over seeds with their intervals."""
    languages = sorted(next(iter(next(iter(measured.runs.values())).values())).languages)
    columns: dict[str, Callable[[RunMeasures], float | None]] = {
        "training loss": lambda run: fmean(list(run.losses.values())[-LAST_STEPS:]),
        "held out": lambda run: run.overall[-1],
        **{f"held out {language}": _held_out_of(language) for language in languages},
        "jump": lambda run: run.jump,
        "forgotten": lambda run: run.forgotten,
        **{f"gain {language}": _gain_of(language) for language in languages},
    }
    rows = [[str(order), *(_cell(measured, order, value) for value in columns.values())] for order in measured.runs]
    note = (
        f"Training loss: nats a token, of the last {LAST_STEPS} steps. Held out, and forgotten: bits per byte. jump: "
        "by how much the training loss differs on the two sides of the blocked order's changes of category, nats a "
        "token. forgotten: how far the held-out losses of earlier categories end above their lowest. gain: by how much "
        "training documents of the same source in the context raise the log-likelihood of a held-out token, nats."
    )
    return Table("Orders", ["order", *columns], rows, note)


def _forgetting_table(measured: Measured) -> Table:
    rows = [
        [category, *(_cell(measured, order, _rise_of(category)) for order in measured.runs)]
        for _, category in measured.changes
    ]
    note = "Bits per byte by which held-out text of a category ends above its lowest; in the order of the blocked runs."
    return Table("Forgetting by category", ["category", *measured.runs], rows, note)


def _cell(measured: Measured, order: Order, value: Callable[[RunMeasures], float | None]) -> str:
    numbers = list(measured.by_seed(order, value).values())
    return mean_estimate(numbers).text(3) if numbers else ""


def _held_out_of(language: str) -> Callable[[RunMeasures], float | None]:
    return lambda run: run.languages[language][-1]


def _gain_of(language: str) -> Callable[[RunMeasures], float | None]:
    return lambda run: run.gains.get(language)


def _rise_of(category: str) -> Callable[[RunMeasures], float | None]:
    return lambda run: rise_from_lowest(run.categories[category]) if category in run.categories else None
