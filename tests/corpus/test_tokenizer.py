"""The tokenizer: lossless for any text, deterministic, and the same ids whether by units or as SentencePiece alone."""

import itertools
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.special_tokens import CHAT_TOKENS, PERSONAL_DATA_TOKENS
from mindllm_engine.corpus.tokenizer import BOS_ID, EOS_ID, UNK_ID, Tokenizer, train_tokenizer
from mindllm_engine.errors import DataError
from tests.corpus.conftest import make_documents

MakeDocuments = Callable[[int, int], list[str]]

FRAGMENTS = [
    "the quick", "图书馆", "，", "。\n", "\n", "\r\n", "\t", "\t\t\t", " ", "   ", "\u3000", "1842", "😀",
    "👩‍👩‍👧", "é", "e\u0301", "ﬁ", "①", "Ａ",
    "\u2581", "\u2585", "\0", "\x7f", "\u200b", "\ufeff", "\u2028", "\U0010ffff", "\ue000",
    "<s>", "</s>", "<unk>", "<0x0A>", "def f(x):\n    return x\n", "{'a': 1}",
]  # fmt: skip
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
mixed_text = st.lists(st.one_of(st.sampled_from(FRAGMENTS), any_text), max_size=12).map("".join)


@settings(max_examples=400)
@given(mixed_text)
@example("".join(FRAGMENTS))
@example("\u2581")
@example(" \u2581 \u2581")
def test_decode_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {UNK_ID, BOS_ID, EOS_ID} & set(ids)


def test_decode_gives_back_every_character(tokenizer: Tokenizer) -> None:
    for plane in range(0, 0x110000, 0x1000):
        text = "".join(c for c in map(chr, range(plane, plane + 0x1000)) if unicodedata.category(c) != "Cs")
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(mixed_text)
def test_units_give_the_ids_of_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("\u2581", "")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_path))
    assert tokenizer.encode(text) == plain.encode(text)


def test_a_batch_is_its_texts_back_to_back(tokenizer: Tokenizer, documents: MakeDocuments) -> None:
    texts = [*documents(50, 3), "", *FRAGMENTS]
    tokens, lengths = tokenizer.encode_batch(texts)
    assert tokens.dtype == lengths.dtype == np.int32
    assert tokens.tolist() == list(itertools.chain.from_iterable(map(tokenizer.encode, texts)))
    ends = np.cumsum(lengths)
    assert [tokenizer.decode(tokens[end - length : end]) for end, length in zip(ends, lengths, strict=True)] == texts
    assert len(tokenizer.encode_batch([])[0]) == 0


def test_ids_and_pieces_are_as_documented(tokenizer: Tokenizer) -> None:
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_path))
    assert [plain.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "\t"]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, plain.pad_id()) == (600, 1, 2, -1)
    pieces = {plain.id_to_piece(i) for i in range(tokenizer.vocab_size)}
    assert any("\n" in piece and len(piece) > 1 for piece in pieces), "newlines are part of pieces"
    assert not any(piece.isdigit() and len(piece) > 1 for piece in pieces), "digits stand alone"
    assert len(tokenizer.encode("\t\t\t")) == 1
    assert tokenizer.decode([BOS_ID, *tokenizer.encode("x"), EOS_ID]) == "x"
    assert len(tokenizer.hash) == 16


@pytest.fixture(scope="module")
def with_special_tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("special") / "t.model"
    return train_tokenizer([*make_documents(400, 0), "<|user|> call <|phone|> " * 50], 620, path, special_tokens=True)


special_text = st.lists(
    st.one_of(st.sampled_from([*PERSONAL_DATA_TOKENS, *CHAT_TOKENS, "<|", "|>", "<|phone", "电话"]), any_text),
    max_size=8,
).map("".join)


