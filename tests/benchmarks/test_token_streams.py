"""The benchmark of the data path at tiny sizes: every row is produced, and both sides read the same tokens."""

import gzip
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import token_stream_files as files
from mindllm_engine.corpus.sample.story import en_story, zh_story
from mindllm_engine.data.loader import IGNORED
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile

pytest.importorskip("megatron.core")
from benchmarks import token_stream_ours as ours
from benchmarks import token_stream_peers as megatron
from benchmarks import token_stream_rows as rows

ROOT = Path(__file__).parents[2]
SEQ_LEN, BATCH, SOURCES, SAMPLES_EACH = 64, 2, 3, 64
SAMPLES = SOURCES * SAMPLES_EACH
KEYS = {"name", "unit", "ours", "peer", "peer_name", "ratio", "bar", "holds", "reason"}


@pytest.fixture(scope="module")
def distinct(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[int, int], set[int]]:
    """Sources in which no id comes twice, each of whole samples and one token; the id after each within its document,
    and the first ids of documents."""
    folder = tmp_path_factory.mktemp("distinct")
    generator = np.random.default_rng(0)
    ids = generator.permutation(files.VOCAB).astype(np.uint16)
    prefixes, after, firsts = [], {}, set()
    for number in range(SOURCES):
        size = SAMPLES_EACH * SEQ_LEN + 1
        tokens = ids[number * size : (number + 1) * size]
        cuts = np.sort(generator.choice(np.arange(1, size), 60, replace=False))
        for document in np.split(tokens, cuts):
            after |= dict(itertools.pairwise(document.tolist()))
            firsts.add(int(document[0]))
        prefixes.append(folder / f"distinct{number}")
        with TokenFileBuilder(prefixes[-1], files.DTYPE, **files.source_facts(prefixes[-1].name)) as builder:
            builder.append_many(tokens, np.diff(np.concatenate(([0], cuts, [size]))), 0)
    return prefixes, after, firsts


