"""Ratings from battles between models: Elo as in the paper, and Bradley-Terry with a bootstrap over prompts.

Elo updated battle by battle depends on the order of the battles, at K = 32 by some 80 points, and more prompts do not
help: it stands here because the paper gives it, with its spread over orders. Bradley-Terry (Bradley and Terry 1952) has
no order. P(i beats j) = 1 / (1 + exp(b_j - b_i)), shown on Elo's scale: 1500 + 400 / ln 10 (b_i - mean b).

Wins come as arrays (..., models, models): [i, j] how often i beat j, a tie as half a win of each.
"""

import numpy as np
from numpy.typing import NDArray

ELO_K, ELO_START = 32.0, 1500.0  # arXiv 2310.15777, section 6.1.2
ELO_A_NAT = 400 / np.log(10)

_LONGEST_STEP = 2.0  # nats in one of Newton's steps; whole ones may overshoot where a model wins nearly all
_NEWTON_STEPS = 200
_TOLERANCE = 1e-10  # of the gradient, in wins a battle

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]


def outcomes_of_ranks(ranks: Integers) -> Floats:
    """(n,) ranks, 0 the best, as (n, n) wins: 1 where i is ranked above j, 0.5 where they tie, 0 on the diagonal."""
    difference = ranks[None, :] - ranks[:, None]
    wins = np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))
    np.fill_diagonal(wins, 0.0)
    return wins


def elo(first: Integers, second: Integers, score: Floats, models: int) -> Floats:
    """Elo ratings (..., models) after battles in their order.

    Args:
        first, second: (..., battles) numbers of the models; leading axes are separate arenas.
        score: (..., battles), 1 where the first won, 0.5 for a tie, 0 where it lost.
    """
    ratings = np.full((*score.shape[:-1], models), ELO_START)
    for battle in range(score.shape[-1]):
        a, b = first[..., battle, None], second[..., battle, None]
        before_a, before_b = (np.take_along_axis(ratings, who, -1) for who in (a, b))
        expected = 1 / (1 + 10 ** ((before_b - before_a) / 400))
        change = ELO_K * (score[..., battle, None] - expected)
        np.put_along_axis(ratings, a, before_a + change, -1)
        np.put_along_axis(ratings, b, before_b - change, -1)
    return ratings


def elo_over_orders(
    first: Integers, second: Integers, score: Floats, prompt: Integers, models: int, orders: int, seed: int
) -> tuple[Floats, Floats]:
    """Mean and standard deviation (models,) of Elo over shuffled orders of the prompts.

    The battles of a `prompt` (battles,) stay together, as they come in an arena, and in their order: they agree with
    each other, so that they move a rating further than battles shuffled one by one (80 points against 46, four models).
    """
    numbers, place = np.unique(prompt, return_inverse=True)
    ranks = np.random.default_rng(seed).permuted(np.tile(np.arange(len(numbers)), (orders, 1)), axis=1)
    order = np.argsort(ranks[:, place], axis=1, kind="stable")
    ratings = elo(first[order], second[order], score[order], models)
    return ratings.mean(axis=0), ratings.std(axis=0, ddof=1)


def bradley_terry(wins: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Maximum likelihood of Bradley-Terry, by Newton's method.

    Where no finite maximum exists (a group of models never loses to the rest, not even half), each pair is given one
    tie more: the ratings are then finite, their distance is that prior's doing.

    Args:
        wins: (..., n, n); leading axes are separate arenas.

    Returns (strengths (..., n) in nats with mean 0, whether the ties were added (...)).
    """
    models = wins.shape[-1]
    limited = ~_strongly_connected(wins)
    wins = wins + np.where(limited, 0.5, 0.0)[..., None, None] * (1 - np.eye(models))
    battles = wins + wins.swapaxes(-1, -2)
    scale = battles.sum((-1, -2))[..., None]
    strengths = np.zeros(wins.shape[:-1])
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))  # of i over j
        gradient = (wins - battles * chance).sum(-1)
        if np.all(np.abs(gradient) <= _TOLERANCE * scale):
            break
        information = battles * chance * (1 - chance)
        hessian = -information
        index = np.arange(models)
        hessian[..., index, index] = information.sum(-1)
        # Strengths are known up to a constant: the matrix of ones fixes their sum.
        step = np.linalg.solve(hessian + 1 / models * information.mean((-1, -2))[..., None, None], gradient[..., None])
        step = step[..., 0]
        longest = np.abs(step).max(-1, keepdims=True)
        strengths = strengths + step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
    return strengths - strengths.mean(-1, keepdims=True), limited


def _strongly_connected(wins: Floats) -> NDArray[np.bool_]:
    """Whether each model has beaten (or tied with) each other one, itself or through others: then the maximum exists
    (Ford 1957)."""
    models = wins.shape[-1]
    reach = (wins > 0) | np.eye(models, dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(models))))):
        reach = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
    return np.asarray(reach.all((-1, -2)))


def bootstrap_strengths(wins_by_prompt: Floats, replicates: int, seed: int) -> Floats:
    """Bradley-Terry strengths (replicates, n) of arenas whose prompts are drawn with replacement.

    Prompts and not battles are drawn, since the battles of a prompt are not independent: its ranking gives several, and
    its rotations repeat them. `wins_by_prompt` is (prompts, n, n).
    """
    prompts, models = wins_by_prompt.shape[:2]
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=replicates)
    wins = (counts.astype(np.float64) @ wins_by_prompt.reshape(prompts, -1)).reshape(-1, models, models)
    return bradley_terry(wins)[0]


def interval(samples: Floats, confidence: float = 0.95) -> Floats:
    """(..., 2) percentile interval over the first axis."""
    tail = (1 - confidence) / 2
    return np.moveaxis(np.quantile(samples, [tail, 1 - tail], axis=0), 0, -1)


def on_elo_scale(strengths: Floats) -> Floats:
    """Strengths in nats as points around 1500."""
    return ELO_START + ELO_A_NAT * strengths


def indistinguishable(strengths: Floats, samples: Floats, confidence: float = 0.95) -> list[list[int]]:
    """Groups of models, the best first, of which no pair can be told apart: the interval of its difference holds 0.

    A model may lie in several groups; one that differs from all others is a group of its own. Groups are the longest
    runs along the order of `strengths` (n,); `samples` (replicates, n) are the bootstrap's.
    """
    order = np.argsort(-strengths, kind="stable")
    bounds = interval(samples[:, :, None] - samples[:, None, :], confidence)  # (n, n, 2)
    same = (bounds[..., 0] <= 0) & (bounds[..., 1] >= 0)
    groups: list[list[int]] = []
    last_end = 0
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and same[order[start : end + 1][:, None], order[start : end + 1]].all():
            end += 1
        if end > last_end:
            groups.append([int(model) for model in order[start:end]])
            last_end = end
    return groups