@settings(max_examples=300)
@given(special_text)
@example("<|phone<|phone|>|><|email|><|email|>电话<|phone|>，\u2581<|ip|>\u2581")
def test_personal_data_is_one_id_and_chat_tokens_are_no_text(with_special_tokens: Tokenizer, text: str) -> None:
    ids = with_special_tokens.encode(text)
    assert with_special_tokens.decode(ids) == text
    for token in PERSONAL_DATA_TOKENS:
        assert ids.count(with_special_tokens.special_id(token)) == text.count(token)
    assert not {with_special_tokens.special_id(token) for token in CHAT_TOKENS} & set(ids)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(with_special_tokens.model_path))
    if "\u2581" not in text:
        assert ids == plain.encode(text)


def test_special_ids(with_special_tokens: Tokenizer, tokenizer: Tokenizer) -> None:
    ids = [with_special_tokens.special_id(token) for token in CHAT_TOKENS]
    assert ids == [3, 4, 5, 6]
    assert len({with_special_tokens.special_id(token) for token in PERSONAL_DATA_TOKENS}) == 5
    assert with_special_tokens.decode([*ids, *with_special_tokens.encode("hi <|user|>")]) == "hi <|user|>"
    for token in ("<|user|>", "<|phone|>"):
        with pytest.raises(DataError, match=r"has no special token .*; train the tokenizer with special_tokens: true"):
            tokenizer.special_id(token)


def test_the_same_text_gives_the_same_file(tmp_path: Path, documents: MakeDocuments, tokenizer: Tokenizer) -> None:
    again = train_tokenizer(documents(400, 0), 600, tmp_path / "deep" / "folder" / "again.model")
    assert again.model_path.read_bytes() == tokenizer.model_path.read_bytes()
    assert again.hash == tokenizer.hash
    assert [path.name for path in again.model_path.parent.iterdir()] == ["again.model"]
    assert train_tokenizer(documents(400, 1), 600, tmp_path / "other.model").hash != tokenizer.hash


def test_long_documents_are_not_dropped(tmp_path: Path) -> None:
    # One word of 200,000 characters, which the trainer by itself drops (as a sentence) or refuses (as a word).
    text = "".join(itertools.islice(itertools.cycle("天地玄黄宇宙洪荒"), 200_000))
    tokenizer = train_tokenizer([text], 285, tmp_path / "long.model")
    assert len(tokenizer.encode("天地玄黄宇宙洪荒" * 8)) < 40


def test_impossible_vocabularies_are_clear_errors(tmp_path: Path, documents: MakeDocuments) -> None:
    path = tmp_path / "t.model"
    path.write_bytes(b"kept")
    with pytest.raises(DataError, match=r"too little for a vocabulary of 50000: it gives at most \d+ pieces"):
        train_tokenizer(documents(5, 0), 50_000, path)
    with pytest.raises(DataError, match=r"a vocabulary of 270 is too small: .* take \d+"):
        train_tokenizer(documents(50, 0), 270, path)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([""], 1000, path)
    assert path.read_bytes() == b"kept"
    assert list(tmp_path.iterdir()) == [path]


def test_a_chinese_alphabet_does_not_fill_a_small_vocabulary(tmp_path: Path) -> None:
    frequent = "天地玄黄宇宙洪荒日月盈昃辰宿列张" * 3000
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 700)))
    tokenizer = train_tokenizer([frequent, rare], 700, tmp_path / "zh.model")
    assert tokenizer.decode(tokenizer.encode(rare)) == rare


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\x05hello"])
def test_a_file_that_is_no_model_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no SentencePiece model"):
        Tokenizer(path)


def test_missing_model_stray_ids_and_surrogates_are_errors(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer(tmp_path / "none.model")
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("a \ud800")
    assert tokenizer.decode(tokenizer.encode("a still works")) == "a still works"
    for ids in ([600], [-1]):
        with pytest.raises(DataError, match="outside"):
            tokenizer.decode(ids)


def test_a_model_with_a_dummy_prefix_is_encoded_as_it_wants(tmp_path: Path, documents: MakeDocuments) -> None:
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(documents(100, 0)),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "foreign.model"))
    text = " the quick  brown fox"
    assert Tokenizer(tmp_path / "foreign.model").encode(text) == plain.encode(text)
