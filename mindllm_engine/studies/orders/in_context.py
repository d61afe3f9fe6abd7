"""In-context gain: how much better a network predicts held-out text of a source after other documents of the source
(few-shot) than alone (zero-shot)."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import numpy.typing as npt

from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.models import Network
from mindllm_engine.training.scoring import token_losses

# Held-out documents that are scored, of each source at most.
TARGETS = 32
# Tokens in a forward: the projection of a CPU wants memory for them.
PACK_TOKENS = 8192

Ids = npt.NDArray[np.integer]


def in_context_gain(
    model: Network, heldout: TokenFile, training: TokenFile, examples: int, length: int
) -> float | None:
    """Mean log-likelihood of a token of held-out documents after `examples` training documents of the same source, less
    that alone, in nats a token; above 0 where the network learns from its context.

    Of every document the first `length` // (`examples` + 1) tokens are taken, so that a whole sequence is as long as
    those that the network was trained on. The first token of a document is not scored.

    Returns:
        None if the source has no held-out document of two tokens or more, or too few training documents.
    """
    size = length // (examples + 1)
    targets = _beginnings(heldout, size, TARGETS)
    shown = _beginnings(training, size, len(targets) * examples)
    if not targets or len(shown) < examples:
        return None
    alone = _mean_losses(model, targets, [0] * len(targets))
    contexts = [_context(shown, number, examples) for number in range(len(targets))]
    sequences = [np.concatenate(pair) for pair in zip(contexts, targets, strict=True)]
    return alone - _mean_losses(model, sequences, [len(context) for context in contexts])


def _beginnings(file: TokenFile, size: int, count: int) -> list[Ids]:
    """The first `size` tokens of the file's first `count` documents of two tokens or more."""
    found: list[Ids] = []
    for number in range(file.documents):
        if len(found) == count:
            break
        document = file.document(number)[:size]
        if len(document) > 1:
            found.append(document)
    return found


def _context(shown: Sequence[Ids], number: int, examples: int) -> Ids:
    """The documents that stand before target `number`: others for each, as long as there are enough."""
    return np.concatenate([shown[(number * examples + place) % len(shown)] for place in range(examples)])


def _mean_losses(model: Network, sequences: Sequence[Ids], skipped: Sequence[int]) -> float:
    """Mean loss of the tokens after the first `skipped` and one more of each sequence, in nats."""
    parts = [losses[skipped[number] :] for number, losses in token_losses(model, sequences, PACK_TOKENS)]
    return fmean(float(loss) for part in parts for loss in part)
