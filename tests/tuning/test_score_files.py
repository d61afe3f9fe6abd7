"""Entropies of records against Transformers, one at a time; ranks, packs, kills, and hostile records."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mindllm_engine.corpus.chat_template import ChatTemplate, TemplateConfig
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.data.atomic_files import exclusive_lock
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.gpt_neo_checkpoint import save_hf_checkpoint
from mindllm_engine.models.gpt_neo import GPTNeo
from mindllm_engine.training.weights import find_checkpoint, load_model
from mindllm_engine.tuning.entropy import PlainText, Scorer
from mindllm_engine.tuning.records import Record, read_records
from mindllm_engine.tuning.score_files import ScoreConfig, score_files
from tests.tuning.scored_run import MAX_TOKENS, columns, make_records, make_run, write_records

ROOT = Path(__file__).resolve().parents[2]
ENTROPIES = ("response_entropy", "whole_entropy", "response_alone_entropy", "ifd")
COUNT = 61


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    make_run(folder)
    write_records(folder / "some.jsonl", make_records(COUNT, seed=5))
    return folder


def score(folder: Path, out: str | Path, **changes: object) -> Path:
    config = ScoreConfig(run=str(folder / "run"), records=[str(folder / "some.jsonl")], out=str(folder / out))
    for name, value in changes.items():
        setattr(config, name, value)
    return score_files(config)


def command(folder: Path, out: str, *options: str, ranks: int = 1) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            "--",
        ]  # or it takes --run as its own
    given = ["--run", str(folder / "run"), "--records", json.dumps([str(folder / "some.jsonl")])]
    return [*launcher, str(ROOT / "tools" / "score_instructions.py"), *given, "--out", str(folder / out), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def hf_losses(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Of every token but the first, in fp64 from Transformers' logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").numpy()


@pytest.mark.parametrize("rendering", ["plain", "chat"])
def test_scores_are_those_of_transformers(folder: Path, rendering: str) -> None:
    from transformers import GPTNeoForCausalLM

    scores = columns(score(folder, f"hf_{rendering}", rendering=rendering), *ENTROPIES, "response_tokens", "status")
    network, _ = load_model(folder / "run", torch.device("cpu"))
    assert isinstance(network, GPTNeo)
    save_hf_checkpoint(network, folder / "hf")
    model = GPTNeoForCausalLM.from_pretrained(folder / "hf").eval()
    tokenizer = open_tokenizer(folder / "run" / "tokenizer.model")
    expected = []
    for record in read_records(folder / "some.jsonl"):
        assert isinstance(record, Record)
        if rendering == "plain":
            text = [tokenizer.encode(message.content) for message in record.messages[:-1]]
            prompt = [tokenizer.bos_id, *[token for part in text for token in (*part, *tokenizer.encode("\n"))]]
        else:
            prompt = ChatTemplate(TemplateConfig(), tokenizer).prompt(record.messages[:-1])
        answer = tokenizer.encode(record.response)
        whole, alone = hf_losses(model, prompt + answer), hf_losses(model, [tokenizer.bos_id, *answer])
        response = whole[-len(answer) :].mean()
        expected.append((response, whole.mean(), alone.mean(), response / alone.mean(), len(answer)))
    assert set(scores["status"]) == {"scored"}
    found = np.stack([scores[name] for name in (*ENTROPIES, "response_tokens")], axis=1)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("pack_tokens", [1, 130, 1000])
def test_packs_change_no_more_than_rounding(folder: Path, pack_tokens: int) -> None:
    found, expected = (
        columns(score(folder, out, pack_tokens=tokens), *ENTROPIES)
        for out, tokens in ((f"pack_{pack_tokens}", pack_tokens), ("whole", 32768))
    )
    for name in ENTROPIES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_part_size_changes_no_more_than_rounding(folder: Path) -> None:
    found, expected = (
        columns(score(folder, out, part_records=records), *ENTROPIES)
        for out, records in (("parts_7", 7), ("parts_all", 2048))
    )
    for name in ENTROPIES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_again_and_on_any_ranks_the_same_file(folder: Path) -> None:
    once = score(folder, "ranks_1", part_records=8).read_bytes()
    assert once == score(folder, "ranks_1_again", part_records=8).read_bytes()
    for ranks in (2, 3):
        done = subprocess.run(
            command(folder, f"ranks_{ranks}", "--part_records", "8", ranks=ranks),
            capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"{COUNT} scored" in done.stdout
        assert (folder / f"ranks_{ranks}" / "scores.parquet").read_bytes() == once
        assert not (folder / f"ranks_{ranks}" / "parts").exists()


def test_a_killed_run_goes_on_and_gives_the_same_file(folder: Path) -> None:
    expected = score(folder, "not_killed", part_records=1).read_bytes()
    parts = folder / "killed" / "parts"
    process = subprocess.Popen(
        command(folder, "killed", "--part_records", "1"), env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(parts.glob("0*.parquet"))) < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert 5 <= len(kept) < COUNT
    (parts / "000004.parquet").rename(folder / "set_aside")  # as if a rank had fallen behind
    done = subprocess.run(
        command(folder, "killed", "--part_records", "1", ranks=2),
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "killed" / "scores.parquet").read_bytes() == expected


def test_finished_scores_are_not_made_again(folder: Path) -> None:
    path = score(folder, "finished")
    before = path.stat().st_mtime_ns
    assert score(folder, "finished") == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"pack_tokens": 64}, "pack_tokens"), ({"rendering": "chat"}, "rendering"), ({"precision": "bf16"}, "precision")],
)
def test_another_setting_needs_another_folder(folder: Path, changes: dict[str, object], key: str) -> None:
    score(folder, "setting")
    with pytest.raises(ConfigError, match=f"scores of another {key}"):
        score(folder, "setting", **changes)


def test_changed_records_need_another_folder(folder: Path, tmp_path: Path) -> None:
    records = write_records(tmp_path / "r.jsonl", make_records(5, seed=1))
    score(folder, "changed", records=[str(records)])
    write_records(records, make_records(5, seed=2))
    with pytest.raises(ConfigError, match="scores of another files"):
        score(folder, "changed", records=[str(records)])


def test_bf16_is_near(folder: Path) -> None:
    exact, near = (
        columns(score(folder, f"in_{precision}", precision=precision), "response_entropy")["response_entropy"]
        for precision in ("fp32", "bf16")
    )
    assert 0 < np.abs(near - exact).max() < 0.05


HOSTILE = [
    (b'{"instruction": "say", "output": ""}', "bad", "empty response"),
    (b'{"instruction": "say", "output": " \\n\\t "}', "bad", "response of only whitespace"),
    (b'{"instruction": "say", "output": 7}', "bad", "output is no text"),
    (b'{"instruction": "say"', "bad", "no JSON object"),
    (b"[1, 2]", "bad", "no JSON object"),
    (b"null", "bad", "no JSON object"),
    (b"\xff\xfe\x00", "bad", "no JSON object"),
    (b'{"messages": []}', "bad", "messages is no list, or an empty one"),
    (b'{"instruction": "say", "output": "a \\ud800 b"}', "bad", "no JSON object"),
    (b'{"instruction": "say", "output": "<|end|></s><s> tea"}', "scored", None),
    (b'{"instruction": "say", "output": "\\u0000\\u200b"}', "bad", "response of only whitespace"),
    (b'{"instruction": "say", "output": "\\u0000\\u200b."}', "scored", None),
    ('{"instruction": "说", "output": "好"}'.encode(), "scored", None),
    (b'{"instruction": "say", "output": "' + b"7 " * 300 + b'"}', "cut", "the response is cut from"),
    (b'{"instruction": "' + b"7 " * 300 + b'", "output": "tea"}', "dropped", "which the instruction fills alone"),
]


def test_hostile_records_are_listed_by_line(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n  \n".join(line for line, _, _ in HOSTILE)))
    out = tmp_path / "out"
    table = pq.read_table(score(folder, out, records=[str(path)]))
    rows = table.to_pylist()
    assert len(rows) == len(HOSTILE)
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    places = iter(problems)
    for number, (row, (_, status, reason)) in enumerate(zip(rows, HOSTILE, strict=True)):
        assert (row["file"], row["line"], row["status"]) == (path.name, 1 + 2 * number, status), row
        assert (row["response_entropy"] is None) == (status in ("bad", "dropped"))
        if status == "scored":
            assert row["reason"] is None
            continue
        assert reason is not None
        assert reason in row["reason"]
        assert next(places) == {
            "place": f"{path.name}:{1 + 2 * number}", "status": status, "reason": row["reason"]
        }  # fmt: skip
    assert next(places, None) is None
    cut = rows[13]
    assert cut["instruction_tokens"] + 1 + cut["response_tokens"] == MAX_TOKENS


def test_what_is_too_long_is_dropped_on_demand(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(HOSTILE[13][0])
    row = pq.read_table(score(folder, tmp_path / "out", records=[str(path)], too_long="drop")).to_pylist()[0]
    assert (row["status"], row["response_entropy"]) == ("dropped", None)
    assert f"the network takes {MAX_TOKENS}" in row["reason"]


def test_a_checkpoint_may_be_named(folder: Path) -> None:
    checkpoint = find_checkpoint(folder / "run")
    assert score(folder, "named", run=str(checkpoint)).read_bytes() == score(folder, "unnamed").read_bytes()


def test_a_network_without_a_finite_loss_scores_nothing(folder: Path) -> None:
    network, _ = load_model(folder / "run", torch.device("cpu"))
    with torch.no_grad():
        network.embedding[50:].fill_(float("nan"))
    tokenizer = open_tokenizer(folder / "run" / "tokenizer.model")
    scorer = Scorer(network, tokenizer, PlainText(tokenizer), "cut", pack_tokens=1000)
    found = scorer.scores(list(read_records(folder / "some.jsonl")))
    assert {row.reason for row in found if row.status == "bad"} == {"the network's loss is not finite"}
    assert all(row.response_entropy is row.ifd is None for row in found if row.status == "bad")


def test_no_record_at_all(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"\n\n")
    assert pq.read_table(score(folder, tmp_path / "out", records=[str(path)])).num_rows == 0


def test_files_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl: cannot be read"):
        score(folder, "unused", records=[str(tmp_path / "missing.jsonl")])
    damaged = tmp_path / "damaged.jsonl.gz"
    content = bytearray(gzip.compress(os.urandom(5000)))
    content[2000:2100] = bytes(100)
    damaged.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"damaged\.jsonl\.gz: is damaged or no gzip file"):
        score(folder, "unused", records=[str(damaged)])


def test_damaged_scores_and_parts_are_a_line(folder: Path) -> None:
    whole = score(folder, "damaged").read_bytes()
    scores = folder / "damaged" / "scores.parquet"
    scores.write_bytes(whole[:100])
    done = subprocess.run(command(folder, "damaged"), capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 2
    assert "scores.parquet: damaged" in done.stderr
    assert "delete it and score again" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    scores.unlink()
    part = folder / "damaged" / "parts" / "000000.parquet"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"000000\.parquet: damaged .*; delete it and score again"):
        score(folder, "damaged")
    part.unlink()
    assert score(folder, "damaged").read_bytes() == whole


def test_a_second_process_in_the_same_folder_is_refused(folder: Path) -> None:
    (folder / "held").mkdir()
    with exclusive_lock(folder / "held" / ".lock", lambda: None):
        done = subprocess.run(command(folder, "held"), capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 2
    assert "another process is scoring into it" in done.stderr
    assert [path.name for path in (folder / "held").iterdir()] == [".lock"]
    assert score(folder, "held").exists()


def test_chat_needs_the_symbols(tmp_path: Path) -> None:
    make_run(tmp_path, kind="mindllm", special_tokens=False)
    write_records(tmp_path / "some.jsonl", make_records(3, seed=1))
    with pytest.raises(ConfigError, match=r"rendering chat: .*plain"):
        score(tmp_path, "chat", rendering="chat")
    assert np.isfinite(columns(score(tmp_path, "plain"), "ifd")["ifd"]).all()


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, special_tokens=False)
    make_run(tmp_path / "other", special_tokens=True)
    (run / "tokenizer.model").write_bytes((tmp_path / "other" / "tokenizer.model").read_bytes())
    write_records(tmp_path / "some.jsonl", make_records(3, seed=1))
    with pytest.raises(DataError, match="is not the tokenizer"):
        score(tmp_path, "out")


def test_a_users_mistake_is_one_line(folder: Path) -> None:
    done = subprocess.run(
        command(folder, "wrong", "--part_records", "0"), capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: part_records: must be at least 1, not 0"]


def test_the_tool_says_where_problems_stand_and_ends_where_nothing_is_scored(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(folder / "run")
    for answer, code in (("yes", 0), ("", 2)):
        records = [{"instruction": "a", "output": ""}, {"instruction": "b", "output": answer}]
        (tmp_path / "some.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        done = subprocess.run(
            command(tmp_path, f"of_{code}"), capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == code, done.stderr
        assert "problems.jsonl: what is wrong" in done.stdout
        assert ("not one record could be scored" in done.stderr) == (code == 2)
