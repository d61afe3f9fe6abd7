"""Two evaluations against each other, on answers that lm-eval itself wrote down."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.compare import CompareArguments, compare, comparison_table
from mindllm_engine.evaluation.suites import Suite, SuiteTask, build_tasks, open_suite

pytest.importorskip("lm_eval")

REPOSITORY = Path(__file__).parents[2]
ENTRIES = (
    SuiteTask("local_mmlu", 2),
    SuiteTask("local_gsm8k", 0, metric="exact_match"),
    SuiteTask("local_hellaswag", 0, metric="acc_norm"),
)


def evaluate(data: Path, out: Path, seed: int, entries: tuple[SuiteTask, ...] = ENTRIES) -> None:
    """Answers at random, laid down as tools/evaluate.py does."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.dummy import DummyLM

    suite = Suite(out, "", entries)
    manager = open_suite(suite, out / "local_tasks", data)
    random.seed(seed)
    (out / "tasks").mkdir(parents=True)
    for entry in entries:
        built = build_tasks(Suite(out, "", (entry,)), manager)
        results = evaluate(DummyLM(), manager.load(built), bootstrap_iters=0)
        assert results is not None
        lines = [{"task": name, **line} for name, of_task in results["samples"].items() for line in of_task]
        text = "".join(json.dumps(line, default=str) + "\n" for line in lines)
        (out / "tasks" / f"{entry.task}.samples.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        settings = {"entry": {"task": entry.task, "metric": entry.metric}}
        (out / "tasks" / f"{entry.task}.json").write_text(json.dumps({"settings": settings}))


@pytest.fixture(scope="module")
def folders(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("evaluations")
    for seed, name in enumerate("ab"):
        evaluate(small_data, folder / name, seed)
    return folder / "a", folder / "b"


def scores(out: Path, entry: str, metric: str) -> dict[tuple[str, int], float]:
    with gzip.open(out / "tasks" / f"{entry}.samples.jsonl.gz", "rt") as lines:
        return {(line["task"], line["doc_id"]): line[metric] for line in map(json.loads, lines)}


def test_differences_are_those_of_the_answers(folders: tuple[Path, Path]) -> None:
    a, b = folders
    found, notes = compare(CompareArguments(str(a), str(b), rounds=2000))
    assert notes == []
    assert [(each.entry, each.metric) for each in found] == [
        ("local_gsm8k", "exact_match,flexible-extract"),
        ("local_gsm8k", "exact_match,strict-match"),
        ("local_hellaswag", "acc_norm,none"),
        ("local_mmlu", "acc,none"),
    ]
    for each in found[2:]:
        metric = each.metric.split(",")[0]
        of_a, of_b = scores(a, each.entry, metric), scores(b, each.entry, metric)
        assert each.paired.questions == len(of_a)
        assert each.mean_a == pytest.approx(np.mean(list(of_a.values())))
        assert each.paired.difference == pytest.approx(np.mean([of_a[key] - of_b[key] for key in of_a]))
        assert each.paired.interval.low <= each.paired.difference <= each.paired.interval.high
    assert found[0].paired.p_value == 1.0  # "lol" is right of neither
    table = comparison_table(found)
    assert table.count("\n") == 5
    assert "cannot be told" in table


def test_an_evaluation_equals_itself_and_order_only_turns_the_sign(folders: tuple[Path, Path]) -> None:
    a, b = map(str, folders)
    same, _ = compare(CompareArguments(a, a))
    assert all(each.paired.difference == 0 and not each.paired.told_apart for each in same)
    there, back = compare(CompareArguments(a, b))[0], compare(CompareArguments(b, a))[0]
    assert [each.paired.difference for each in there] == [-each.paired.difference for each in back]


def test_a_clear_difference_is_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    rewrite(folders[0], tmp_path / "right", lambda line: {**line, "acc": 1.0})
    rewrite(folders[0], tmp_path / "wrong", lambda line: {**line, "acc": 0.0})
    (found, *_), _ = compare(CompareArguments(str(tmp_path / "right"), str(tmp_path / "wrong")))
    assert found.paired.told_apart
    assert "a is better" in comparison_table([found])


def rewrite(source: Path, target: Path, change: Any, entry: str = "local_mmlu", metric: str = "acc") -> None:
    (target / "tasks").mkdir(parents=True)
    with gzip.open(source / "tasks" / f"{entry}.samples.jsonl.gz", "rt") as lines:
        changed = [change(json.loads(line)) for line in lines]
    text = "".join(json.dumps(line) + "\n" for line in changed if line is not None)
    (target / "tasks" / f"{entry}.samples.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (target / "tasks" / f"{entry}.json").write_text(json.dumps({"settings": {"entry": {"metric": metric}}}))


def test_other_questions_or_examples_are_refused(small_data: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(small_data, tmp_path / "shots", 0, (SuiteTask("local_mmlu", 3),))
    with pytest.raises(DataError, match=r"local_mmlu: 14 of 14 questions differ, or the examples before them"):
        compare(CompareArguments(str(folders[0]), str(tmp_path / "shots")))
    rewrite(folders[0], tmp_path / "fewer", lambda line: line if line["doc_id"] < 5 else None)
    with pytest.raises(DataError, match=r"local_mmlu: 4 questions were asked of one only; .* the same limit"):
        compare(CompareArguments(str(folders[0]), str(tmp_path / "fewer")))


def test_metrics_without_a_score_of_single_questions_are_noted(folders: tuple[Path, Path], tmp_path: Path) -> None:
    rewrite(folders[0], tmp_path / "a", lambda line: {**line, "bleu": ["one", "two"]}, metric="bleu")
    found, notes = compare(CompareArguments(str(tmp_path / "a"), str(tmp_path / "a")))
    assert (found, notes) == ([], ["local_mmlu: bleu has no score of single questions"])
    _, notes = compare(CompareArguments(str(folders[0]), str(tmp_path / "a")))
    assert notes == [
        "local_gsm8k: only in one of the two",
        "local_hellaswag: only in one of the two",
        "local_mmlu: a is scored by acc, b by bleu",
    ]


def test_folders_that_are_no_evaluations(folders: tuple[Path, Path], tmp_path: Path) -> None:
    a = str(folders[0])
    with pytest.raises(DataError, match="no answers in"):
        compare(CompareArguments(a, str(tmp_path)))
    rewrite(folders[0], tmp_path / "other", lambda line: line, metric="acc")
    for file in list((tmp_path / "other" / "tasks").iterdir()):
        file.rename(file.with_name(file.name.replace("local_mmlu", "something")))
    with pytest.raises(DataError, match=r"have no task in common; evaluate both with one suite"):
        compare(CompareArguments(a, str(tmp_path / "other")))
    rewrite(folders[0], tmp_path / "bad", lambda line: {"task": line["task"]})
    with pytest.raises(DataError, match=r"local_mmlu.samples.jsonl.gz:1: not an answer of lm-eval's"):
        compare(CompareArguments(a, str(tmp_path / "bad")))
    (tmp_path / "bad" / "tasks" / "local_mmlu.json").write_text("{}")
    with pytest.raises(DataError, match=r"local_mmlu.json: not what tools/evaluate.py writes"):
        compare(CompareArguments(a, str(tmp_path / "bad")))
    with pytest.raises(ConfigError, match="rounds must be 1 or more"):
        compare(CompareArguments(a, a, rounds=0))


def test_the_tool_prints_the_table_and_one_line_for_a_mistake(folders: tuple[Path, Path]) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "tools" / "compare_evaluations.py"), *arguments]
        return subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)}
        )

    done = run("--a", str(folders[0]), "--b", str(folders[1]), "--rounds", "500")
    assert done.returncode == 0
    assert done.stdout.startswith("| task | metric | questions | a | b |")
    failed = run("--a", str(folders[0]), "--b", "nowhere")
    assert failed.returncode == 2
    assert failed.stderr == "error: nowhere: no answers in nowhere/tasks; give the --out of tools/evaluate.py\n"
