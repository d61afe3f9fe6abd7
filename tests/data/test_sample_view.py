"""Samples taken apart, against the documents that were written and the stream they make; and how they are printed."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mindllm_engine.data.inspection import inspect
from mindllm_engine.data.inspection_text import (
    print_inspection,
    print_sample,
    shown_ids,
    shown_text,
    sparkline,
    visible,
)
from mindllm_engine.data.length_statistics import HistogramBin
from mindllm_engine.data.loader import IGNORED, Loader
from mindllm_engine.data.plan import BlockConfig, Packing
from mindllm_engine.data.sample_view import SampleView, look_at
from mindllm_engine.data.stream import packed_windows
from mindllm_engine.data.token_files import TokenFile
from tests.data.test_loader import SEQ_LEN, make_loader, make_plan, random_lengths, write_source, write_sources


def printed(view: SampleView, loader: Loader) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    print_sample(console, view, loader.plan, lambda ids: "".join(chr(0x4E00 + int(token)) for token in ids))
    return console.file.getvalue()


def check_view(view: SampleView, loader: Loader, files: list[TokenFile]) -> None:
    """The pieces are of the documents they name, and tell which targets count."""
    source_id, _ = loader.plan.locate(np.array([view.sample]))
    assert view.source == source_id[0]
    row: list[int] = []
    targets: list[int] = []
    for piece in view.pieces:
        document = files[view.source].document(piece.document)
        assert piece.length == len(document)
        assert piece.ids.tolist() == document[piece.begin : piece.end].tolist()
        assert piece.begins_before == (piece.begin > 0)
        assert piece.continues == (piece.end < len(document))
        assert piece.targets == len(piece.ids) - 1
        row += piece.ids.tolist()
        targets += [*piece.ids[1:].tolist(), IGNORED]
    row = [*row, *[0] * (view.seq_len - len(row))][: view.seq_len]
    targets = [*targets, *[IGNORED] * (view.seq_len - len(targets))][: view.seq_len]
    batch = loader.read(np.array([view.sample]))
    assert batch.tokens.tolist() == row
    assert batch.targets.tolist() == targets
    ignored = [place for first, last in view.ignored for place in range(first, last + 1)]
    assert ignored == [place for place, target in enumerate(targets) if target == IGNORED]


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
@pytest.mark.parametrize("order", ["shuffled", "blocked", "chunked"])
def test_every_sample_is_what_the_files_hold(tmp_path: Path, packing: Packing, order: str) -> None:
    files = write_sources(tmp_path)
    blocks = [
        BlockConfig(tokens=60 * SEQ_LEN, order=order),
        BlockConfig(tokens=30 * 24, seq_len=24, order=order, weights={"a": 1, "c": 2}),
    ]
    plan = make_plan(files, blocks, packing)
    loader = make_loader(plan, files)
    views = [look_at(loader, files, sample) for sample in range(90)]
    for view in views:
        check_view(view, loader, files)
    assert [view.block for view in views] == [0] * 60 + [1] * 30
    assert [view.seq_len for view in views] == [16] * 60 + [24] * 30
    pieces = [piece for view in views for piece in view.pieces]
    assert any(piece.begins_before for piece in pieces)
    assert any(piece.continues for piece in pieces)
    assert any(view.padding for view in views) == (packing == "best_fit")


def test_an_epoch_of_whole_documents_gives_each_of_them_back(tmp_path: Path) -> None:
    files = [write_source(tmp_path, "a", random_lengths(200, 3, longest=14), seed=3)]
    samples = packed_windows(files[0], SEQ_LEN).samples
    plan = make_plan(files, [BlockConfig(tokens=samples * SEQ_LEN, max_epochs=1.0)], "best_fit")
    loader = make_loader(plan, files)
    seen: dict[int, list[int]] = {}
    for sample in range(samples):
        for piece in look_at(loader, files, sample).pieces:
            assert piece.document not in seen
            seen[piece.document] = piece.ids.tolist()
    lengths = files[0].lengths
    for document in range(files[0].documents):
        # One of a single token may stand where only a target would be: it is no input, and predicts nothing.
        if lengths[document] > 1:
            assert seen[document] == files[0].document(document).tolist()


def test_packing_efficiency_is_that_of_all_samples(tmp_path: Path) -> None:
    files = [write_source(tmp_path, "a", random_lengths(500, 5, longest=60), seed=5)]
    samples = packed_windows(files[0], SEQ_LEN).samples
    plan = make_plan(files, [BlockConfig(tokens=2 * samples * SEQ_LEN)], "best_fit")
    loader = make_loader(plan, files)
    tokens = sum(int(loader.find(sample)[1][:, 3].sum()) for sample in range(2 * samples))
    (source,) = inspect(loader, files, [0]).sources
    assert source.efficiency == {SEQ_LEN: pytest.approx(tokens / (2 * samples * (SEQ_LEN + 1)))}
    assert source.epochs == 2
    assert source.tokens_per_byte == pytest.approx(1 / 3)


def test_marks_of_cut_documents_padding_and_ignored_targets(tmp_path: Path) -> None:
    """Documents of 40, 9 and 4 tokens in samples of 17: two full ones, then what is left with the short ones."""
    files = [write_source(tmp_path, "a", [40, 0, 9, 4], seed=1)]
    plan = make_plan(files, [BlockConfig(tokens=4 * SEQ_LEN, max_epochs=2)], "best_fit")
    loader = make_loader(plan, files)
    samples = packed_windows(files[0], SEQ_LEN).samples
    assert samples == 4
    views = [look_at(loader, files, sample) for sample in range(samples)]
    shown = {tuple((piece.document, piece.begin, piece.end) for piece in view.pieces): view for view in views}
    assert set(shown) == {((0, 0, 17),), ((0, 16, 33),), ((0, 32, 40), (2, 0, 9)), ((3, 0, 4),)}
    full = printed(shown[(0, 0, 17),], loader)
    assert "document 0, tokens [0, 17) of 40, 16 targets, continues ──" in full
    assert "ignored: 0 of 16 targets\n" in full
    assert "document 0, tokens [16, 33) of 40, 16 targets, begins before, continues ──" in printed(
        shown[(0, 16, 33),], loader
    )
    mixed = printed(shown[(0, 32, 40), (2, 0, 9)], loader)
    assert "document 0, tokens [32, 40) of 40, 7 targets, begins before ──" in mixed
    assert "document 2, tokens [0, 9) of 9, 8 targets ──" in mixed
    assert "ignored: 1 of 16 targets, at 7\n" in mixed
    assert "padding" not in mixed
    short = printed(shown[(3, 0, 4),], loader)
    assert "padding: 12 tokens ──" in short
    assert "ignored: 13 of 16 targets, at 3 to 15\n" in short
    assert "a (en, web), 16 tokens, block 0 (shuffled) ══" in short
    text = "".join(chr(0x4E00 + int(token)) for token in files[0].document(3))
    assert f"\n{text}\n" in short


def test_everything_is_printed_without_a_tokenizer_too(tmp_path: Path) -> None:
    files = write_sources(tmp_path)
    plan = make_plan(files, [BlockConfig(tokens=60 * SEQ_LEN)], "best_fit")
    loader = make_loader(plan, files)
    inspection = inspect(loader, files, [3, 59])
    console = Console(file=io.StringIO(), width=200, highlight=False)
    print_inspection(console, inspection, None)
    shown = console.file.getvalue()
    for part in ("packed 16", "lengths of all sources", "sample 3: ", "sample 59: "):
        assert part in shown
    assert " ".join(map(str, inspection.samples[0].pieces[0].ids)) in shown


def test_white_space_is_visible_and_a_terminal_is_not_commanded() -> None:
    assert visible("a b") == "a b"
    assert visible(" a  b \nc") == "·a··b·↵\nc"
    assert visible("x\ty\r") == "x⇥\ty\\r"
    assert visible("\x1b[2J\u202e\u3000好") == "\\x1b[2J\\u202e\\u3000好"


def test_long_texts_are_cut_in_the_middle() -> None:
    assert shown_text("x" * 600) == "x" * 600
    assert shown_text("a" * 400 + "b" * 1234 + "c" * 200) == f"{'a' * 400} … 1,234 characters … {'c' * 200}"
    assert shown_ids(np.arange(48)) == " ".join(map(str, range(48)))
    assert "31 … 2 ids … 34 " in shown_ids(np.arange(50))


def test_a_sparkline_has_a_character_for_each_power_of_two() -> None:
    bins = [HistogramBin(0, 0, 8, 0), HistogramBin(1, 1, 0, 0), HistogramBin(2, 3, 1, 2), HistogramBin(4, 7, 4, 20)]
    assert sparkline(bins, 7) == "█ ▁▄"
    assert sparkline(bins, 15) == "█ ▁▄ "
