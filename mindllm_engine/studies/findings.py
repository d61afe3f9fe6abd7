"""What a study found: claims, tables, plots and numbers, as plain data. `report.py` writes and reads it."""

from dataclasses import dataclass, field
from typing import Any

from mindllm_engine.studies.claims import Claim
from mindllm_engine.studies.results import LeftOut


@dataclass(frozen=True)
class Table:
    """Numbers as a reader wants them: cells are finished texts, the first column names the rows."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A plot as PNG."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Cost:
    """What the trials of a study took.

    Attributes:
        trials: that ended.
        tokens: trained on.
        seconds: of all trials together, as if one after the other.
    """

    trials: int
    tokens: int
    seconds: float


@dataclass
class Findings:
    """What an experiment's analysis returns.

    Attributes:
        numbers: what else stands in findings.json: fits with their intervals, curves, matrices; plain data.
        left_out, cost: `study.py` fills them in.
        files: name -> text of a file that is written beside findings.json.
    """

    title: str
    claims: list[Claim]
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    cost: Cost = field(default_factory=lambda: Cost(0, 0, 0.0))
    files: dict[str, str] = field(default_factory=dict)
