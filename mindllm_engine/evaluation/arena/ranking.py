"""Reads a judge's ranking, such as `Ranking: B > A = C`, strictly: every answer once, nothing else, or it is refused.

A judge may think aloud first. If lines are marked (`Ranking:`, `排名：`) they count, else lines that are a ranking and
nothing more; where several count they must agree. What is refused is asked for again, and then counted as failed.
"""

import re
import unicodedata
from collections.abc import Sequence

_MARK = re.compile(r"^(?:final\s+ranking|ranking|最终排名|最终排序|排名|排序)\s*:", re.IGNORECASE)
# Ornaments around a line or a label, and what may end a sentence.
_ORNAMENTS = re.compile(r"[*_`#\"'“”‘’「」\[\]()]")
_RANKING = re.compile(r"[A-Z](?:[>=][A-Z])*", re.IGNORECASE)


def parse_ranking(reply: str, labels: Sequence[str]) -> list[list[str]]:
    """The labels (capital letters) from the best on, those of equal rank together.

    Full-width letters and signs count as the plain ones, small letters as capitals; bold, quotes and a full stop around
    a ranking are passed over.

    Raises:
        ValueError: no ranking, or not one of exactly these labels, or several that differ; the text says which.
    """
    lines = [_ORNAMENTS.sub("", unicodedata.normalize("NFKC", line)).strip() for line in reply.splitlines()]
    marked = [line[match.end() :] for line in lines if (match := _MARK.match(line)) and match.end() < len(line)]
    found = []
    for line in marked or lines:
        compact = "".join(line.rstrip(".。").split())
        if _RANKING.fullmatch(compact) and (marked or len(compact) > 1):
            found.append(_groups(compact.upper(), labels))
        elif marked:
            raise ValueError(f"not a ranking: {line.strip()[:80]!r}")
    if not found:
        raise ValueError("the reply holds no ranking")
    if any([set(group) for group in other] != [set(group) for group in found[0]] for other in found):
        raise ValueError("the reply holds rankings that differ")
    return found[0]


def _groups(compact: str, labels: Sequence[str]) -> list[list[str]]:
    groups = [group.split("=") for group in compact.split(">")]
    named = [label for group in groups for label in group]
    if sorted(named) != sorted(labels):
        strange = sorted(set(named) - set(labels))
        missing = sorted(set(labels) - set(named))
        what = f"names {', '.join(strange)}" if strange else f"lacks {', '.join(missing)}" if missing else "repeats one"
        raise ValueError(f"the ranking {compact} {what}; it must name each of {', '.join(labels)} once")
    return groups


def ranks_of(groups: Sequence[Sequence[str]], labels: Sequence[str]) -> list[int]:
    """The rank of each label, 0 the best; equal ones share theirs."""
    rank = {label: number for number, group in enumerate(groups) for label in group}
    return [rank[label] for label in labels]
