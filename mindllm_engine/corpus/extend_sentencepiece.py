"""Append Chinese pieces to a SentencePiece tokenizer (BPE or unigram) without changing how its language is encoded.

What is guaranteed, whatever the text, as the model's own normaliser writes it (NFKC makes Han of Kangxi radicals):

- The ids of all base pieces stay. A text without a Chinese character (chinese_pieces.py) has the ids it had: no new
  piece is part of it, and nothing else in the model changes.
- BPE, a text of both languages: the new encoding is the old one with neighbouring tokens joined. Merges are done in the
  order of scores, and the new ones have the lowest, so all base merges come first and leave the base encoding. A token
  without a Chinese character stays as it was. (Without byte fallback, `<unk>` stands for a whole run of unknown
  characters; new pieces in such a run part it.)
- Unigram, a text of both languages: away from Chinese characters the best split is the one it was, for the score of a
  split is a sum. Two limits: SentencePiece adds in fp32, so of two splits that are equal to its last bits another may
  win; and a base piece that holds Chinese and other characters ties its neighbours to the Chinese ones. New scores lie
  between the base's least and greatest, from which the scores of unknown characters and of symbols are derived.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece

from mindllm_engine.corpus.chinese_pieces import ChinesePiece, train_chinese_pieces
from mindllm_engine.corpus.sentencepiece_model import (
    ModelType,
    Piece,
    PieceKind,
    append_pieces,
    model_type,
    pieces_of,
)
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS, PERSONAL_DATA_TOKENS
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.errors import DataError


def extend_sentencepiece(base: Path, texts: Iterable[str], new_pieces: int, special_tokens: bool) -> bytes:
    """The model file `base` with `new_pieces` Chinese pieces trained on `texts`, and behind them, if asked for, those
    of the special tokens (special_tokens.py) that it lacks.

    The texts go through the model's own normaliser first, so a model that writes ，as a comma learns no ，.

    Raises DataError if it is no BPE or unigram model, or the texts give fewer pieces.
    """
    Tokenizer(base)  # for its errors
    model = base.read_bytes()
    kind = model_type(model)
    if kind not in (ModelType.BPE, ModelType.UNIGRAM):
        raise DataError(f"{base}: is a model of type {kind.name.lower()}; only bpe and unigram can be extended")
    pieces = pieces_of(model)
    known = {piece.text for piece in pieces}
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    trained = train_chinese_pieces(map(processor.normalize, texts), new_pieces, known, kind)
    if len(trained) < new_pieces:
        raise DataError(f"the text gives only {len(trained)} new pieces; give more text, or ask for fewer pieces")
    scored = _as_merges if kind == ModelType.BPE else _as_log_probabilities
    appended = scored(pieces, trained[:new_pieces])
    if special_tokens:
        tokens = [(token, PieceKind.USER_DEFINED) for token in PERSONAL_DATA_TOKENS]
        tokens += [(token, PieceKind.CONTROL) for token in CHAT_TOKENS]
        appended += [Piece(token, 0.0, kind) for token, kind in tokens if token not in known]
    return append_pieces(model, appended)


def _as_merges(base: list[Piece], trained: list[ChinesePiece]) -> list[Piece]:
    """With scores below every base score, in the order of training."""
    lowest = min(piece.score for piece in base)
    # SentencePiece holds scores in fp32, which tells whole numbers apart up to 2^24.
    scores = np.float32(lowest) - np.arange(1, len(trained) + 1, dtype=np.float32)
    if not (np.diff(scores, prepend=np.float32(lowest)) < 0).all():
        raise DataError(f"the base has a score of {lowest:g}; fp32 cannot tell {len(trained)} scores below it apart")
    return [Piece(piece.text, float(score), PieceKind.NORMAL) for piece, score in zip(trained, scores, strict=True)]


def _as_log_probabilities(base: list[Piece], trained: list[ChinesePiece]) -> list[Piece]:
    """With the scores of their own model, held between the base's least and greatest."""
    scores = [piece.score for piece in base if piece.kind == PieceKind.NORMAL]
    lowest, highest = min(scores), max(scores)
    return [Piece(piece.text, min(max(piece.score, lowest), highest), PieceKind.NORMAL) for piece in trained]
