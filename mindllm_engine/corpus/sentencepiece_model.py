"""What a SentencePiece model file says of itself, and pieces appended to it.

The file is a protocol buffer (sentencepiece_model.proto). The library tells neither the kinds of pieces nor the
settings that decide whether texts may be cut and encoded unit by unit, so they are read here.
"""

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sentencepiece

# Numbers of fields in sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of the model
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _VOCAB_SIZE, _BYTE_FALLBACK = 3, 4, 35  # of the trainer
_CHARACTER_MAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5  # of the normalizer
_VARINT, _LENGTH, _FLOAT = 0, 2, 5  # wire types


class ModelType(enum.IntEnum):
    """How a model splits texts."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class PieceKind(enum.IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary, spaces written as U+2581.

    Attributes:
        score: its log-probability (unigram), or its rank among the merges (BPE: the largest is merged first).
    """

    text: str
    score: float
    kind: PieceKind


def model_type(model: bytes) -> ModelType:
    """How the model of this file splits texts."""
    trainer = dict(_fields(bytes(dict(_fields(model)).get(_TRAINER, b""))))
    return ModelType(_number(trainer, _MODEL_TYPE, ModelType.UNIGRAM))


def pieces_of(model: bytes) -> list[Piece]:
    """The pieces of a model file in the order of their ids."""
    messages = [dict(_fields(bytes(value))) for number, value in _fields(model) if number == _PIECES]
    return [
        Piece(
            bytes(message.get(_TEXT, b"")).decode(),
            struct.unpack("<f", bytes(message.get(_SCORE, bytes(4))))[0],
            PieceKind(_number(message, _KIND, PieceKind.NORMAL)),
        )
        for message in messages
    ]


def append_pieces(model: bytes, pieces: Iterable[Piece]) -> bytes:
    """The model file with more pieces, whose ids follow those it has. All else stays as it is.

    Two protocol buffers written one after the other are their union: lists grow, and of a number the last value counts.
    """
    more = b"".join(
        _bytes_field(
            _PIECES,
            _bytes_field(_TEXT, piece.text.encode())
            + _varint(_SCORE << 3 | _FLOAT)
            + struct.pack("<f", piece.score)
            + _varint(_KIND << 3 | _VARINT)
            + _varint(piece.kind),
        )
        for piece in pieces
    )
    vocab_size = sum(number == _PIECES for number, _ in _fields(model + more))
    count = _varint(_VOCAB_SIZE << 3 | _VARINT) + _varint(vocab_size)
    # Read and written again, which puts both halves of the trainer's settings into one message.
    processor = sentencepiece.SentencePieceProcessor(model_proto=model + more + _bytes_field(_TRAINER, count))
    joined: bytes = processor.serialized_model_proto()
    return joined


def encodes_by_units(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether the ids of a text are those of its units (csrc/text_units.hpp), whatever the text.

    True for byte pair encoding whose normaliser only writes spaces as U+2581, with byte fallback (without it a run of
    unknown characters is one id) and without unused pieces (which are split again as they were last merged anywhere in
    the text). Symbols that are always kept whole are pieces as well, so no unit ends within one.
    """
    model = dict(_fields(processor.serialized_model_proto()))
    trainer, normalizer = (dict(_fields(bytes(model.get(part, b"")))) for part in (_TRAINER, _NORMALIZER))
    return (
        trainer.get(_MODEL_TYPE) == ModelType.BPE
        and trainer.get(_BYTE_FALLBACK) == 1
        and not normalizer.get(_CHARACTER_MAP)
        and normalizer.get(_DUMMY_PREFIX, 1) == 0
        and normalizer.get(_REMOVE_SPACES, 1) == 0
        and normalizer.get(_ESCAPE_SPACES, 1) == 1
        and not any(map(processor.is_unused, range(processor.vocab_size())))
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of a valid message's fields; a value is a whole number, or the bytes of anything else."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        yield number, message[at : at + size]
        at += size


def _number(message: dict[int, int | bytes], field: int, default: int) -> int:
    value = message.get(field, default)
    assert isinstance(value, int)
    return value


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