def megatron_pairs(prefixes: list[Path]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    dataset = megatron.build(prefixes, None, SAMPLES, SEQ_LEN)
    for batch in megatron.batches(dataset, BATCH, 2):
        yield batch["tokens"].flatten(), batch["labels"].flatten()


def our_pairs(prefixes: list[Path]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in ours.batches(ours.open_loader(prefixes, SAMPLES, SEQ_LEN), BATCH):
        yield batch.tokens, batch.targets


@pytest.mark.parametrize("pairs_of", [megatron_pairs, our_pairs])
def test_an_epoch_of_either_side_holds_every_token_once(pairs_of, distinct) -> None:
    prefixes, after, firsts = distinct
    pairs = list(pairs_of(prefixes))
    tokens = torch.cat([tokens for tokens, _ in pairs]).tolist()
    targets = torch.cat([targets for _, targets in pairs]).tolist()
    assert len(tokens) == len(set(tokens)) == SAMPLES * SEQ_LEN
    # Of each source one token is only a target: the last of its last sample.
    assert set(tokens) <= after.keys() | set(after.values()) | firsts
    within = [(token, target) for token, target in zip(tokens, targets, strict=True) if token in after]
    assert all(after[token] == target for token, target in within)
    across = {target for token, target in zip(tokens, targets, strict=True) if token not in after}
    assert across <= (firsts if pairs_of is megatron_pairs else {IGNORED})


def test_megatrons_ways_to_add_documents_write_the_same_files(tmp_path: Path) -> None:
    tokens, lengths = files.random_documents(50, np.random.default_rng(3))
    for name, add in (("one", megatron.add_one_by_one), ("bulk", megatron.add_in_bulk)):
        builder = megatron.open_builder(tmp_path / name)
        for _ in range(3):
            add(builder, tokens, lengths)
        builder.finalize(str(tmp_path / f"{name}.idx"))
    documents = megatron.read_documents(tmp_path / "bulk")
    assert len(documents) == len(documents.document_indices) - 1 == 150
    assert (tmp_path / "one.idx").read_bytes() == (tmp_path / "bulk.idx").read_bytes()
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "bulk.bin").read_bytes()


def test_hollow_sources_are_what_their_manifests_say(tmp_path: Path) -> None:
    prefixes = files.write_hollow_sources(tmp_path, 900, files.unequal_shares(3))
    lengths = [TokenFile(prefix).lengths for prefix in prefixes]
    assert [len(each) for each in lengths] == [491, 245, 164]
    for prefix in prefixes:
        TokenFile(prefix).verify()
        files.drop_from_page_cache([prefix])
    drawn = files.document_lengths(200_000, 0)
    assert drawn.min() >= 1
    assert abs(drawn.mean() - files.MEAN_TOKENS) < 0.02 * files.MEAN_TOKENS


@pytest.fixture
def real_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of text in the layout of the real one."""
    folder = tmp_path / "data" / "pretrain"
    folder.mkdir(parents=True)
    for language, story in (("en", en_story), ("zh", zh_story)):
        texts = itertools.islice(story(random.Random(0)), 300)
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{language}_story.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), 1))
    monkeypatch.setenv("MINDLLM_DATA", str(tmp_path / "data"))


def in_this_process(function: Callable[..., Any], *arguments: Any, limit_bytes: int | None = None) -> Any:
    """New processes import torch and megatron-core for seconds; tests/benchmarks/test_process_memory.py has them."""
    return function(*arguments)


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("addressing", ["from files to first batch: 4,000 documents", "memory for addressing", "the same by growth"]),
        ("random_reads", ["random samples of 2049 tokens, one", "random samples of 2049 tokens, ours 16"]),
        ("delivery", ["waiting for a micro-batch of 16 x 2049", "waiting for a micro-batch of 16 x 2049"]),
        ("writing", ["writing ", "writing ", "finishing ", "finishing ", "peak memory of writing 4,000 documents"]),
        ("tokenizing", ["tokenising ", "tokenising "]),
    ],
)
def test_rows_are_produced(
    name: str, starts: list[str], tmp_path: Path, real_text: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "in_fresh_process", in_this_process)
    write_all = files.write_plain_text
    monkeypatch.setattr(files, "write_plain_text", lambda *arguments, scale: write_all(*arguments, scale=1.0))
    found = list(rows.ROWS[name](rows.Bench(tmp_path, 0.0002, 1)))
    assert len(found) == len(starts)
    for row, start in zip(found, starts, strict=True):
        assert row["name"].startswith(start)
        assert row.keys() == KEYS
        assert row["ours"] > 0
        assert row["peer"] > 0
        better = row["ours"] / row["peer"]
        assert row["ratio"] == pytest.approx(better if row["unit"].endswith("/s") else 1 / better)


def test_rows_of_the_largest_plan_have_no_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "in_fresh_process", in_this_process)
    found = list(rows.largest_rows(rows.Bench(tmp_path, 0.00001, 1)))
    assert [row["name"].split(":")[0] for row in found] == [
        "from files to first batch, cold page cache",
        "from files to first batch, warm page cache",
        "growth of anonymous memory of 8 ranks",
    ]
    assert all(row.keys() == KEYS and row["holds"] and row["peer"] is None for row in found)
    assert not list(tmp_path.iterdir())


def test_command_line_writes_rows_and_deletes_its_files(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    command = [sys.executable, "benchmarks/token_streams.py", "--scale", "0.00001", "--repetitions", "1"]
    command += ["--only", "random_reads", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "rows.json").read_text())
    assert document.keys() == {"machine", "versions", "scale", "rows"}
    assert document["scale"] == 0.00001
    assert [row["bar"] for row in document["rows"]] == [10, None]
    assert done.stdout.count("    ours ") == len(document["rows"])
    assert not list((tmp_path / "work").iterdir())


def test_wrong_arguments_are_refused() -> None:
    command = [sys.executable, "benchmarks/token_streams.py", "--scale", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--scale" in done.stderr
