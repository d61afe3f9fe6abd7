"""The paper's figures as data: the file in the repository, and files that are wrong."""

from pathlib import Path

import pytest

from mindllm_engine.errors import ConfigError
from mindllm_engine.evaluation.paper_tables import paper_value, read_tables
from mindllm_engine.evaluation.suites import read_suite

CONFIGS = Path(__file__).parents[2] / "configs"

TABLE = """
tables:
  - id: t
    number: "9"
    caption: c
    unit: percent
    origin: paper
    source: s
    columns:
      - {task: mmlu, metric: acc, shots: 5}
      - {task: mmlu, metric: acc, shots: 0}
    rows:
      - {model: A, values: [30.0, null], missing: lost}
      - {model: B, values: [31, 29.5]}
"""


def test_the_shots_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLE)
    of_five = paper_value("mmlu", "acc", 5, "A", path)
    assert of_five is not None
    assert of_five.value == 30.0
    found = paper_value("mmlu", "acc", 0, "B", path)
    assert found is not None
    assert (found.value, found.unit, found.shots, found.source) == (29.5, "percent", 0, "s")


@pytest.mark.parametrize(
    ("task", "metric", "shots", "model"),
    [
        ("mmlu", "acc", 0, "A"),
        ("mmlu", "acc", 3, "B"),
        ("mmlu", "f1", 5, "A"),
        ("gsm8k", "acc", 5, "A"),
        ("mmlu", "acc", 5, "C"),
    ],
)
def test_what_is_not_there_is_none(tmp_path: Path, task: str, metric: str, shots: int, model: str) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLE)
    assert paper_value(task, metric, shots, model, path) is None


def test_the_papers_own_figure_comes_before_others(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    others = TABLE.removeprefix("\ntables:\n").replace("id: t", "id: o").replace("origin: paper", "origin: others")
    path.write_text("tables:\n" + others.replace("30.0", "99.0") + TABLE.removeprefix("\ntables:\n"))
    found = paper_value("mmlu", "acc", 5, "A", path)
    assert found is not None
    assert (found.value, found.from_paper) == (30.0, True)


def test_the_repositorys_figures() -> None:
    found = paper_value("cmmlu", "acc", 5, "MindLLM-1.3B")
    assert found is not None
    assert (found.value, found.unit, found.shots, found.from_paper) == (25.7, "percent", 5, False)
    assert "OpenBA" in found.source  # which says its shots, and so comes before the one that does not
    geb = paper_value("cmmlu", "acc", 0, "MindLLM-3B")
    assert geb is not None
    assert (geb.value, geb.shots) == (25.0, None)
    assert paper_value("toxigen", "acc", 0, "MindLLM-3B") is None


def test_every_task_of_the_suites_has_its_row_for_both_models() -> None:
    columns = {(column.task, column.metric) for table in read_tables() for column in table.columns}
    models = {row.model for table in read_tables() for row in table.rows}
    for suite in ("paper", "local"):
        for entry in read_suite(CONFIGS / "evaluation" / f"{suite}.yaml").tasks:
            assert (entry.paper, entry.metric) in columns
    assert {"MindLLM-1.3B", "MindLLM-3B"} <= models


def test_no_percentage_is_a_fraction() -> None:
    values = [
        value
        for table in read_tables()
        if table.unit == "percent"
        for row in table.rows
        for value in row.values
        if value is not None
    ]
    assert values
    assert all(1 < value <= 100 for value in values)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[31, 29.5]", "[31]", "expected 2 values, one a column"),
        ("[31, 29.5]", "[31, about 30]", "expected numbers or null"),
        (", missing: lost", "", "a value is null; say why"),
        ("caption: c", "captoin: c", "expected the keys id, number, caption"),
        ("origin: paper", "origin: hearsay", "expected paper or others"),
        ("shots: 5", "shot: 5", "expected the keys task, metric, shots"),
        ("tables:", "table:", "expected a list of tables"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_tables(path)
