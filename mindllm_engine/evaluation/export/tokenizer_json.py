"""Our tokenizers as `tokenizer.json`, the format of the library tokenizers, with the same ids for every text.

SentencePiece's BPE joins the two neighbours whose union is the best-scored piece; the library joins those that stand
first in a list of pairs. The list therefore holds every way in which a piece is made of two others, by falling score.
Spaces are written as spaces, not as U+2581: the character U+2581 in a text then falls to its bytes, as it does in
`Tokenizer`, and no normaliser is needed.

A chat template (chat_jinja.py) needs two marks in its text that are no part of it: SPLIT, across which nothing is
joined, and JOIN, which keeps "<|user|>" in a message from being read as the symbol. Both are taken away here, and both
begin with a code point that Unicode keeps for a program's own use and no text should hold.
"""

import random
from itertools import pairwise
from typing import Any

import orjson
import sentencepiece
import tokenizers

from mindllm_engine.corpus.byte_level_tokenizer import ByteLevelTokenizer
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.corpus.sentencepiece_model import Piece, PieceKind, encodes_by_units, pieces_of
from mindllm_engine.errors import DataError

SPLIT, JOIN = "\ufdd0\ufdd1", "\ufdd0\ufdd2"

_SPACE_MARK = "\u2581"
_CHECKED_TEXTS = 500


def tokenizer_json(tokenizer: TextTokenizer, for_chats: bool) -> bytes:
    """The tokenizer.json whose ids and texts are those of `tokenizer`.

    A byte-level tokenizer's own file comes back byte for byte, unless it is to serve chats.

    Args:
        for_chats: take away the marks of a chat template.

    Raises:
        DataError: a SentencePiece model of a kind that the library tokenizers cannot follow (unigram, with a
        normaliser, without byte fallback, with pieces of equal score).
    """
    content = tokenizer.model_path.read_bytes()
    if not isinstance(tokenizer, ByteLevelTokenizer):
        fields = _from_sentencepiece(content, str(tokenizer.model_path))
    elif for_chats:
        fields = orjson.loads(tokenizers.Tokenizer.from_buffer(content).to_str())
    else:
        return content
    if for_chats:
        _take_marks_away(fields)
    converted = orjson.dumps(fields, option=orjson.OPT_INDENT_2)
    _check(tokenizer, converted)
    return converted


def special_tokens(converted: bytes) -> dict[str, int]:
    """The control symbols of a tokenizer.json, with their ids: what stands in its `added_tokens` as special."""
    return {token["content"]: token["id"] for token in orjson.loads(converted)["added_tokens"] if token["special"]}


def _from_sentencepiece(model: bytes, path: str) -> dict[str, Any]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = pieces_of(model)
    vocab = {_plain(piece): id for id, piece in enumerate(pieces)}
    if not encodes_by_units(processor) or len(vocab) < len(pieces):
        raise DataError(
            f"{path}: cannot be written as tokenizer.json: it is no BPE model with byte fallback, identity "
            "normalisation, kept spaces and no dummy prefix, as tools/train_tokenizer.py makes"
        )
    begin, unknown = pieces[processor.bos_id()].text, pieces[processor.unk_id()].text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": _plain(piece),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece.kind != PieceKind.USER_DEFINED,
            }
            for id, piece in enumerate(pieces)
            if piece.kind in (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        # A document begins with <s>, as it did in training, unless add_special_tokens is False.
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": begin, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {begin: {"id": begin, "ids": [processor.bos_id()], "tokens": [begin]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(pieces, path),
        },
    }


def _plain(piece: Piece) -> str:
    return piece.text.replace(_SPACE_MARK, " ")


def _merges(pieces: list[Piece], path: str) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those of the best score first."""
    known = {_plain(piece) for piece in pieces if piece.kind == PieceKind.NORMAL}
    joined = [piece for piece in pieces if piece.kind == PieceKind.NORMAL and len(piece.text) > 1]
    joined.sort(key=lambda piece: -piece.score)
    for one, other in pairwise(joined):
        if one.score == other.score:
            raise DataError(
                f"{path}: the pieces {one.text!r} and {other.text!r} have the same score, so which is joined first "
                "depends on where they stand, which tokenizer.json cannot say"
            )
    if any(letter not in known for letter in set("".join(map(_plain, joined)))):
        raise DataError(f"{path}: some pieces hold a character that is no piece, which tokenizer.json cannot say")
    halves = ((text[:cut], text[cut:]) for text in map(_plain, joined) for cut in range(1, len(text)))
    return [(left, right) for left, right in halves if left in known and right in known]


def _take_marks_away(fields: dict[str, Any]) -> None:
    join = {"type": "Replace", "pattern": {"String": JOIN}, "content": ""}
    split = {"type": "Split", "pattern": {"String": SPLIT}, "behavior": "Removed", "invert": False}
    for part, step, steps in (("normalizer", join, "normalizers"), ("pre_tokenizer", split, "pretokenizers")):
        fields[part] = step if fields[part] is None else {"type": "Sequence", steps: [step, fields[part]]}


def _check(tokenizer: TextTokenizer, converted: bytes) -> None:
    """Texts of random ids of all parts of the vocabulary have the same ids and are given back by both."""
    theirs = tokenizers.Tokenizer.from_buffer(converted)
    theirs.encode_special_tokens = True
    generator = random.Random(0)
    for _ in range(_CHECKED_TEXTS):
        text = tokenizer.decode(generator.choices(range(tokenizer.vocab_size), k=40))
        ids = tokenizer.encode(text)
        if theirs.encode(text, add_special_tokens=False).ids != ids or theirs.decode(ids) != text:
            raise DataError(f"{tokenizer.model_path}: tokenizer.json would not give the same ids for {text!r}")
