"""Tokenizing a source: contents, the held-out split, any number of workers, restarts, and what it refuses."""

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mindllm_engine.corpus import document_encoder, tokenize
from mindllm_engine.corpus.readers import read_raw_batches
from mindllm_engine.corpus.tokenize import TokenizedSource, tokenize_source
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import ConfigError, DataError, MindLLMError

Write = Callable[[Path, list[str]], Path]
MakeDocuments = Callable[[int, int], list[str]]


@pytest.fixture
def inputs(tmp_path: Path, write_records: Write, documents: MakeDocuments) -> str:
    """Four files of 100 documents, one of each format; the glob that names them."""
    folder = tmp_path / "raw"
    texts = [documents(100, seed) for seed in range(4)]
    write_records(folder / "a.jsonl", texts[0])
    for name, compress, part in (
        ("b.jsonl.gz", gzip.compress, texts[1]),
        ("c.jsonl.zst", zstandard.compress, texts[2]),
    ):
        plain = write_records(tmp_path / "plain.jsonl", part)
        (folder / name).write_bytes(compress(plain.read_bytes()))
    pq.write_table(pa.table({"text": texts[3]}), folder / "d.parquet")
    return str(folder / "*")


def run(inputs: str | list[str], out: Path, tokenizer: Tokenizer, **changed: object) -> TokenizedSource:
    arguments: dict = {"name": "mytext", "lang": "en", "category": "web", "holdout": 0.2, "workers": 1}
    return tokenize_source(inputs, out, tokenizer=tokenizer, **(arguments | changed))


def texts_of(prefix: str, tokenizer: Tokenizer) -> list[str]:
    file = TokenFile(prefix)
    documents = [file.document(i).tolist() for i in range(file.documents)]
    assert all(ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id for ids in documents)
    return [tokenizer.decode(ids) for ids in documents]


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".bin", ".idx", ".json")}


def test_every_document_is_stored_once_in_order(
    tmp_path: Path, inputs: str, tokenizer: Tokenizer, documents: MakeDocuments
) -> None:
    out = tmp_path / "out"
    result = run(inputs, out, tokenizer)
    assert result.heldout_prefix is not None
    train, heldout = texts_of(result.train_prefix, tokenizer), texts_of(result.heldout_prefix, tokenizer)
    everything = [text for seed in range(4) for text in documents(100, seed)]
    held_out = set(heldout)
    assert train == [text for text in everything if text not in held_out]
    assert heldout == [text for text in everything if text in held_out]
    assert 40 < len(heldout) < 120

    manifest = TokenFile(result.train_prefix).manifest
    assert (manifest.name, manifest.lang, manifest.category) == ("mytext", "en", "web")
    assert (manifest.tokenizer_hash, manifest.vocab_size, manifest.dtype) == (tokenizer.hash, 600, "uint16")
    counts = result.counts
    assert (counts.documents, counts.heldout_documents) == (len(train), len(heldout))
    assert (counts.tokens, counts.text_bytes) == (manifest.tokens, sum(len(text.encode()) for text in train))
    TokenFile(result.train_prefix).verify()
    assert not (out / "parts").exists()


