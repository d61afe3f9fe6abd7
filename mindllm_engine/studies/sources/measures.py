"""What the losses of one network a source say of the sources: transfer, likeness, and the mixture that follows.

Everything here is arithmetic on matrices, apart from runs: `runs.py` reads those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.errors import ConfigError, DataError

# What the authors advise (MindLLM, section 2.4.2; their project page, directionai.cn): web text of high quality in a
# high proportion; books and dialogues, which are long, retained; mathematics sampled down; code sampled up.
RAISED_FOR_TEACHING = "webtext"
RAISED_FOR_NOT_BEING_TAUGHT = "code"
LOWERED_FOR_BEING_LEARNT_SOON = "math"
RETAINED = ("book", "dialogue")

# How far a measured factor may go: the advice gives directions, not sizes, and a small network's figures are rough.
LARGEST_FACTOR = 4.0


@dataclass(frozen=True)
class Place:
    """Where a source stands in a mixture: its language, category and training tokens."""

    name: str
    language: str
    category: str
    tokens: int


def transfer_matrix(
    untrained: NDArray[np.float64], trained: NDArray[np.float64], names: Sequence[str]
) -> NDArray[np.float64]:
    """How far the network of one source serves for another: of the bits that the text's own network saves against an
    untrained one, the share that the other's saves. 1 is as good as its own, 0 as good as none, below 0 worse.

    For networks that have learnt their sources perfectly it is 1 - KL(text || model) / (bits saved at all), per byte.

    Args:
        untrained: (sources,) bits per byte of each source's held-out text under a network before training.
        trained: (sources, sources) bits per byte; a row is a network, a column a text.
        names: of the sources, for errors.

    Returns:
        (sources, sources), of the same layout; the diagonal is 1.

    Raises:
        DataError: a source's own network saves nothing.
    """
    saved = untrained[None, :] - trained
    own = np.diag(saved)
    for name, bits in zip(names, own, strict=True):
        if not bits > 0:
            raise DataError(
                f"source {name}: its own network saves nothing of its held-out text ({bits:.3f} bits per byte); train "
                "for more steps"
            )
    return np.asarray(saved / own[None, :])


def useful(transfer: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transfer with 0 for what lies below: a network that is worse than an untrained one teaches nothing. How far below
    it lies tells how sure it is where it is wrong, and one such source would outweigh all others in a mean."""
    return np.maximum(transfer, 0.0)


def similarity(transfer: NDArray[np.float64]) -> NDArray[np.float64]:
    """How alike two sources are: the mean of useful transfer in both directions, (sources, sources), symmetric."""
    found = useful(transfer)
    return np.asarray((found + found.T) / 2)


def peers(place: Place, places: Sequence[Place]) -> list[int]:
    """Numbers of the other sources of its language; of all others where there are none."""
    others = [number for number, other in enumerate(places) if other.name != place.name]
    return [number for number in others if places[number].language == place.language] or others


def teaches(transfer: NDArray[np.float64], places: Sequence[Place]) -> NDArray[np.float64]:
    """How well each source's network serves the other sources of its language, on average, (sources,)."""
    return np.array([useful(transfer)[number, peers(place, places)].mean() for number, place in enumerate(places)])


def taught(transfer: NDArray[np.float64], places: Sequence[Place]) -> NDArray[np.float64]:
    """How well the networks of the other sources of its language serve each source, on average, (sources,)."""
    return np.array([useful(transfer)[peers(place, places), number].mean() for number, place in enumerate(places)])


def late_share(steps: Sequence[int], bits: Sequence[float]) -> float:
    """Of the bits that training saves on a source's own held-out text, the share that its second half saves. The less
    it is, the sooner the source is learnt.

    Args:
        steps: of the learning curve, from 0 on.
        bits: per byte, at those steps.

    Raises:
        DataError: fewer than three points, or nothing is saved.
    """
    if len(bits) < 3 or not bits[0] > bits[-1]:
        raise DataError("a learning curve needs three points and a loss that falls; lower sources.eval_every")
    middle = float(np.interp(steps[-1] / 2, steps, bits))
    return (middle - bits[-1]) / (bits[0] - bits[-1])


