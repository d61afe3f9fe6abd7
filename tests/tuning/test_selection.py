"""Choosing instruction data: what is drawn, what is recommended, the baselines, and the files."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.training.weights import find_checkpoint
from mindllm_engine.tuning.score_files import ScoreConfig, score_files
from mindllm_engine.tuning.selection import Pool, SelectConfig, choose, highest_ifd, length_matched, recommend
from mindllm_engine.tuning.selection_files import PLACE, select, with_place
from mindllm_engine.tuning.selection_report import statistics
from tests.training.tiny_run import records as metrics_of
from tests.tuning.scored_run import columns, make_records, make_run, write_records

COUNT = 300


def make_pool(count: int = 20_000, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    entropy = np.concatenate([rng.normal(center, 0.15, count // 4) for center in (2.0, 3.2, 4.0, 5.5)])
    tokens = np.maximum(1, rng.lognormal(4.0 + 0.3 * (entropy - 3), 0.8)).astype(np.int64)
    size = len(entropy)
    return Pool(
        rows=np.arange(size) * 2,
        entropy=entropy,
        columns={
            "ifd": rng.normal(0.9, 0.2, size), "response_tokens": tokens, "instruction_tokens": tokens // 3 + 1,
            "response_chars": tokens * 4, "instruction_chars": tokens, "lang": np.array(["en", "zh"])[tokens % 2],
        },
        left_out={},
    )  # fmt: skip


def config(**changes: Any) -> SelectConfig:
    return SelectConfig(**{"scores": "", "out": "", "clusters": 4, "smallest_cluster": 10, "sample": 500} | changes)


def test_the_rule_of_the_paper() -> None:
    selection = choose(config(), make_pool(), before=2.0)
    zero, few = selection.recommendations
    assert (zero.use, zero.cluster, zero.inside) == ("zero-shot", 1, True)
    assert zero.gap == pytest.approx(1.2, abs=0.02)
    assert 0.8 < zero.share < 1
    assert (few.use, few.cluster, few.inside) == ("few-shot", 1, False)  # 1.2 above is nearer than 0.0


def test_of_several_clusters_in_the_band_the_one_that_lies_in_it_most() -> None:
    entropy = np.array([3.05, 2.0, 2.2, 3.3, 3.31, 9.0])
    labels = np.array([0, 0, 0, 1, 1, 2])
    labels[:3] = 0
    entropy[:3] = 3.02, 2.9, 3.2  # mean 3.04 in the band from 3 to 3.5, one of three below it
    found = recommend("zero-shot", (1.0, 1.5), entropy, labels, [0, 1, 2], before=2.0)
    assert (found.cluster, found.inside, found.share) == (1, True, 1.0)
    without = recommend("zero-shot", (1.0, 1.5), entropy, labels, [0, 2], before=2.0)
    assert (without.cluster, without.inside, without.share) == (0, True, pytest.approx(2 / 3))


def test_small_clusters_are_dropped() -> None:
    pool = make_pool()
    pool.entropy[:7] = 40.0
    selection = choose(config(clusters=5, smallest_cluster=8), pool, before=2.0)
    assert selection.kept == [0, 1, 2, 3]
    assert not any(name.startswith("cluster_04") for name in selection.choices)
    assert all(found.cluster in selection.kept for found in selection.recommendations)
    with pytest.raises(ConfigError, match="smallest_cluster: no cluster has 9,000 records"):
        choose(config(clusters=5, smallest_cluster=9000), pool, before=2.0)


@pytest.mark.parametrize("sample", [500, 0, 10**6])
def test_what_is_drawn(sample: int) -> None:
    pool = make_pool()
    selection = choose(config(sample=sample), pool, before=2.0)
    for number in selection.kept:
        members = np.flatnonzero(selection.labels == number)
        drawn = selection.choices[f"cluster_{number:02d}"]
        assert len(drawn) == min(sample or len(members), len(members))
        assert set(drawn) <= set(members)
        for baseline in ("random", "length_matched"):
            other = selection.choices[f"cluster_{number:02d}_{baseline}"]
            assert len(other) == len(set(other)) == len(drawn)
    for name, chosen in selection.choices.items():
        assert (np.diff(chosen) > 0).all(), name


def test_a_seed_draws_the_same_and_another_others() -> None:
    first, again, other = (choose(config(seed=seed), make_pool(), before=2.0).choices for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert all(set(first[name]) != set(other[name]) for name in first if name != "ifd")
    # A cluster's draw does not hang on whether others are dropped.
    fewer = choose(config(seed=1, smallest_cluster=5000), make_pool(), before=2.0).choices
    assert 0 < len(fewer) < len(first)
    assert all((first[name] == fewer[name]).all() for name in fewer if name.startswith("cluster"))


def test_length_matched_baselines_are_as_long() -> None:
    pool = make_pool()
    tokens = pool.columns["response_tokens"]
    chosen = np.sort(np.argsort(tokens + np.random.default_rng(0).normal(0, 40, len(tokens)))[-3000:])
    matched = length_matched(chosen, tokens, np.random.default_rng(1))
    assert len(set(matched)) == 3000
    for share in (0.05, 0.25, 0.5, 0.75):
        expected = np.quantile(tokens[chosen], share)
        assert abs(np.quantile(tokens[matched], share) - expected) <= 0.06 * expected
    assert len(set(matched) & set(chosen)) < 3000
    plain = np.random.default_rng(1).permutation(len(tokens))[:3000]
    assert np.median(tokens[plain]) < 0.6 * np.median(tokens[chosen])  # so that there was something to match


def test_all_of_one_length_can_be_matched() -> None:
    matched = length_matched(np.arange(5), np.full(20, 7), np.random.default_rng(0))
    assert len(set(matched)) == 5


def test_highest_ifd_below_one() -> None:
    pool = make_pool(40)
    pool.columns["ifd"] = np.array([0.2, 0.99, 1.0, 1.7, np.nan, 0.5] + [0.1] * 34)
    assert highest_ifd(pool, 3).tolist() == [0, 1, 5]
    assert len(highest_ifd(pool, 1000)) == 37


def test_statistics_are_those_of_the_records() -> None:
    pool = make_pool(400)
    chosen = np.arange(50, 150)
    found = statistics(pool, chosen)
    tokens = pool.columns["response_tokens"][chosen]
    assert found["records"] == 100
    assert found["response_tokens"]["mean"] == pytest.approx(sum(tokens.tolist()) / 100)
    assert found["response_tokens"]["median"] == np.median(tokens)
    assert found["languages"] == dict(Counter(pool.columns["lang"][chosen].tolist()))
    assert statistics(pool, np.array([], np.int64)) == {"records": 0}


@pytest.mark.parametrize(
    "line", [b'{"a": 1.50, "b": "\\u4f60"}', b'  {"a": [1, {"b": 2}]}  \n', b'{"a": "}"}\r\n', b'{"a": 1 }']
)
def test_a_record_keeps_its_bytes(line: bytes) -> None:
    placed = with_place(line, 'odd "name".jsonl:3')
    assert placed.startswith(line.strip()[:-1].rstrip())
    content = json.loads(placed)
    assert content.pop(PLACE) == 'odd "name".jsonl:3'
    assert content == json.loads(line)
    assert with_place(placed, "another:9") == placed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selected")
    run = make_run(folder)
    first, second = make_records(COUNT, seed=1), make_records(COUNT, seed=2)
    second[4]["output"] = ""
    write_records(folder / "one.jsonl", first)
    content = write_records(folder / "two.jsonl", second).read_bytes()
    (folder / "two.jsonl.gz").write_bytes(gzip.compress(b"\n" + content))
    files = [str(folder / "one.jsonl"), str(folder / "two.jsonl.gz")]
    score_files(ScoreConfig(run=str(run), records=files, out=str(folder / "scores")))
    return folder


def chosen_from(folder: Path, out: str, **changes: Any) -> Path:
    given = {"scores": str(folder / "scores"), "out": str(folder / out), "clusters": 3, "smallest_cluster": 20}
    select(config(**given | {"sample": 40} | changes))
    return folder / out


def test_files_hold_the_records_as_they_were(folder: Path) -> None:
    out = chosen_from(folder, "chosen")
    scored = columns(folder / "scores" / "scores.parquet", "file", "line", "response_entropy")
    entropies = dict(zip(zip(scored["file"], scored["line"], strict=True), scored["response_entropy"], strict=True))
    originals = {
        name: (folder / "one.jsonl").read_text().splitlines()
        if name == "one.jsonl"
        else gzip.decompress((folder / name).read_bytes()).decode().splitlines()
        for name in ("one.jsonl", "two.jsonl.gz")
    }
    report = json.loads((out / "report.json").read_text())
    files = sorted(out.glob("*.jsonl"))
    assert {path.stem for path in files} == set(report["choices"])
    for path in files:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == report["choices"][path.stem]["records"]
        seen = []
        for content in lines:
            name, number = content.pop(PLACE).rsplit(":", 1)
            assert content == json.loads(originals[name][int(number) - 1])
            seen.append(entropies[name, int(number)])
        assert np.mean(seen) == pytest.approx(report["choices"][path.stem]["entropy"]["mean"])
    assert report["left_out"] == {"bad": 1}
    assert report["all"]["records"] == 2 * COUNT - 1
    assert (out / "entropies.png").read_bytes().startswith(b"\x89PNG")
    assert "| cluster |" in (out / "report.md").read_text()


def test_pretraining_entropy_is_the_runs_last_heldout_loss(folder: Path) -> None:
    out = chosen_from(folder, "heldout")
    expected = [record["heldout_loss"] for record in metrics_of(folder / "run") if "heldout_loss" in record][-1]
    assert json.loads((out / "report.json").read_text())["pretraining_entropy"] == expected
    given = chosen_from(folder, "given", pretraining_entropy=3.25)
    assert json.loads((given / "report.json").read_text())["pretraining_entropy"] == 3.25


def test_the_same_choice_twice_is_the_same_to_the_byte(folder: Path) -> None:
    one, two = (chosen_from(folder, name, method="kmeans") for name in ("once", "twice"))
    for path in one.iterdir():
        same = path.read_bytes().replace(b"once", b"twice") == (two / path.name).read_bytes()
        assert same, path.name


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    chosen_from(folder, "there")
    with pytest.raises(ConfigError, match=r"out: .* exists already"):
        chosen_from(folder, "there")
    for key, value in (("clusters", 0), ("smallest_cluster", 0), ("sample", -1), ("seed", -1)):
        with pytest.raises(ConfigError, match=f"{key}: must be at least"):
            chosen_from(folder, "mistake", **{key: value})
    for impossible in (-5.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"pretraining_entropy: .* must be above 0"):
            chosen_from(folder, "mistake", pretraining_entropy=impossible)
    with pytest.raises(DataError, match="holds no scores"):
        chosen_from(folder, "mistake", scores=str(tmp_path))
    assert find_checkpoint(folder / "run").exists()
    assert not (folder / "mistake").exists()


def test_changed_records_are_not_taken_for_the_scored_ones(tmp_path: Path, folder: Path) -> None:
    records = write_records(tmp_path / "r.jsonl", make_records(60, seed=1))
    score_files(ScoreConfig(run=str(folder / "run"), records=[str(records)], out=str(tmp_path / "scores")))
    write_records(records, make_records(60, seed=3))
    with pytest.raises(DataError, match=r"r\.jsonl: has changed since it was scored"):
        chosen_from(tmp_path, "chosen", smallest_cluster=1)
    records.unlink()
    with pytest.raises(DataError, match=r"r\.jsonl: cannot be read"):
        chosen_from(tmp_path, "chosen", smallest_cluster=1)
    assert [path.name for path in tmp_path.iterdir() if "chosen" in path.name] == []


def test_damaged_scores_are_a_line(tmp_path: Path, folder: Path) -> None:
    records = write_records(tmp_path / "r.jsonl", make_records(60, seed=1))
    score_files(ScoreConfig(run=str(folder / "run"), records=[str(records)], out=str(tmp_path / "scores")))
    scores = tmp_path / "scores" / "scores.parquet"
    scores.write_bytes(scores.read_bytes()[:-50])
    with pytest.raises(DataError, match="damaged"):
        chosen_from(tmp_path, "chosen")
    scores.unlink()
    with pytest.raises(DataError, match="is missing"):
        chosen_from(tmp_path, "chosen")
    (tmp_path / "scores" / "setting.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        chosen_from(tmp_path, "chosen")
