"""Damage to token files, wherever it is, is found and named with its chunk, bytes and documents: by one thread or
several, by the tool, and while another process cuts the files short."""

import contextlib
import errno
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mindllm_engine._native as _native
import numpy as np
import orjson
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindllm_engine.data import token_file_builder
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.data.verification import DAMAGES_LISTED, bytes_of, find_token_files, verify_token_files
from mindllm_engine.errors import DataError
from tests.data.token_file_cases import FACTS, build

TOOL = Path(__file__).parents[2] / "tools" / "verify_data.py"


def build_in_chunks(prefix: Path, documents: list[np.ndarray], chunk_bytes: int, dtype: str = "int32") -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_file_builder, "CHUNK_BYTES", chunk_bytes)
        build(prefix, documents, dtype)


def some_documents(lengths: list[int]) -> list[np.ndarray]:
    return [np.arange(length) * 7 % 1000 for length in lengths]


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def sparse(prefix: Path, tokens: int, documents: int = 1000) -> Manifest:
    """A large sound token file of zeros that takes no room on the disk."""
    assert tokens % documents == 0
    with Path(f"{prefix}.bin").open("wb") as file:
        file.truncate(2 * tokens)
    _native.write_index(f"{prefix}.idx", "uint16", np.full(documents, tokens // documents))
    chunk = 8 << 20
    sizes = [min(chunk, 2 * tokens - at) for at in range(0, 2 * tokens, chunk)]
    checksums = {size: xxhash.xxh3_64_hexdigest(bytes(size)) for size in set(sizes)}
    manifest = Manifest(
        **FACTS,
        vocab_size=1000,
        dtype="uint16",
        documents=documents,
        tokens=tokens,
        text_bytes=tokens,
        chunk_bytes=chunk,
        chunks=[checksums[size] for size in sizes],
        index_checksum=xxhash.xxh3_64_hexdigest(Path(f"{prefix}.idx").read_bytes()),
    )
    manifest.save(prefix)
    return manifest


# One flipped bit


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any),
    dtype=st.sampled_from(["uint16", "int32"]),
    ids_in_a_chunk=st.integers(1, 15),
    workers=st.integers(1, 3),
    data=st.data(),
)
def test_flipped_bit_of_the_data_names_chunk_and_documents(
    tmp_path: Path, lengths: list[int], dtype: str, ids_in_a_chunk: int, workers: int, data: st.DataObject
) -> None:
    chunk_bytes = ids_in_a_chunk * np.dtype(dtype).itemsize
    build_in_chunks(tmp_path / "a", some_documents(lengths), chunk_bytes, dtype)
    file = TokenFile(tmp_path / "a")
    assert list(file.find_damage(workers=workers)) == []
    size, item = Path(f"{file.prefix}.bin").stat().st_size, np.dtype(dtype).itemsize
    bit = data.draw(st.integers(0, 8 * size - 1))
    flip(Path(f"{file.prefix}.bin"), bit)

    chunk = bit // 8 // chunk_bytes
    start, end = chunk * chunk_bytes, min((chunk + 1) * chunk_bytes, size)
    document_of_byte = np.repeat(np.arange(len(lengths)), np.array(lengths) * item)
    first, last = document_of_byte[[start, end - 1]]
    documents = f"document {first}," if first == last else f"documents {first} to {last},"
    (damage,) = TokenFile(file.prefix).find_damage(workers=workers)
    expected = f"{file.prefix}.bin: damaged: chunk {chunk}, from byte {start} to {end - 1}, with {documents}"
    assert str(damage).startswith(expected)
    with pytest.raises(DataError) as caught:
        file.verify(workers=workers)
    assert str(caught.value) == str(damage)
    for number in range(len(file.manifest.chunks)):
        if number == chunk:
            with pytest.raises(DataError, match=f"chunk {chunk},"):
                file.verify_chunk(number)
        else:
            file.verify_chunk(number)


