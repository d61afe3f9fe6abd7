"""Extends a tokenizer file of any kind by Chinese pieces; extend_sentencepiece.py and extend_byte_level.py say what
stays as it was."""

from collections.abc import Iterable
from pathlib import Path

from mindllm_engine.corpus.extend_byte_level import extend_byte_level
from mindllm_engine.corpus.extend_sentencepiece import extend_sentencepiece
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, is_tokenizer_json, open_tokenizer
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError


def extend_tokenizer(
    base: str | Path, texts: Iterable[str], new_pieces: int, output: str | Path, special_tokens: bool = False
) -> TextTokenizer:
    """Write the tokenizer `base` with `new_pieces` more ids, of Chinese pieces trained on `texts`, to `output`.

    base: a SentencePiece model, a tokenizer.json of byte-level BPE, or a folder with GPT-2's vocab.json and merges.txt;
    of the last two the output is a tokenizer.json. special_tokens: those of special_tokens.py that the base lacks
    follow the pieces, and are not counted in `new_pieces`.

    Raises DataError if the base cannot be read or extended, or the texts give fewer pieces; ConfigError if no piece is
    asked for.
    """
    if new_pieces < 1:
        raise ConfigError(f"pieces is {new_pieces}; ask for one at least")
    base = Path(base)
    extend = extend_byte_level if base.is_dir() or is_tokenizer_json(base) else extend_sentencepiece
    write_atomically(Path(output), extend(base, texts, new_pieces, special_tokens))
    return open_tokenizer(output)
