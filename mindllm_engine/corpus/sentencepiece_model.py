"""What a SentencePiece model file says of itself: whether texts may be cut and encoded unit by unit.

The file is a protocol buffer. Three of its settings are not to be had from the library, so they are read here.
"""

from collections.abc import Iterator

import sentencepiece

# Numbers of fields in sentencepiece_model.proto.
_TRAINER, _NORMALIZER = 2, 3  # of the model
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35  # of the trainer
_CHARACTER_MAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5  # of the normalizer
_BPE = 2


def encodes_by_units(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether the ids of a text are those of its units (csrc/text_units.hpp), whatever the text.

    True for byte pair encoding whose normaliser only writes spaces as U+2581, with byte fallback (without it a run of
    unknown characters is one id) and without unused pieces (which are split again as they were last merged anywhere in
    the text). Symbols that are always kept whole are pieces as well, so no unit ends within one.
    """
    model = dict(_fields(processor.serialized_model_proto()))
    trainer, normalizer = (dict(_fields(bytes(model.get(part, b"")))) for part in (_TRAINER, _NORMALIZER))
    return (
        trainer.get(_MODEL_TYPE) == _BPE
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