@pytest.mark.parametrize("suffix", [".idx", ".json"])
def test_every_flipped_bit_of_index_and_manifest(tmp_path: Path, suffix: str) -> None:
    build_in_chunks(tmp_path / "a", some_documents([3, 0, 5]), 16)
    path = tmp_path / f"a{suffix}"
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        # An index whose last length is another does not fit the .bin, and it is that which is named.
        with pytest.raises(DataError, match=r"a\.json: " if suffix == ".json" else r"a\.(idx|bin): ") as caught:
            TokenFile(tmp_path / "a").verify()
        assert "\n" not in str(caught.value)
        flip(path, bit)
    TokenFile(tmp_path / "a").verify()


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_damage_that_comes_after_opening_is_found(tmp_path: Path, suffix: str) -> None:
    build_in_chunks(tmp_path / "a", some_documents([3, 0, 5]), 16)
    file = TokenFile(tmp_path / "a")
    flip(tmp_path / f"a{suffix}", 8 * 100 if suffix == ".json" else 0)
    with pytest.raises(DataError, match=rf"a\{suffix}: "):
        file.verify()


# Large chunks, several threads


def test_chunks_larger_than_what_is_read_at_a_time(tmp_path: Path) -> None:
    documents = [np.random.default_rng(0).integers(0, 1000, 1_000_003) for _ in range(5)]
    build(tmp_path / "a", documents)
    path = tmp_path / "a.bin"
    manifest = Manifest.load(tmp_path / "a")
    assert manifest.chunk_bytes == 8 << 20
    whole = path.read_bytes()
    assert manifest.chunks == [
        xxhash.xxh3_64_hexdigest(whole[at : at + (8 << 20)]) for at in range(0, len(whole), 8 << 20)
    ]
    mebibyte = 1 << 20
    for byte in (0, mebibyte - 1, mebibyte, 8 * mebibyte - 1, 8 * mebibyte, 17 * mebibyte + 5, len(whole) - 1):
        flip(path, 8 * byte + 3)
        chunk = byte // (8 * mebibyte)
        start, end = chunk * 8 * mebibyte, min((chunk + 1) * 8 * mebibyte, len(whole))
        first, last = start // 4 // 1_000_003, (end - 1) // 4 // 1_000_003
        documents_of_chunk = f"document {first}," if first == last else f"documents {first} to {last},"
        for workers in (1, 2, 5):
            found = [str(damage) for damage in TokenFile(tmp_path / "a").find_damage(workers=workers)]
            assert len(found) == 1
            assert f"chunk {chunk}, from byte {start} to {end - 1}, with {documents_of_chunk}" in found[0]
        flip(path, 8 * byte + 3)
    TokenFile(tmp_path / "a").verify(workers=2)


def test_what_is_found_does_not_depend_on_workers(tmp_path: Path) -> None:
    build_in_chunks(tmp_path / "a", some_documents([9] * 200), 64)
    chosen = sorted(np.random.default_rng(1).choice(9 * 200 * 4 // 64, 12, replace=False).tolist())
    for chunk in chosen:
        flip(tmp_path / "a.bin", 8 * 64 * chunk + 17)
    found = [[str(d) for d in TokenFile(tmp_path / "a").find_damage(workers=workers)] for workers in (1, 2, 3, 16)]
    assert [f"chunk {chunk}, " in line for chunk, line in zip(chosen, found[0], strict=True)] == [True] * 12
    assert all(lines == found[0] for lines in found)


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_goes_up_to_the_whole(tmp_path: Path, workers: int) -> None:
    build_in_chunks(tmp_path / "a", some_documents([9] * 200), 100)
    seen: list[int] = []
    TokenFile(tmp_path / "a").verify(seen.append, workers)
    assert seen == sorted(seen)
    assert len(seen) == 1 + 72
    assert seen[-1] == sum((tmp_path / f"a{suffix}").stat().st_size for suffix in (".bin", ".idx"))


def test_throughput_of_a_large_file_is_sane(tmp_path: Path) -> None:
    sparse(tmp_path / "a", 500_000_000)
    start = time.perf_counter()
    TokenFile(tmp_path / "a").verify(workers=2)
    assert 1.0 / (time.perf_counter() - start) > 0.1, "GB/s"


# Which chunks, which ids, which content


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 15), st.sampled_from(["uint16", "int32"]), st.integers(0, 80), st.integers(0, 80))
def test_chunks_of_a_range(tmp_path: Path, ids_in_a_chunk: int, dtype: str, start: int, count: int) -> None:
    chunk_bytes = ids_in_a_chunk * np.dtype(dtype).itemsize
    build_in_chunks(tmp_path / "a", some_documents([100, 60]), chunk_bytes, dtype)
    item = np.dtype(dtype).itemsize
    chunk_of_byte = np.arange(160 * item) // chunk_bytes
    expected = sorted(set(chunk_of_byte[start * item : (start + count) * item].tolist()))
    assert list(TokenFile(tmp_path / "a").chunks_of(start, count)) == expected


