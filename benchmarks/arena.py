"""How far are an arena's ratings from the truth, and do its intervals say so?

    python benchmarks/arena.py [--json FILE]

Simulated arenas with known strengths: 4 models, 100 prompts, each ranked twice by a judge that mostly agrees with
itself. Beside Bradley-Terry with a bootstrap over prompts stand the paper's online Elo (K = 32, 1500), and a bootstrap
over single battles, as if they were independent. Takes about a minute on two cores; no time is measured.
"""

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

if sys.path[0] == str(Path(__file__).parent):  # the project instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

from benchmarks.results_files import write_json
from mindllm_engine.evaluation.arena.ratings import (
    ELO_A_NAT,
    ELO_START,
    bootstrap_strengths,
    bradley_terry,
    elo,
    elo_over_orders,
    interval,
    outcomes_of_ranks,
)

STRENGTHS = np.array([0.8, 0.3, 0.0, -1.1])  # nats
ARENAS, PROMPTS, REPLICATES, ORDERS = 200, 100, 500, 100
JUDGE_NOISE = 0.3  # nats, between two rankings of a prompt
PAIRS = list(combinations(range(len(STRENGTHS)), 2))


def rankings(rng: np.random.Generator) -> np.ndarray:
    """(prompts, 2, models) ranks; the first of each prompt wins its pairs as Bradley-Terry says (Yellott 1977)."""
    utility = STRENGTHS + rng.gumbel(size=(PROMPTS, len(STRENGTHS)))
    both = np.stack([utility, utility + rng.normal(0, JUDGE_NOISE, utility.shape)], axis=1)
    return np.argsort(np.argsort(-both, axis=2), axis=2)


def simulate(seed: int) -> dict[str, np.ndarray]:
    """Errors of the ratings in points, what the intervals cover, and Elo's spread over orders, of one arena."""
    ranks = rankings(np.random.default_rng(seed))
    wins = np.stack([sum(outcomes_of_ranks(row) for row in of_prompt) for of_prompt in ranks])
    first, second = (np.array([pair[side] for _ in range(2 * PROMPTS) for pair in PAIRS]) for side in (0, 1))
    score = np.array([float(row[a] < row[b]) for row in ranks.reshape(-1, len(STRENGTHS)) for a, b in PAIRS])
    single = np.zeros((len(score), *wins.shape[1:]))
    battle = np.arange(len(score))
    single[battle, first, second], single[battle, second, first] = score, 1 - score
    strengths, _ = bradley_terry(wins.sum(0))
    prompt = np.repeat(np.arange(PROMPTS), 2 * len(PAIRS))
    return {
        "bradley_terry": ELO_A_NAT * (strengths - STRENGTHS),
        "elo": elo(first, second, score, len(STRENGTHS)) - ELO_START - ELO_A_NAT * STRENGTHS,
        "elo_spread": elo_over_orders(first, second, score, prompt, len(STRENGTHS), ORDERS, seed)[1],
        "covered": covered(bootstrap_strengths(wins, REPLICATES, seed)),
        "covered_by_battles": covered(bootstrap_strengths(single, REPLICATES, seed)),
    }


def covered(samples: np.ndarray) -> np.ndarray:
    bounds = interval(samples)
    return (bounds[:, 0] <= STRENGTHS) & (bounds[:, 1] >= STRENGTHS)


def row(
    name: str, unit: str, ours: float, peer: float, peer_name: str, ratio: float, bar: float | None
) -> dict[str, Any]:
    figures = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio}
    return {"name": name, "unit": unit, **figures, "bar": bar, "holds": None if bar is None else ratio >= bar}


def rows() -> list[dict[str, Any]]:
    arenas = [simulate(seed) for seed in range(ARENAS)]
    ours, online = (float(np.sqrt(np.mean([arena[key] ** 2 for arena in arenas]))) for key in ("bradley_terry", "elo"))
    shares = [float(np.mean([arena[key] for arena in arenas])) for key in ("covered", "covered_by_battles")]
    spread = float(np.mean([arena["elo_spread"] for arena in arenas]))
    missed = [abs(share - 0.95) for share in shares]
    about = f"{ARENAS} simulated arenas of {len(STRENGTHS)} models and {PROMPTS} prompts, each ranked twice"
    elo_name = "online Elo, K = 32"
    return [
        row(f"{about}: error of a rating", "points, rms", ours, online, elo_name, online / ours, 2.0),
        row(
            f"{about}: 95 % intervals that hold the truth (ratio: distance from 0.95)", "share", shares[0], shares[1],
            "a bootstrap over battles", missed[1] / max(missed[0], 1e-9), 2.0,
        ),
        {
            **row(f"{about}: spread over orders of the prompts", "points, sd", 0.0, spread, elo_name, 0.0, None),
            "ratio": None,
            "reason": "Bradley-Terry has no order",
        },
    ]  # fmt: skip


def main() -> None:
    """Simulate, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    found = rows()
    for each in found:
        ratio = "" if each["ratio"] is None else f", ratio {each['ratio']:.1f}"
        print(f"{each['name']}: {each['ours']:.3g} {each['unit']} ({each['peer_name']}: {each['peer']:.3g}{ratio})")
    if arguments.json is not None:
        write_json(arguments.json, torch.device("cpu"), found)


if __name__ == "__main__":
    main()
