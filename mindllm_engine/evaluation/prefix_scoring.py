"""Log-probabilities of the ends of many token sequences, where what sequences share goes through the network once.

Five-shot questions of one subject begin with the same examples, and the candidates of a question with the same
question. The sequences become a tree, whose nodes run once each (`tree_forward.py`), and logits are computed where a
scored token is predicted, nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mindllm_engine.evaluation.token_tree import Node, Tokens, build_tree
from mindllm_engine.evaluation.tree_forward import PACK_TOKENS, run_tree
from mindllm_engine.models import Network
from mindllm_engine.models.tree_cache import Path

# Logits held at once, in elements: 256 MB in fp32.
LOGIT_ELEMENTS = 1 << 26


@dataclass(frozen=True, eq=False)
class Scored:
    """A sequence and what of it is scored.

    Attributes:
        tokens: int32[length], no longer than the network's max_seq_len + 1: the last one is predicted and not fed.
        first: the first scored token, at least 1; all after it are scored too.
    """

    tokens: Tokens
    first: int


class Score(NamedTuple):
    """Of each token scored: its log-probability in nats after those before it, and whether none is likelier."""

    log_probabilities: npt.NDArray[np.float32]
    is_likeliest: npt.NDArray[np.bool_]


@torch.inference_mode()
def score(
    model: Network,
    sequences: Sequence[Scored],
    pack_tokens: int = PACK_TOKENS,
    progress: Callable[[int], None] = lambda sequences: None,
) -> list[Score]:
    """The scores of all sequences, which do not depend on each other nor on `pack_tokens` (beyond rounding).

    `progress` is told how many more sequences have been through the network.
    """
    roots, ends = build_tree([sequence.tokens[:-1] for sequence in sequences])
    wanted = _wanted(sequences, ends)

    def visit(pack: list[Node], hidden: Tensor, paths: dict[Node, Path]) -> None:
        _predict(model, pack, hidden, wanted)
        progress(sum(wanted[node].ending for node in pack if node in wanted))

    run_tree(model, roots, pack_tokens, visit)
    return [_collect(sequence, node, wanted) for sequence, node in zip(sequences, ends, strict=True)]


@dataclass
class _Wanted:
    """Tokens to be predicted at a node, and once it has run their scores.

    Attributes:
        rows: places in the node.
        targets: the token each predicts. A place has several where sequences part after it.
        found: (log-probability, is likeliest) of each (place, target).
        ending: sequences that end here.
    """

    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    found: dict[tuple[int, int], tuple[float, bool]] = field(default_factory=dict)
    ending: int = 0


def _wanted(sequences: Sequence[Scored], ends: list[Node]) -> dict[Node, _Wanted]:
    wanted: dict[Node, _Wanted] = {}
    for sequence, end in zip(sequences, ends, strict=True):
        wanted.setdefault(end, _Wanted()).ending += 1
        for node, place, target in _predictions(sequence, end):
            at = wanted.setdefault(node, _Wanted())
            if (place, target) not in at.found:
                at.found[place, target] = (0.0, False)
                at.rows.append(place)
                at.targets.append(target)
    return wanted


def _predictions(sequence: Scored, end: Node) -> Iterator[tuple[Node, int, int]]:
    """Of each scored token, from the first on: the node and the place in it that predicts it, and the token."""
    for node in end.path():
        for position in range(max(node.start, sequence.first - 1), node.end):
            yield node, position - node.start, int(sequence.tokens[position + 1])


def _collect(sequence: Scored, end: Node, wanted: dict[Node, _Wanted]) -> Score:
    found = [wanted[node].found[place, target] for node, place, target in _predictions(sequence, end)]
    return Score(np.array([each[0] for each in found], np.float32), np.array([each[1] for each in found], np.bool_))


def _predict(model: Network, pack: list[Node], hidden: Tensor, wanted: dict[Node, _Wanted]) -> None:
    """Fill in what is wanted at the nodes of a pack, from its (tokens, hidden) states."""
    asked, start = [], 0
    for node in pack:
        if node in wanted:
            asked.append((start, wanted[node]))
        start += len(node.tokens)
    rows = [start + place for start, at in asked for place in at.rows]
    targets = [target for _, at in asked for target in at.targets]
    found = iter(zip(*_predicted(hidden, model.embedding, rows, targets), strict=True))
    for _, at in asked:
        for place, target in zip(at.rows, at.targets, strict=True):
            at.found[place, target] = next(found)


def _predicted(
    hidden: Tensor, embedding: Tensor, rows: list[int], targets: list[int]
) -> tuple[list[float], list[bool]]:
    """Log-probabilities of `targets` at `rows`, and whether each is the likeliest, from the logits of those rows alone
    (each once, though several targets stand at it)."""
    distinct, place = np.unique(np.array(rows), return_inverse=True)
    chunk = max(LOGIT_ELEMENTS // embedding.shape[0], 1)
    log_probabilities, likeliest = np.empty(len(rows), np.float32), np.empty(len(rows), np.bool_)
    wanted = np.array(targets)
    for start in range(0, len(distinct), chunk):
        some = torch.from_numpy(distinct[start : start + chunk]).to(hidden.device)
        logits = torch.nn.functional.linear(hidden[some], embedding).float()  # (rows, vocab)
        here = np.flatnonzero((place >= start) & (place < start + chunk))
        at = torch.from_numpy(place[here] - start).to(hidden.device)
        target = torch.from_numpy(wanted[here]).to(hidden.device)
        normaliser = torch.logsumexp(logits, dim=-1)
        log_probabilities[here] = (logits[at, target] - normaliser[at]).cpu().numpy()
        likeliest[here] = (logits.argmax(dim=-1)[at] == target).cpu().numpy()
    return log_probabilities.tolist(), likeliest.tolist()