@pytest.mark.parametrize(
    ("position", "token", "document"), [(0, 990, 0), (5, 995, 2), (40, 999, 3), (46, -1, 3), (47, 2**31 - 1, 3)]
)
def test_id_outside_the_vocabulary_is_named_though_the_checksum_is_right(
    tmp_path: Path, position: int, token: int, document: int
) -> None:
    tokens, lengths = np.arange(48, dtype=np.int32), np.array([3, 0, 7, 38])
    tokens[position] = token
    _native.write_index(tmp_path / "a.idx", "int32", lengths)
    (tmp_path / "a.bin").write_bytes(tokens.tobytes())
    build_in_chunks(tmp_path / "b", np.split(np.arange(48), np.cumsum(lengths)[:-1]), 36)
    chunks = [xxhash.xxh3_64_hexdigest(tokens.tobytes()[at : at + 36]) for at in range(0, 192, 36)]
    replace(Manifest.load(tmp_path / "b"), vocab_size=990, chunks=chunks).save(tmp_path / "a")
    with pytest.raises(
        DataError,
        match=rf"a\.bin: token id {token} at token {position} of the file, in document {document}, is outside",
    ):
        TokenFile(tmp_path / "a").verify()


def test_content_is_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    build(tmp_path / "a", some_documents([3, 5]))
    manifest = Manifest.load(tmp_path / "a")
    assert len(manifest.content) == 16
    same = replace(manifest, name="other", lang="zh", category="book", text_bytes=5)
    assert same.content == manifest.content
    others = [
        replace(manifest, tokenizer_hash="other"),
        replace(manifest, dtype="uint16"),
        replace(manifest, index_checksum="0" * 16),
        replace(manifest, chunks=["0" * 16]),
        replace(manifest, chunks=[*manifest.chunks, *manifest.chunks]),
    ]
    assert len({manifest.content, *(other.content for other in others)}) == 6


def test_manifest_edited_by_hand_or_made_before_it_had_a_checksum(tmp_path: Path) -> None:
    build(tmp_path / "a", some_documents([3, 5]))
    path = tmp_path / "a.json"
    fields = orjson.loads(path.read_bytes()) | {"category": "book"}
    path.write_bytes(orjson.dumps(fields))
    with pytest.raises(DataError, match=r'a\.json: damaged manifest: .* delete its "checksum"'):
        TokenFile(tmp_path / "a")
    for checksum in (7, "", ["x"]):
        path.write_bytes(orjson.dumps(fields | {"checksum": checksum}))
        with pytest.raises(DataError, match=r"a\.json: damaged manifest"):
            TokenFile(tmp_path / "a")
    del fields["checksum"]
    path.write_bytes(orjson.dumps(fields))
    TokenFile(tmp_path / "a").verify()
    assert Manifest.load(tmp_path / "a").category == "book"


@pytest.mark.parametrize("key", ["a\nb", "\u2028", "\x1b[31m", "x" * 10])
def test_strange_names_stay_on_one_line(tmp_path: Path, key: str) -> None:
    (tmp_path / "a.json").write_bytes(orjson.dumps({key: 1}))
    build(tmp_path / "b", some_documents([1]))
    fields = orjson.loads((tmp_path / "b.json").read_bytes())
    (tmp_path / "a.json").write_bytes(orjson.dumps(fields | {key: 1}))
    with pytest.raises(DataError) as caught:
        Manifest.load(tmp_path / "a")
    assert str(caught.value).isprintable()


# Files cut short meanwhile


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_truncation_between_two_chunks(tmp_path: Path, suffix: str, workers: int) -> None:
    sparse(tmp_path / "a", 100_000_000, 100_000)
    flip(tmp_path / "a.bin", 8 * 150_000_000)  # its documents must be looked up in the index when that is gone
    calls: list[int] = []

    def truncate(done: int) -> None:
        if len(calls) == 2:
            subprocess.run(["truncate", "--size", "1000", tmp_path / f"a{suffix}"], check=True)
        calls.append(done)

    found = [str(damage) for damage in TokenFile(tmp_path / "a").find_damage(truncate, workers)]
    if suffix == ".bin":
        assert len(found) == 1
        assert "a.bin: cut short while it was read: it ended at byte" in found[0]
    else:
        assert len(found) == 1
        assert (
            "chunk 17, from byte 142606336 to 150994943, with documents that the index, which is damaged too"
            in found[0]
        )


