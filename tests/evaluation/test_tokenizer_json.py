"""SentencePiece models as tokenizer.json: the same ids for any text, extended or not."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.sentencepiece_model import Piece, PieceKind, append_pieces
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.export.tokenizer_json import special_tokens, tokenizer_json
from tests.corpus.conftest import make_documents
from tests.evaluation.exported_runs import train_sentencepiece
from tests.evaluation.hard_strings import FRAGMENTS

Pair = tuple[Tokenizer, tokenizers.Tokenizer]

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
runs = st.tuples(st.sampled_from(" \t\n a0=。的"), st.integers(1, 30)).map(lambda run: run[0] * run[1])
mixed_text = st.lists(st.one_of(st.sampled_from(FRAGMENTS), any_text, runs), max_size=12).map("".join)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_sentencepiece(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pair(base: Tokenizer) -> Pair:
    return base, converted(base)


@pytest.fixture(scope="module")
def extended(base: Tokenizer) -> Pair:
    texts = [text.replace("的", "龘齉") for text in make_documents(200, 7)]
    tokenizer = extend_tokenizer(
        base.model_path, texts, 30, base.model_path.with_name("more.model"), special_tokens=True
    )
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer, converted(tokenizer)


def converted(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    theirs = tokenizers.Tokenizer.from_buffer(tokenizer_json(tokenizer, for_chats=False))
    theirs.encode_special_tokens = True
    return theirs


@settings(max_examples=300, deadline=None)
@given(mixed_text)
@example("".join(FRAGMENTS))
def test_any_text_has_the_same_ids(pair: Pair, extended: Pair, text: str) -> None:
    for ours, theirs in (pair, extended):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids) == text


def test_every_single_id_decodes_alike(pair: Pair) -> None:
    ours, theirs = pair
    for token in range(1, ours.vocab_size):  # SentencePiece shows <unk>, 0, as " ⁇ "
        assert theirs.decode([token]) == ours.decode([token])
    assert theirs.get_vocab_size() == ours.vocab_size


def test_control_symbols_are_the_special_tokens(base: Tokenizer) -> None:
    special = special_tokens(tokenizer_json(base, for_chats=False))
    assert list(special) == ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert special["<|user|>"] == base.special_id("<|user|>")


def test_pieces_of_one_score_are_refused(base: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tied.model"
    tied = [Piece("zqz", -5000.0, PieceKind.NORMAL), Piece("qzq", -5000.0, PieceKind.NORMAL)]
    path.write_bytes(append_pieces(base.model_path.read_bytes(), tied))
    with pytest.raises(DataError, match=r"tied\.model: the pieces 'zqz' and 'qzq' have the same score"):
        tokenizer_json(Tokenizer(path), for_chats=False)


def test_a_piece_of_an_unknown_character_is_refused(base: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "unknown.model"
    path.write_bytes(append_pieces(base.model_path.read_bytes(), [Piece("𪚥𪚥", -5000.0, PieceKind.NORMAL)]))
    with pytest.raises(DataError, match=r"unknown\.model: some pieces hold a character that is no piece"):
        tokenizer_json(Tokenizer(path), for_chats=False)


def test_bytes_that_are_no_text_are_decoded_as_documented(pair: Pair) -> None:
    """docs/export.md: all of a run of bytes is U+FFFD where it is not valid as a whole."""
    ours, theirs = pair
    ids = [*ours.encode("𪚥"), ours.encode("𪚥")[0]]
    assert ours.decode(ids) == "𪚥\ufffd"
    assert theirs.decode(ids) == "\ufffd" * 5
