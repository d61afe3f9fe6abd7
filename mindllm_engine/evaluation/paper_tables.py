"""The paper's figures, so that a report can set "paper" beside "here": configs/paper/tables.yaml as data.

A value that could not be found is null in the file and `None` here; none is guessed.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindllm_engine.command_line import read_yaml
from mindllm_engine.errors import ConfigError

TABLES = Path(__file__).parents[2] / "configs" / "paper" / "tables.yaml"

_TABLE_KEYS = ("id", "number", "caption", "unit", "origin", "source", "columns", "rows")
_COLUMN_KEYS = ("task", "metric", "shots")
_ROW_KEYS = ("model", "values", "missing")


@dataclass(frozen=True)
class Column:
    """A task by its name in the suites' key `paper`, a metric as lm-eval names it, and the examples before a question
    (`shots`), None where the source does not say."""

    task: str
    metric: str
    shots: int | None


@dataclass(frozen=True)
class Row:
    """A model's values, one a column; None where a value was not to be found, which `missing` says."""

    model: str
    values: tuple[float | None, ...]
    missing: str | None = None


@dataclass(frozen=True)
class Table:
    """One table. `number` is the paper's, None where it could not be established; `source` says where it was found;
    `origin` is "paper", or "others" for what other people say of its models, from the paper or by their own measure."""

    id: str
    number: str | None
    caption: str
    unit: str
    origin: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PaperValue:
    """A published figure: in the unit of its table, with the shots that were used (None: not said), its source, and
    whether the paper itself gives it."""

    value: float
    unit: str
    shots: int | None
    source: str
    from_paper: bool

    @property
    def text(self) -> str:
        """For tables: with a star where it is not the paper's own figure (`OTHERS`)."""
        return f"{self.value:g} {self.unit}" + ("" if self.from_paper else " *")


# What the star stands for.
OTHERS = "* quoted or measured by others, not from the paper itself (configs/paper/tables.yaml says by whom)"


def read_tables(path: str | Path = TABLES) -> tuple[Table, ...]:
    """Every table of the file.

    Raises:
        ConfigError: the file is missing or does not fit: a row with another number of values than columns, a null
            without the reason, a key that is not one.
    """
    content = read_yaml(path)
    tables = content.get("tables")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path}: tables: expected a list of tables")
    return tuple(_table(table, f"{path}: tables[{position}]") for position, table in enumerate(tables))


def paper_value(task: str, metric: str, shots: int | None, model: str, path: str | Path = TABLES) -> PaperValue | None:
    """A model's published figure, or None where none was found; the paper's own before other people's.

    Args:
        task: the name in the suites' key `paper`.
        metric: as lm-eval names it.
        shots: examples before a question. A table that does not say its own fits any; None fits every table.
        model: such as MindLLM-1.3B.
        path: the tables' file.
    """
    found: list[PaperValue] = []
    for table in _cached(str(path)):
        for position, column in enumerate(table.columns):
            fits = shots is None or column.shots in (None, shots)
            if column.task == task and column.metric == metric and fits:
                for row in table.rows:
                    if row.model == model and (value := row.values[position]) is not None:
                        from_paper = table.origin == "paper"
                        found.append(PaperValue(value, table.unit, column.shots, table.source, from_paper))
    # The paper before others, the same shots before shots that are not said, then the file's order.
    return min(found, key=lambda one: (not one.from_paper, one.shots != shots), default=None)


@functools.lru_cache(maxsize=4)
def _cached(path: str) -> tuple[Table, ...]:
    return read_tables(path)


def _table(content: Any, where: str) -> Table:
    _check(content, _TABLE_KEYS, where)
    columns = tuple(
        Column(**_check(column, _COLUMN_KEYS, f"{where}.columns[{position}]"))
        for position, column in enumerate(content["columns"])
    )
    rows = tuple(_row(row, len(columns), f"{where}.rows[{position}]") for position, row in enumerate(content["rows"]))
    if content["origin"] not in ("paper", "others"):
        raise ConfigError(f"{where}: origin: expected paper or others, found {content['origin']!r}")
    return Table(**{**content, "columns": columns, "rows": rows})


def _row(content: Any, columns: int, where: str) -> Row:
    if isinstance(content, dict):
        content = {"missing": None, **content}
    _check(content, _ROW_KEYS, where)
    values = content["values"]
    if not isinstance(values, list) or len(values) != columns:
        raise ConfigError(f"{where}: expected {columns} values, one a column, found {values!r}")
    for value in values:
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise ConfigError(f"{where}: expected numbers or null, found {value!r}")
    if None in values and not content["missing"]:
        raise ConfigError(f"{where}: a value is null; say why in the key missing")
    return Row(content["model"], tuple(values), content["missing"])


def _check(content: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or set(content) != set(keys):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else repr(content)
        raise ConfigError(f"{where}: expected the keys {', '.join(keys)}; found {found}")
    return content
