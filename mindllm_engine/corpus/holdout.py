"""Which documents are held out from training: for validation, and to measure tokenizers on text they have not seen."""

import xxhash


def is_held_out(utf8: bytes, holdout: float) -> bool:
    """Whether a document is held out: iff the xxh3_64 of its text, as a share of 2^64, is below `holdout`.

    Equal texts go the same way, whatever file they lie in and however often the run is repeated.
    """
    return xxhash.xxh3_64_intdigest(utf8) < int(holdout * 2**64)
