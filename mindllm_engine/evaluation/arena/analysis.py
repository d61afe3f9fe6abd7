"""What a set of judgements says: ratings with intervals, groups, the judge's bias by place, and how far it agrees with
itself when the order is rotated."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.arena.judging import Judgement
from mindllm_engine.evaluation.arena.ratings import (
    ELO_A_NAT,
    Floats,
    bootstrap_strengths,
    bradley_terry,
    elo,
    elo_over_orders,
    indistinguishable,
    interval,
    on_elo_scale,
    outcomes_of_ranks,
)

_ELO_ORDERS = 200  # shuffled, for the mean and spread of Elo
_FEW_PROMPTS = 20  # with fewer the bootstrap's intervals are too narrow
_CONFIDENCE = 0.95


def analyse(names: Sequence[str], judgements: Sequence[Judgement], replicates: int, seed: int) -> dict[str, Any]:
    """The results of an arena as plain data, for JSON; ratings from the best on.

    Args:
        names: of the models, by number.
        replicates: draws of prompts for the intervals, which are of 95 %.

    Raises:
        DataError: no judgement has a ranking.
    """
    ranked = [judgement for judgement in judgements if judgement.ranks is not None]
    counts = count_judgements(judgements)
    if not ranked:
        raise DataError(f"the judge ranked nothing in {counts['asked']} judgements: {_most_frequent(counts)}")
    wins_by_prompt = _by_prompt(ranked, [outcomes_of_ranks(np.array(judgement.ranks)) for judgement in ranked])
    wins = wins_by_prompt.sum(0)
    strengths, limited = bradley_terry(wins)
    samples = bootstrap_strengths(wins_by_prompt, replicates, seed)
    return {
        "judgements": counts,
        "prompts_ranked": len(wins_by_prompt),
        "ratings": _ratings(names, ranked, wins, strengths, samples, seed),
        "no_finite_maximum": bool(limited),
        "groups": [[names[model] for model in group] for group in indistinguishable(strengths, samples, _CONFIDENCE)],
        "differences": _differences(names, strengths, samples),
        "models": list(names),
        "win_rates": _shares(wins, wins + wins.T).tolist(),
        "places": _places(ranked, replicates, seed),
        "rotations": rotation_agreement(ranked),
        "warnings": _warnings(counts, len(wins_by_prompt), bool(limited)),
    }


def count_judgements(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """How many were asked for, ranked, failed and asked for twice, and the failures by reason."""
    failures = Counter(judgement.failure for judgement in judgements if judgement.failure is not None)
    return {
        "asked": len(judgements),
        "ranked": sum(judgement.ranks is not None for judgement in judgements),
        "failed": failures.total(),
        "asked_again": sum(judgement.asked_again for judgement in judgements),
        "failures": dict(failures.most_common()),
    }


def rotation_agreement(ranked: Sequence[Judgement]) -> dict[str, float | int | None]:
    """Of the pairs of models in every two rankings of a prompt, the shares with the same outcome in both, with
    opposite winners, and with a tie in one alone."""
    same = opposite = pairs = 0
    by_prompt: dict[int, list[tuple[int, ...]]] = {}
    for judgement in ranked:
        assert judgement.ranks is not None
        by_prompt.setdefault(judgement.prompt, []).append(judgement.ranks)
    for rankings in by_prompt.values():
        for one, other in combinations(rankings, 2):
            for a, b in combinations(range(len(one)), 2):
                signs = np.sign(one[a] - one[b]), np.sign(other[a] - other[b])
                pairs += 1
                same += bool(signs[0] == signs[1])
                opposite += bool(signs[0] * signs[1] < 0)
    if not pairs:
        return {"pairs": 0, "same": None, "opposite": None, "tie_in_one": None}
    rest = pairs - same - opposite
    return {"pairs": pairs, "same": same / pairs, "opposite": opposite / pairs, "tie_in_one": rest / pairs}


def _by_prompt(ranked: Sequence[Judgement], outcomes: Sequence[Floats]) -> Floats:
    """(prompts with a ranking, ...) sums of one array a judgement."""
    rows = {prompt: row for row, prompt in enumerate(sorted({judgement.prompt for judgement in ranked}))}
    sums = np.zeros((len(rows), *outcomes[0].shape))
    for judgement, outcome in zip(ranked, outcomes, strict=True):
        sums[rows[judgement.prompt]] += outcome
    return sums


def _ratings(
    names: Sequence[str], ranked: Sequence[Judgement], wins: Floats, strengths: Floats, samples: Floats, seed: int
) -> list[dict[str, Any]]:
    battles = [
        (a, b, 0.5 if ranks[a] == ranks[b] else float(ranks[a] < ranks[b]), prompt)
        for ranks, prompt in ((judgement.ranks, judgement.prompt) for judgement in ranked)
        if ranks is not None
        for a, b in combinations(range(len(names)), 2)
    ]
    first, second, score, prompts = (np.array(column) for column in zip(*battles, strict=True))
    online = elo(first, second, score, len(names))
    mean, spread = elo_over_orders(first, second, score, prompts, len(names), _ELO_ORDERS, seed)
    ratings, bounds = on_elo_scale(strengths), interval(on_elo_scale(samples), _CONFIDENCE)
    win_rates = _shares(wins.sum(1), (wins + wins.T).sum(1))
    return [
        {
            "name": names[model],
            "bradley_terry": float(ratings[model]),
            "interval": bounds[model].tolist(),
            "win_rate": float(win_rates[model]),
            "elo": float(online[model]),
            "elo_mean": float(mean[model]),
            "elo_sd": float(spread[model]),
        }
        for model in np.argsort(-strengths, kind="stable")
    ]


def _differences(names: Sequence[str], strengths: Floats, samples: Floats) -> list[dict[str, Any]]:
    """Of each pair, the better first, in points."""
    order = np.argsort(-strengths, kind="stable")
    pairs = []
    for a, b in combinations(order, 2):
        low, high = (ELO_A_NAT * interval(samples[:, a] - samples[:, b], _CONFIDENCE)).tolist()
        points = float(ELO_A_NAT * (strengths[a] - strengths[b]))
        better, worse = names[a], names[b]
        told = low > 0 or high < 0
        pairs.append({"better": better, "worse": worse, "points": points, "interval": [low, high], "told_apart": told})
    return pairs


def _places(ranked: Sequence[Judgement], replicates: int, seed: int) -> list[dict[str, Any]]:
    """The win rate of each place over the others. Models stand at all places equally often, so a fair judge gives each
    0.5; a place is `biased` where an interval that allows for as many looks as there are places excludes that."""
    wins = []
    for judgement in ranked:
        assert judgement.ranks is not None
        wins.append(outcomes_of_ranks(np.array([judgement.ranks[model] for model in judgement.order])))
    wins_by_prompt = _by_prompt(ranked, wins)
    prompts, places = wins_by_prompt.shape[:2]
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=replicates)
    won, played = wins_by_prompt.sum(2), (wins_by_prompt + wins_by_prompt.swapaxes(1, 2)).sum(2)  # (prompts, places)
    samples = (counts @ won) / (counts @ played)
    bounds = interval(samples, _CONFIDENCE)
    strict = interval(samples, 1 - (1 - _CONFIDENCE) / places)
    return [
        {
            "place": place + 1,
            "win_rate": float(won[:, place].sum() / played[:, place].sum()),
            "interval": bounds[place].tolist(),
            "biased": bool(strict[place, 0] > 0.5 or strict[place, 1] < 0.5),
        }
        for place in range(places)
    ]


def _shares(won: Floats, played: Floats) -> Floats:
    """won / played; 0 where nothing was played, as on the diagonal."""
    return np.divide(won, played, out=np.zeros_like(won), where=played > 0)


def _warnings(counts: dict[str, Any], prompts: int, limited: bool) -> list[str]:
    warnings = []
    if counts["failed"]:
        warnings.append(
            f"{counts['failed']} of {counts['asked']} judgements failed, most of all {_most_frequent(counts)}"
        )
    if prompts < _FEW_PROMPTS:
        warnings.append(f"only {prompts} prompts: the intervals are too narrow below {_FEW_PROMPTS}")
    if limited:
        warnings.append(
            "some models never lost to others, so that no ratings are likeliest: each pair was given one tie more, and "
            "the distance between them is that tie's doing"
        )
    return warnings


def _most_frequent(counts: dict[str, Any]) -> str:
    reason, times = next(iter(counts["failures"].items()), ("nothing was asked", 0))
    return f"{times} times: {reason}"
