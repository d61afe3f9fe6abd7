"""Encoding by units: SentencePiece's own ids for every model that is taken for fit, and a cache that stays small."""

import gc
import io
import itertools
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindllm_engine import _native
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.corpus.sentencepiece_model import encodes_by_units
from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer
from mindllm_engine.errors import DataError

MakeDocuments = Callable[[int, int], list[str]]
LARGE = 1 << 30

# What train_tokenizer asks for, but for the vocabulary.
OURS = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "byte_fallback": True,
    "split_digits": True,
    "vocab_size": 500,
    "minloglevel": 2,
}


def train(texts: list[str], **changes: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=iter(texts), model_writer=model, **{**OURS, **changes})
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def units_of(processor: sentencepiece.SentencePieceProcessor, cache_bytes: int = LARGE) -> _native.UnitEncoder:
    return _native.UnitEncoder([processor.id_to_piece(i) for i in range(processor.vocab_size())], cache_bytes)


# -- The same ids as SentencePiece ---

ALPHABET = "ab ▁cd天气\n\t。é😀<s>1ＡZ\0"
FIT_MODELS: dict[str, dict[str, Any]] = {
    "ours": {},
    "few merges": {"vocab_size": 345},
    "pieces across spaces": {"split_by_whitespace": False},
    "spaces after words": {"treat_whitespace_as_suffix": True},
    "symbols kept whole": {"user_defined_symbols": ["\t\t", "天 气", "ab", "bc▁d", "<s>1"]},
    "control symbols": {"control_symbols": ["<a>", "c", "天"]},
    "low coverage": {"character_coverage": 0.98},
}


@pytest.fixture(scope="module", params=FIT_MODELS)
def fit_model(
    request: pytest.FixtureRequest, documents: MakeDocuments
) -> tuple[sentencepiece.SentencePieceProcessor, _native.UnitEncoder, _native.UnitEncoder]:
    processor = train([*documents(200, 0), "ab cd abcd 天 气 天气", "bc d abc dd"], **FIT_MODELS[request.param])
    return processor, units_of(processor), units_of(processor, cache_bytes=0)


words = st.sampled_from(
    ["the", " quick", "图书馆", "天 气", "bc d", "abcd", "<s>1", "<a>", "\t\t\t", "  ", "1842", "。\n"]
)
text = st.lists(st.one_of(words, st.text(ALPHABET.replace("▁", "")), st.text(max_size=8)), max_size=10).map("".join)


@settings(max_examples=200)
@given(st.lists(text, max_size=4))
@example(["aaaa" * 50 + "天" * 99, ""])
def test_ids_are_those_of_sentencepiece(fit_model: Any, texts: list[str]) -> None:
    processor, encoder, forgetful = fit_model
    assert encodes_by_units(processor)
    texts = [text.replace("\u2581", "") for text in texts]
    expected = processor.encode(texts)
    for units in (encoder, forgetful):
        tokens, lengths = units.encode(texts, processor.encode)
        assert tokens.dtype == lengths.dtype == np.int32
        assert lengths.tolist() == list(map(len, expected))
        assert tokens.tolist() == list(itertools.chain.from_iterable(expected))


@pytest.mark.parametrize("language", ["zh", "en"])
def test_ids_of_real_text_are_those_of_sentencepiece(real_text: Path, tmp_path: Path, language: str) -> None:
    samples = [itertools.islice(read_texts([str(path)]), 150) for path in sorted(real_text.glob(f"{language}_*.gz"))]
    texts = [text for sample in samples for text in sample]
    tokenizer = train_tokenizer(texts[::2], 6000, tmp_path / "t.model")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_path))
    assert encodes_by_units(plain)
    tokens, lengths = tokenizer.encode_batch(texts)
    ends = np.cumsum(lengths)
    for text, end, length in zip(texts, ends, lengths, strict=True):
        if "\u2581" not in text:
            assert tokens[end - length : end].tolist() == plain.encode(text)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "unigram"},
        {"model_type": "char"},
        {"byte_fallback": False},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
    ],
    ids=str,
)
def test_other_models_encode_texts_whole(tmp_path: Path, documents: MakeDocuments, change: dict[str, Any]) -> None:
    size = 350 if change.get("model_type") == "char" else 500
    processor = train(documents(200, 0), **{**change, "vocab_size": size, "hard_vocab_limit": False})
    assert not encodes_by_units(processor)
    (tmp_path / "t.model").write_bytes(processor.serialized_model_proto())
    texts = ["", " the  quick\u2581天气 ①ﬁ", *documents(3, 1)]
    tokenizer = Tokenizer(tmp_path / "t.model")
    tokens, lengths = tokenizer.encode_batch(texts)
    assert lengths.tolist() == [len(processor.encode(text)) for text in texts]
    assert tokens.tolist() == [i for text in texts for i in processor.encode(text)]
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("\ud800")


