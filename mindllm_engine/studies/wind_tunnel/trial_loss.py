"""The held-out loss of a trial by its name, where a diverged one counts as well: as a network that knows nothing."""

import math

from mindllm_engine.errors import DataError
from mindllm_engine.studies.results import Results


def loss_or_ignorance(results: Results, name: str) -> float | None:
    """Held-out loss of a trial, nats a token; that of a uniform guess if it diverged; None if it is not there.

    A search for the best value must know that a trial was bad, which leaving it out would hide. A loss worse than the
    uniform guess, of a network about to diverge, counts as the guess too.

    Raises:
        DataError: no trial of these results has finished.
    """
    if not len(results):
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in results.left_out[:3])
        raise DataError(f"no trial has finished ({reasons or 'none was planned'}); lower the learning rates")
    ignorance = math.log(results[0].config.model.selected.vocab_size)
    result = results.named(name)
    if result is not None:
        return min(result.loss, ignorance)
    diverged = any(entry.name == name and entry.reason.startswith("diverged") for entry in results.left_out)
    return ignorance if diverged else None