@pytest.mark.parametrize("workers", [2, 3])
def test_the_output_does_not_depend_on_workers(
    tmp_path: Path, inputs: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    run(inputs, tmp_path / "one", tokenizer)
    monkeypatch.setattr(tokenize, "BATCH_BYTES", 1)  # or these small files would not be worth a second process
    monkeypatch.setattr(tokenize, "read_raw_batches", lambda path, field: read_raw_batches(path, field, 2000))
    run(inputs, tmp_path / "many", tokenizer, workers=workers)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")


def test_the_split_depends_on_the_text_alone(tmp_path: Path, write_records: Write, tokenizer: Tokenizer) -> None:
    texts = [f"document {number}" for number in range(300)]
    first = write_records(tmp_path / "first.jsonl", texts)
    second = write_records(tmp_path / "second.jsonl", ["new", *reversed(texts), *texts])
    small = run(str(first), tmp_path / "small", tokenizer, holdout=0.1)
    same = run(str(first), tmp_path / "same", tokenizer, holdout=0.1)
    doubled = run([str(second)], tmp_path / "doubled", tokenizer, holdout=0.1, name="other")
    wider = run(str(first), tmp_path / "wider", tokenizer, holdout=0.3)
    heldout = [texts_of(str(result.heldout_prefix), tokenizer) for result in (small, same, doubled, wider)]
    assert heldout[0] == heldout[1]
    assert sorted(heldout[2]) == sorted(heldout[0] * 2), "duplicates go the same way"
    assert set(heldout[0]) < set(heldout[3]), "a wider split holds out what the narrower one did"
    assert not set(heldout[2]) & set(texts_of(doubled.train_prefix, tokenizer))
    assert 10 < len(heldout[0]) < 60


def test_no_holdout_makes_no_heldout_files(tmp_path: Path, inputs: str, tokenizer: Tokenizer) -> None:
    result = run(inputs, tmp_path / "out", tokenizer, holdout=0.0)
    assert result.heldout_prefix is None
    assert not list((tmp_path / "out").glob("*.heldout.*"))
    assert result.counts.documents == 400


def test_dropped_records_are_counted_and_reported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n{"text": " \\n\\u3000"}\n{"text": ""}\n{\n{"text": "\xff"}\n{"text": "fine"}\n{'
    )
    result = run(str(path), tmp_path / "out", tokenizer, holdout=0.0)
    assert texts_of(result.train_prefix, tokenizer) == ["good", "fine"]
    assert result.counts.empty_documents == 2
    assert result.counts.bad_records.counts == {"malformed JSON": 2, "invalid UTF-8": 1}
    assert result.counts.bad_records.first == {"malformed JSON": f"{path}:4", "invalid UTF-8": f"{path}:5"}
    assert "2 malformed JSON" in result.summary()
    with pytest.raises(DataError, match=re.escape(f"{path}:4: malformed JSON")):
        run(str(path), tmp_path / "strict", tokenizer, on_bad_record="error")
    assert not files_of(tmp_path / "strict"), "nothing is left under the final names"


def test_a_source_without_text_is_an_error(tmp_path: Path, inputs: str, tokenizer: Tokenizer) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": ""}\n{"body": "x"}\n')
    with pytest.raises(
        DataError, match=r"no text under 'text' in .*: 1 no such field \(first .*:2\), 1 empty documents"
    ):
        run(str(path), tmp_path / "out", tokenizer)
    path.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"holdout 0\.99999999 leaves no document to train on"):
        run(str(path), tmp_path / "out", tokenizer, holdout=0.99999999)


def test_a_finished_source_is_left_alone(tmp_path: Path, inputs: str, tokenizer: Tokenizer) -> None:
    first = run(inputs, tmp_path / "out", tokenizer)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    os.utime(tmp_path / "raw" / "a.jsonl")  # touched, not changed
    second = run(inputs, tmp_path / "out", tokenizer, workers=2)
    assert (first.up_to_date, second.up_to_date) == (False, True)
    assert second.counts == first.counts
    moved = str((tmp_path / "raw").rename(tmp_path / "moved") / "*")
    assert run(moved, tmp_path / "out", tokenizer).up_to_date
    assert run(inputs, tmp_path / "out", tokenizer).up_to_date, "the raw text is needed no longer"
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_other_settings_or_inputs_are_refused(
    tmp_path: Path, inputs: str, tokenizer: Tokenizer, write_records: Write
) -> None:
    out = tmp_path / "out"
    run(inputs, out, tokenizer)
    before = files_of(out)
    for changed, message in (
        ({"holdout": 0.1}, "was made with holdout 0.2, but 0.1 is asked for; delete .*mytext"),
        ({"lang": "zh"}, "was made with lang en, but zh"),
        ({"on_bad_record": "error"}, "was made with on_bad_record skip"),
    ):
        with pytest.raises(DataError, match=message):
            run(inputs, out, tokenizer, **changed)
    other = tmp_path / "other.model"
    other.write_bytes(tokenizer.model_path.read_bytes() + b"\x1a\0")  # the same model in another file
    with pytest.raises(DataError, match=f"was made with tokenizer {tokenizer.hash}"):
        run(inputs, out, Tokenizer(other))
    write_records(tmp_path / "raw" / "e.jsonl", ["new"])
    with pytest.raises(DataError, match=r"was made without e\.jsonl"):
        run(inputs, out, tokenizer)
    (tmp_path / "raw" / "e.jsonl").rename(tmp_path / "raw" / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl has changed since"):
        run(inputs, out, tokenizer)
    (tmp_path / "raw" / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"was made from a\.jsonl"):
        run(inputs, out, tokenizer)
    assert files_of(out) == before


def test_files_of_another_origin_are_not_overwritten(tmp_path: Path, inputs: str, tokenizer: Tokenizer) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mytext.json").write_text("{}")
    with pytest.raises(DataError, match="was not made by this tool"):
        run(inputs, tmp_path / "out", tokenizer)


@pytest.mark.parametrize(
    "changed",
    [{"name": "a/b"}, {"name": ""}, {"name": "x.heldout"}, {"holdout": 1.0}, {"holdout": -0.1}, {"workers": 0}],
)
def test_impossible_arguments_are_refused(
    tmp_path: Path, inputs: str, tokenizer: Tokenizer, changed: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(changed))):
        run(inputs, tmp_path / "out", tokenizer, **changed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_file_does_not_cost_those_before_it(
    tmp_path: Path, inputs: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(tokenize, "BATCH_BYTES", 1)
    good = (tmp_path / "raw" / "c.jsonl.zst").read_bytes()
    (tmp_path / "raw" / "c.jsonl.zst").write_bytes(good[:-10])
    with pytest.raises(DataError, match=r"c\.jsonl\.zst.*truncated"):
        run(inputs, tmp_path / "out", tokenizer, workers=workers)
    (tmp_path / "raw" / "c.jsonl.zst").write_bytes(good)
    read: list[str] = []

    def spy(path: str, text_field: str) -> object:
        read.append(Path(path).name)
        return read_raw_batches(path, text_field)

    monkeypatch.setattr(tokenize, "read_raw_batches", spy)
    run(inputs, tmp_path / "out", tokenizer)
    assert "a.jsonl" not in read
    run(inputs, tmp_path / "clean", tokenizer)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")


KILLED_RUN = """
import sys
from mindllm_engine.corpus.tokenize import tokenize_source
from mindllm_engine.corpus.tokenizer import Tokenizer
if __name__ == "__main__":
    tokenize_source(sys.argv[1], sys.argv[2], name="mytext", lang="en", category="web",
                    tokenizer=Tokenizer(sys.argv[3]), holdout=0.2, workers=2)
"""


def _processes_of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def test_a_killed_run_leaves_nothing_half_written_and_goes_on(
    tmp_path: Path,
    write_records: Write,
    documents: MakeDocuments,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(3):
        write_records(tmp_path / "raw" / f"{seed}.jsonl", documents(4000, seed) * 2)
    inputs, out = str(tmp_path / "raw" / "*"), tmp_path / "out"
    script = tmp_path / "run.py"
    script.write_text(KILLED_RUN)
    command = [sys.executable, str(script), inputs, str(out), str(tokenizer.model_path)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("parts/mytext/*.done.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(out.glob("parts/mytext/*.done.json"))
    assert 1 <= len(finished) < 3, "the run was to be killed midway"
    assert not files_of(out)

    while _processes_of_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _processes_of_session(process.pid), "workers end with the process that started them"

    read: set[str] = set()

    def spy(path: str, text_field: str) -> object:
        read.add(path)
        return read_raw_batches(path, text_field)

    monkeypatch.setattr(tokenize, "read_raw_batches", spy)
    run(inputs, out, tokenizer)
    assert len(read) == 3 - len(finished)
    run(inputs, tmp_path / "clean", tokenizer)
    assert files_of(out) == files_of(tmp_path / "clean")


def test_a_stop_while_joining_is_made_good(
    tmp_path: Path, inputs: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path, data: bytes) -> None:
        if path.name == "mytext.source.json":
            raise KeyboardInterrupt
        real(path, data)

    real = tokenize.write_atomically
    monkeypatch.setattr(tokenize, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "out", tokenizer)
    monkeypatch.undo()
    run(inputs, tmp_path / "out", tokenizer, holdout=0.0)  # stale held-out files must not stay
    run(inputs, tmp_path / "clean", tokenizer, holdout=0.0)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")


def test_two_runs_at_once_do_the_work_once(tmp_path: Path, inputs: str, tokenizer: Tokenizer) -> None:
    script = tmp_path / "run.py"
    script.write_text(KILLED_RUN)
    command = [sys.executable, str(script), inputs, str(tmp_path / "out"), str(tokenizer.model_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    run(inputs, tmp_path / "clean", tokenizer)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")


def _kill_self(batch: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang(
    tmp_path: Path, inputs: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "BATCH_BYTES", 1)
    monkeypatch.setattr(document_encoder, "_encode", _kill_self)
    with pytest.raises(MindLLMError, match="a tokenizing process was killed"):
        run(inputs, tmp_path / "out", tokenizer, workers=2)
