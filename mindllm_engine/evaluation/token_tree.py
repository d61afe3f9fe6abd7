"""Token sequences that begin alike, cut into a tree: each node holds tokens that all sequences below it share.

`prefix_scoring.py` runs a network over it, each node once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

# Sequences part where they share fewer further tokens than this: what a node of its own would save is then not worth
# one more pass through the network for those below it.
MIN_SHARED = 16


@dataclass(eq=False)
class Node:
    """Tokens `start` to `end` of each of `sequences`.

    Attributes:
        tokens: those tokens.
        start, end: their place in the sequences.
        sequences: the numbers of all sequences that pass through here or end here.
        parent: the node with the tokens before `start`, None at the beginning.
        children: the nodes with those after `end`.
    """

    tokens: Tokens
    start: int
    end: int
    sequences: list[int]
    parent: "Node | None"
    children: list["Node"] = field(default_factory=list)

    def path(self) -> list["Node"]:
        """The nodes from the beginning of the sequences down to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


def build_tree(sequences: Sequence[Tokens], min_shared: int = MIN_SHARED) -> tuple[list[Node], list[Node]]:
    """(the nodes at the beginning of sequences, the node at which each sequence ends), for sequences of at least one
    token each.

    Equal sequences end in the same node. Neighbours in the tree's order begin alike.
    """
    groups: dict[bytes, list[int]] = {}
    for number, tokens in enumerate(sequences):
        # Big-endian, so that the order of the bytes is the order of the tokens.
        groups.setdefault(tokens.astype(">u4").tobytes(), []).append(number)
    distinct = [groups[key] for key in sorted(groups)]
    texts = [sequences[numbers[0]] for numbers in distinct]
    common = [_common_prefix(*pair) for pair in pairwise(texts)]
    builder = _Builder(distinct, texts, common, min_shared, [None] * len(sequences))
    roots = list(builder.nodes(0, len(texts), 0, None))
    return roots, [node for node in builder.ends if node is not None]


@dataclass
class _Builder:
    distinct: list[list[int]]  # in the order of their tokens, the numbers of equal sequences
    texts: list[Tokens]
    common: list[int]  # tokens that a text shares with the next
    min_shared: int
    ends: list[Node | None]

    def nodes(self, low: int, high: int, depth: int, parent: Node | None) -> Iterator[Node]:
        """The nodes at `depth` of the texts from `low` to `high`, with all below them."""
        first = low
        while first < high:
            last = first + 1
            while last < high and self.common[last - 1] >= depth + self.min_shared:
                last += 1
            yield self._node(first, last, depth, parent)
            first = last

    def _node(self, low: int, high: int, depth: int, parent: Node | None) -> Node:
        end = min(self.common[low : high - 1], default=len(self.texts[low]))
        numbers = [number for text in range(low, high) for number in self.distinct[text]]
        node = Node(self.texts[low][depth:end], depth, end, numbers, parent)
        if len(self.texts[low]) == end:  # only the first can be as short as what all share
            for number in self.distinct[low]:
                self.ends[number] = node
            low += 1
        node.children = list(self.nodes(low, high, end, node))
        return node


def _common_prefix(a: Tokens, b: Tokens) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