def against_language(values: NDArray[np.float64], places: Sequence[Place], category: str) -> float | None:
    """A measure of the sources of a category less the mean of the other sources of its language, averaged over
    languages; None where no language has both."""
    differences = []
    for language in sorted({place.language for place in places}):
        of_language = [number for number, place in enumerate(places) if place.language == language]
        inside = [values[number] for number in of_language if places[number].category == category]
        outside = [values[number] for number in of_language if places[number].category != category]
        if inside and outside:
            differences.append(fmean(inside) - fmean(outside))
    return fmean(differences) if differences else None


def between_languages(transfer: NDArray[np.float64], places: Sequence[Place]) -> float | None:
    """Mean useful transfer between two sources of one language less that between two of different ones; None where
    there are not both kinds of pairs."""
    pairs = [(row, column) for row in range(len(places)) for column in range(len(places)) if row != column]
    found = useful(transfer)
    same = [found[pair] for pair in pairs if places[pair[0]].language == places[pair[1]].language]
    other = [found[pair] for pair in pairs if places[pair[0]].language != places[pair[1]].language]
    return float(np.mean(same) - np.mean(other)) if same and other else None


def factors(
    places: Sequence[Place],
    teaching: NDArray[np.float64],
    being_taught: NDArray[np.float64],
    late: NDArray[np.float64],
) -> list[float]:
    """By how much each source is read more or less often than by its size. The advice gives the direction, the
    measurement the size; where it speaks against the advice, the factor is 1.

    - web text: as much more as it teaches the others of its language more than they teach on average;
    - code: as much more as the others of its language teach it less than they are taught on average;
    - mathematics: as much less as it is learnt sooner than the average source of its language.
    """
    chosen = []
    for number, place in enumerate(places):
        among = [number, *peers(place, places)]
        factor = 1.0
        if place.category == RAISED_FOR_TEACHING:
            factor = max(1.0, _ratio(teaching[number], teaching[among].mean()))
        elif place.category == RAISED_FOR_NOT_BEING_TAUGHT:
            factor = max(1.0, _ratio(being_taught[among].mean(), being_taught[number]))
        elif place.category == LOWERED_FOR_BEING_LEARNT_SOON:
            factor = min(1.0, _ratio(late[number], late[among].mean()))
        chosen.append(factor)
    return chosen


def mixture_weights(places: Sequence[Place], chosen: Sequence[float]) -> dict[str, float]:
    """Each source's share of its language's tokens, by name: its size times its factor; books and dialogues keep the
    share that they have by size. The shares of a language sum to 1."""
    weights: dict[str, float] = {}
    for language in sorted({place.language for place in places}):
        members = [(place, factor) for place, factor in zip(places, chosen, strict=True) if place.language == language]
        size = sum(place.tokens for place, _ in members)
        retained = {place.name: place.tokens / size for place, _ in members if place.category in RETAINED}
        scaled = {place.name: place.tokens * factor for place, factor in members if place.name not in retained}
        room, whole = 1 - sum(retained.values()), sum(scaled.values())
        weights |= retained | {name: room * value / whole for name, value in scaled.items()}
    return {place.name: weights[place.name] for place in places}


def language_ratios(places: Sequence[Place], wanted: dict[str, float]) -> dict[str, float]:
    """The wanted ratio of those languages that there are. Raises ConfigError for one without a ratio."""
    present = sorted({place.language for place in places})
    for language in present:
        if not wanted.get(language, 0) > 0:
            raise ConfigError(
                f"sources.languages: has no ratio above 0 for {language}, the language of some sources; add one"
            )
    return {language: wanted[language] for language in present}


def _ratio(value: float, average: float) -> float:
    """A ratio of two measures within [1 / LARGEST_FACTOR, LARGEST_FACTOR]; one that is not above 0 is taken for
    very little."""
    low, high = 1 / LARGEST_FACTOR, LARGEST_FACTOR
    if not average > 0:
        return high if value > 0 else 1.0
    return float(np.clip(value / average, low, high))
