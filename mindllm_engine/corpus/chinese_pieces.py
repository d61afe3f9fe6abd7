"""Chinese pieces to append to the vocabulary of another language: what counts as Chinese, and their training.

A piece is made of the characters below and of nothing else: Han characters with their rarer planes, Chinese
punctuation, and the full-width forms. Curly quotes, dashes and the ellipsis (U+2010 to U+203A) are left out, because
Western text has them as well. So no piece lies in a text of the base language, whatever accents, quotes, symbols or
emoji it has.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mindllm_engine.corpus.sentencepiece_model import ModelType, PieceKind, pieces_of
from mindllm_engine.corpus.sentencepiece_training import train_sentencepiece

# Each range begins and ends on a multiple of 64, so two bytes of the UTF-8 of a character tell whether it is in one.
CHINESE_RANGES = (
    (0x3000, 0x303F),  # punctuation
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility forms
    (0xFF00, 0xFF7F),  # full-width forms
    (0x20000, 0x3FFFF),  # the planes of Han's further extensions
)
CHINESE = "".join(f"{chr(first)}-{chr(last)}" for first, last in CHINESE_RANGES)
"""The same for a regular expression, between square brackets."""

_RUNS = re.compile(f"[{CHINESE}]+")


@dataclass(frozen=True)
class ChinesePiece:
    """A new piece with the score it was trained to: a log-probability (unigram) or minus its rank (BPE)."""

    text: str
    score: float


def chinese_runs(text: str) -> list[str]:
    """The longest stretches of Chinese characters, in order."""
    return _RUNS.findall(text)


def is_chinese(text: str) -> bool:
    """Whether the text has Chinese characters and no others."""
    return _RUNS.fullmatch(text) is not None


def train_chinese_pieces(
    texts: Iterable[str], count: int, known: Iterable[str], model_type: ModelType
) -> list[ChinesePiece]:
    """Pieces trained on the Chinese runs of `texts`, without those in `known`: single characters first, each kind best
    first. They may be more or fewer than `count`, which says how many are wanted.

    Raises DataError if the texts have no Chinese, or `count` is too small for their characters.
    """
    known = {piece for piece in known if is_chinese(piece)}
    runs = (run for text in texts for run in chinese_runs(text))
    model = train_sentencepiece(
        runs,
        1 + len(known) + count,  # one for <unk>
        model_type=model_type.name.lower(),
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
    )
    trained = [
        ChinesePiece(piece.text, piece.score)
        for piece in pieces_of(model)
        if piece.kind == PieceKind.NORMAL and piece.text not in known
    ]
    return sorted(trained, key=lambda piece: (len(piece.text) > 1, -piece.score))
