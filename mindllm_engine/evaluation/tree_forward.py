"""A network's forward over a tree of token sequences (`token_tree.py`): each node once, in packs of nodes.

A node's tokens attend to the keys and values of the nodes above it (`models/tree_cache.py`). What lies below a pack
runs before the next pack, so that the keys and values of one pack a level are held.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mindllm_engine.evaluation.token_tree import Node
from mindllm_engine.models import Network
from mindllm_engine.models.tree_cache import Path, Segment, TreeCache

# Tokens in a forward.
PACK_TOKENS = 8192

# Told of each pack: its nodes, the (tokens, hidden) states of their tokens, and the keys and values of each node's
# sequence up to its end.
Visit = Callable[[list[Node], Tensor, dict[Node, Path]], None]


def run_tree(model: Network, roots: Sequence[Node], pack_tokens: int, visit: Visit, keep_leaves: bool = False) -> None:
    """Run all nodes, from the roots down.

    Args:
        pack_tokens: tokens in a forward; a node that is longer runs by itself.
        keep_leaves: whether `visit` gets the keys and values of nodes without children, too.
    """
    _run(model, roots, {None: ()}, pack_tokens, visit, keep_leaves)


def _run(
    model: Network,
    nodes: Sequence[Node],
    above: dict[Node | None, Path],
    pack_tokens: int,
    visit: Visit,
    keep_leaves: bool,
) -> None:
    """Run nodes of one level and all below them; `above` has the keys and values up to the end of each one's parent."""
    for pack in _packs(nodes, pack_tokens):
        children = [child for node in pack for child in node.children]
        lengths = [len(node.tokens) for node in pack]
        cache = TreeCache(lengths, [above[node.parent] for node in pack], keep=keep_leaves or bool(children))
        hidden = _hidden_states(model, pack, lengths, cache)
        ends = np.cumsum(lengths).tolist()
        paths = {
            node: (*above[node.parent], Segment(cache, slice(end - length, end)))
            for node, end, length in zip(pack, ends, lengths, strict=True)
        }
        visit(pack, hidden, paths)
        if children:
            below: dict[Node | None, Path] = dict(paths.items())
            _run(model, children, below, pack_tokens, visit, keep_leaves)


def _hidden_states(model: Network, pack: list[Node], lengths: list[int], cache: TreeCache) -> Tensor:
    """(tokens of the pack, hidden)"""
    device = model.embedding.device
    tokens = torch.from_numpy(np.concatenate([node.tokens for node in pack]).astype(np.int64)).to(device)
    positions = torch.from_numpy(np.concatenate([np.arange(node.start, node.end) for node in pack])).to(device)
    cu_seqlens = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(device)
    return model.hidden_states(tokens, positions, cu_seqlens, cache)


def _packs(nodes: Sequence[Node], pack_tokens: int) -> Iterator[list[Node]]:
    """Consecutive nodes with up to `pack_tokens` tokens, or one that has more."""
    pack: list[Node] = []
    tokens = 0
    for node in nodes:
        if pack and tokens + len(node.tokens) > pack_tokens:
            yield pack
            pack, tokens = [], 0
        pack.append(node)
        tokens += len(node.tokens)
    if pack:
        yield pack