def test_truncation_of_the_index_while_it_is_checked(tmp_path: Path) -> None:
    sparse(tmp_path / "a", 4_000_000, 4_000_000)
    reader = _native.TokenFileReader(tmp_path / "a", thorough=False)
    other = subprocess.Popen(["sh", "-c", f"sleep 0.3; truncate --size 5000 {tmp_path}/a.idx"])

    def check_again_and_again() -> None:
        for _ in range(100_000):
            reader.check_index()

    with pytest.raises(ValueError, match=r"a\.idx: cut short while it was read: .* had 80000042 when it was opened"):
        check_again_and_again()
    assert other.wait() == 0


def open_files(process: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(descriptor)


def test_truncation_under_the_tool(tmp_path: Path) -> None:
    sparse(tmp_path / "a", 2_000_000_000)
    build(tmp_path / "b", some_documents([3, 5]))
    tool = subprocess.Popen(
        [sys.executable, TOOL, "--sources", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    opened = str(tmp_path / "a.bin")
    while opened not in open_files(tool.pid):
        assert tool.poll() is None, tool.communicate()
        time.sleep(0.001)
    os.truncate(opened, 5000)
    out, err = tool.communicate(timeout=120)
    assert tool.returncode == 2, err
    assert "1 of 2 token files are sound" in out
    (line,) = err.splitlines()
    assert line.startswith(f"error: {opened}: ")
    assert "cut short while it was read" in line or "shorter than its index says" in line


# The tool


def run_tool(*arguments: str | Path) -> tuple[int, str, list[str]]:
    done = subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for number, (name, lang, category) in enumerate(
        [("en_web", "en", "web"), ("en_book", "en", "book"), ("zh_web", "zh", "web"), ("zh_web.heldout", "zh", "web")]
    ):
        build_in_chunks(folder / name, some_documents([4, 9, 2 + number]), 16)
        replace(Manifest.load(folder / name), name=name, lang=lang, category=category).save(folder / name)
    (folder / "notes.json").write_text("{}")  # of another program
    (folder / "zh_web.bin.tmp").write_text("unfinished")
    return folder


def cells(out: str, *start: str) -> list[str]:
    """The cells of the table's row that begins so."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row


def test_tool_prints_the_sound_files_and_totals(corpus: Path) -> None:
    code, out, errors = run_tool("--sources", corpus)
    assert (code, errors) == (0, [])
    assert "4 of 4 token files are sound" in out
    assert cells(out, "en_web") == ["en_web", "en", "web", "3", "15", "21", "sound"]
    assert cells(out, "zh_web.heldout") == ["zh_web.heldout", "zh", "web", "3", "18", "21", "sound"]
    assert cells(out, "total", "en", "all") == ["total", "en", "all", "6", "31", "42", ""]
    assert cells(out, "total", "zh", "web") == ["total", "zh", "web", "6", "35", "42", ""]
    assert cells(out, "total", "en", "book") == ["total", "en", "book", "3", "16", "21", ""]
    assert "GB/s" in out


def test_tool_goes_on_after_damage_and_lists_all_of_it(corpus: Path) -> None:
    flip(corpus / "en_book.bin", 8 * 17)
    flip(corpus / "en_book.bin", 8 * 50)
    with (corpus / "zh_web.idx").open("r+b") as file:
        file.seek(34 + 12 * 3 + 8)
        file.write(struct.pack("<q", 9))
    (corpus / "zh_web.heldout.json").unlink()
    code, out, errors = run_tool("--sources", corpus, "--workers", "2")
    assert code == 2
    assert "1 of 4 token files are sound" in out
    assert cells(out, "en_web")[-1] == "sound"
    assert [cells(out, name)[-1] for name in ("en_book", "zh_web", "zh_web.heldout")] == ["damaged"] * 3
    assert cells(out, "zh_web.heldout")[1:6] == ["?"] * 5
    assert cells(out, "total", "en", "all")[3:6] == ["3", "15", "21"]
    assert [line.split(": ")[:2] for line in errors] == [
        ["error", f"{corpus}/en_book.bin"],
        ["error", f"{corpus}/en_book.bin"],
        ["error", f"{corpus}/zh_web.idx"],
        ["error", f"{corpus}/zh_web.heldout.json"],
    ]
    assert "chunk 1, from byte 16 to 31, with document 1," in errors[0]
    assert "chunk 3, from byte 48 to 63, with documents 1 to 2," in errors[1]
    assert "document 0 ends at sequence 9" in errors[2]
    assert "missing" in errors[3]


def test_tool_checks_the_tokenizer(corpus: Path, tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "text").write_text("a b c d e f g\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spm"), vocab_size=14, model_type="bpe"
    )
    model = tmp_path / "spm.model"
    hash_of_model = xxhash.xxh3_64_hexdigest(model.read_bytes())
    manifest = Manifest.load(corpus / "en_web")
    replace(manifest, tokenizer_hash=hash_of_model).save(corpus / "en_web")
    prefixes = orjson.dumps([str(corpus / "en_web"), str(corpus / "en_book.bin")]).decode()
    code, out, errors = run_tool("--sources", prefixes, "--tokenizer", model)
    assert code == 2
    assert cells(out, "en_web")[-1] == "sound"
    assert errors == [
        f"error: {corpus}/en_book: made with tokenizer 5eed, not {hash_of_model}; tokenize the text again, or give the "
        "tokenizer it was made with"
    ]
    assert run_tool("--sources", corpus / "en_web", "--tokenizer", model)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sources", "{folder}/none"], "error: {folder}/none: no such folder, and no token file"),
        (["--sources", "{folder}/empty"], "error: {folder}/empty: the folder holds no token files"),
        (["--sources", "{folder}/" + "x" * 300], "error: {folder}/" + "x" * 300 + ": file name too long"),
        (["--sources", "{folder}/a\nb"], "error: {folder}/a\\nb: no such folder, and no token file"),
        (["--sources", "[]"], "error: no sources to verify"),
        (["--sources", "{folder}", "--workers", "0"], "error: workers: 0 is no number of threads"),
        (
            ["--sources", "{folder}", "--tokenizer", "{folder}/none"],
            "error: {folder}/none: the tokenizer cannot be read",
        ),
        (["--source", "{folder}"], "error: command line: unknown key source; did you mean sources?"),
        ([], "error: command line: "),
    ],
)
def test_tool_refuses_wrong_calls_in_one_line(corpus: Path, arguments: list[str], message: str) -> None:
    (corpus / "empty").mkdir()
    code, out, errors = run_tool(*(argument.format(folder=corpus) for argument in arguments))
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(message.format(folder=corpus))


# Finding the files


def test_sources_are_folders_and_prefixes(corpus: Path) -> None:
    (corpus / "lost.idx").touch()
    names = ["en_book", "en_web", "lost", "zh_web", "zh_web.heldout"]
    assert find_token_files([str(corpus)]) == [corpus / name for name in names]
    assert find_token_files([str(corpus / "zh_web.heldout")]) == [corpus / "zh_web.heldout"]
    again = [str(corpus / "en_web.json"), str(corpus / "en_web"), str(corpus)]
    assert find_token_files(again) == [
        corpus / name for name in ("en_web", "en_book", "lost", "zh_web", "zh_web.heldout")
    ]
    assert bytes_of(corpus / "lost") == 0


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=r": permission denied; check its permissions"):
        find_token_files([str(corpus)])


def test_a_ruined_file_does_not_fill_the_screen(tmp_path: Path) -> None:
    build_in_chunks(tmp_path / "a", some_documents([500]), 16)
    chunks = len(Manifest.load(tmp_path / "a").chunks)
    (tmp_path / "a.bin").write_bytes(b"\1" * 2000)
    seen: list[int] = []
    (verified,) = verify_token_files([tmp_path / "a"], workers=2, progress=seen.append)
    assert len(verified.damages) == DAMAGES_LISTED + 1
    assert f"a.bin: {chunks - DAMAGES_LISTED} chunks more are damaged" in str(verified.damages[-1])
    assert seen[-1] == bytes_of(tmp_path / "a")


def test_unreadable_file_is_a_damage_like_any_other(corpus: Path) -> None:
    shutil.rmtree(corpus / "none", ignore_errors=True)
    (corpus / "en_web.bin").unlink()
    (corpus / "en_web.bin").mkdir()
    results = {file.prefix.name: file for file in verify_token_files(find_token_files([str(corpus)]))}
    assert [str(damage) for damage in results["en_web"].damages] == [
        f"{corpus}/en_web.bin: not a regular file; restore or rebuild the token file"
    ]
    assert not results["zh_web"].damages