def test_models_with_unused_pieces_encode_texts_whole(documents: MakeDocuments) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(train(documents(200, 0)).serialized_model_proto())
    model.pieces[300].type = model.SentencePiece.UNUSED
    assert not encodes_by_units(sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString()))


# -- Cutting, whatever encodes ---


def code_points(units: list[str]) -> list[list[int]]:
    return [list(map(ord, unit)) for unit in units]


@given(st.lists(st.text("abc 天\u2581", max_size=4), max_size=5), st.lists(st.text("abc 天\u2581"), max_size=4))
def test_units_are_cut_between_strangers_and_asked_for_once(pieces: list[str], texts: list[str]) -> None:
    encoder = _native.UnitEncoder(pieces, LARGE)
    asked: list[str] = []

    def encode_units(units: list[str]) -> list[list[int]]:
        asked.extend(units)
        return code_points(units)

    tokens, lengths = encoder.encode(texts, encode_units)
    assert "".join(map(chr, tokens)) == "".join(texts)
    assert lengths.tolist() == list(map(len, texts))
    assert len(set(asked)) == len(asked)
    neighbours = {pair for piece in pieces for pair in itertools.pairwise(piece.replace("\u2581", " "))}
    expected: set[str] = set()
    for text in texts:
        units = [text[:1]]
        for left, right in itertools.pairwise(text):
            if (left, right) in neighbours:
                units[-1] += right
            else:
                units.append(right)
        expected.update(units)
    assert set(asked) == expected - {""}  # no hashes collide among these few pairs
    before = len(asked)
    encoder.encode(texts, encode_units)
    assert len(asked) == before


def test_the_cache_is_emptied_when_it_is_full() -> None:
    limit = 1 << 20
    encoder = _native.UnitEncoder([], limit)
    largest = 0
    for first in range(0x4E00, 0x9E00, 0x400):
        texts = [chr(code) + "\u0300" * 3 for code in range(first, first + 0x400)]
        tokens, _ = encoder.encode(texts, lambda units: [[ord(unit[0])] * 200 for unit in units])
        assert len(tokens) == 4 * 200 * len(texts)
        largest = max(largest, encoder.cache_bytes)
    assert limit < largest < limit + 0x400 * 200 * 8
    assert encoder.encode([""], code_points)[0].tolist() == []


def test_an_error_leaves_the_encoder_as_good_as_new() -> None:
    encoder = _native.UnitEncoder(["ab"], LARGE)

    def fail(units: list[str]) -> list[list[int]]:
        raise KeyError(units[0])

    with pytest.raises(KeyError, match="ab"):
        encoder.encode(["ab"], fail)
    for bad in ([], [[1], [2]]):
        with pytest.raises(ValueError, match="for every unit"):
            encoder.encode(["ab"], lambda _, bad=bad: bad)
    for what in (7, [7], [["x"]], [[1 << 40]]):
        with pytest.raises(RuntimeError):
            encoder.encode(["ab"], lambda _, what=what: what)
    with pytest.raises(UnicodeEncodeError):
        encoder.encode(["ab", "\ud800"], code_points)
    for what in (["ab", b"ab"], ["ab", None], "ab", None):
        with pytest.raises(TypeError):
            encoder.encode(what, code_points)
    assert encoder.encode(["ab"], code_points)[0].tolist() == [97, 98]


def test_too_many_tokens_are_an_error() -> None:
    encoder = _native.UnitEncoder([], LARGE)
    with pytest.raises(ValueError, match="more than 2147483647 tokens"):
        encoder.encode(["a" * (1 << 15)], lambda units: [[0] * (1 << 16)])


def test_pieces_that_are_no_utf8_are_harmless() -> None:
    encoder = _native.UnitEncoder([b"\xe2\x96", b"\x80\x80", b"\xff", b"", b"\xe2", b"a\xe5\xa4"], LARGE)
    assert encoder.encode(["a天\u2581b"], code_points)[0].tolist() == list(map(ord, "a天\u2581b"))


def test_threads_take_turns(tokenizer: Tokenizer, documents: MakeDocuments) -> None:
    shared = Tokenizer(tokenizer.model_path)
    batches = [documents(40, seed) for seed in range(8)]
    expected = [tokenizer.encode_batch(batch)[0].tolist() for batch in batches]
    found: dict[int, list[int]] = {}

    def run(number: int) -> None:
        found[number] = shared.encode_batch(batches[number])[0].tolist()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(8)] == expected


def test_a_tokenizer_is_freed_with_its_last_reference(tokenizer: Tokenizer) -> None:
    gc.disable()
    try:
        short_lived = Tokenizer(tokenizer.model_path)
        short_lived.encode("the quick")
        reference = weakref.ref(short_lived)
        del short_lived
        assert reference() is None
    finally:
        gc.enable()
