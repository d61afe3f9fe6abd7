"""Finance data for tuning (arXiv 2310.15777, section 6.2): news labelled by the move of the price that followed, or
comments that people have labelled, as questions with a class for an answer; balanced over classes, split by date.

What keeps the future out: a label reads no price after its target (prices.py); what is trained on has its target before
the split, so that no label of training is of a day that is tested; a gap follows; and a text that is trained on is not
tested again. Only the training part is balanced: the test part stays as the market made it.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.corpus.readers import expand_paths
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.tuning.prices import parse_moment, read_prices
from mindllm_engine.tuning.record_files import (
    content_key,
    fill,
    message_rows,
    refuse_to_overwrite,
    stable_sample,
    write_json_lines,
    write_summary,
)

_EXAMPLES = 20  # bad records named in the summary
_EVERY = 1000  # records between calls of `show`


@dataclass
class PriceLabels:
    """How moves of prices become classes."""

    prices: str
    """A .csv or .parquet file with the columns date, symbol and close (adjusted for splits and dividends)."""
    thresholds: list[float] = field(default_factory=lambda: [-0.03, -0.01, 0.01, 0.03])
    """Changes of the close that part the classes, one fewer than they, rising; a change equal to one belongs above it.
    The five classes are the paper's, these figures assumed."""
    horizon_days: int = 1
    """Trading days from the first close after the news to the one that counts; 1 is that first close. Assumed."""
    close_hour: float = 15.0
    """When the market closes, local time, in hours after midnight; news with a time before it may move that close."""
    split_move: float = 0.35
    """A larger change between two closes is taken for a split of the share or an error; the news is left out."""
    split_date: str = ""
    """The first day that is tested, such as 2023-01-01; only labels whose prices are all from before it are trained
    on."""
    gap_days: int = 7
    """Days from split_date on whose news is left out."""


@dataclass
class FinanceConfig:
    """Which records become tuning data, and how they are asked."""

    input: str | list[str]
    """Path or glob of JSON lines (plain, .gz or .zst), or a list: news of text, date (2023-05-31 or 2023-05-31 14:05)
    and symbol, with `labels`; or comments of text and label (0 to classes - 1), without."""
    out: str
    """Folder to write train.jsonl, test.jsonl and summary.json to."""
    classes: list[str] = field(default_factory=lambda: ["大跌", "小跌", "平稳", "小涨", "大涨"])
    """The names of the classes, from the worst to the best."""
    question: str = (
        "请阅读下面的财经新闻，判断它发布后相关股票的价格走势，并从以下选项中选出一项作答：{classes}。\n\n新闻：{text}"
    )
    """Template 1, which asks for the class alone. The wording is this project's."""
    labels: PriceLabels | None = None
    """How news is labelled by prices; without it the records carry labels."""
    test_share: float = 0.1
    """Share of comments to test on, chosen by their text; news is split by date instead."""
    per_class: int | None = None
    """Records of each class to train on; empty for as many as the class with the fewest has."""
    seed: int = 0
    """Names the choice of records."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first key that cannot be used."""
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"classes: {self.classes} must be two different names at least")
        if any(not name.strip() or name in other for name, other in itertools.permutations(self.classes, 2)):
            raise ConfigError(f"classes: no name of {self.classes} may be empty or part of another")
        if self.question.count("{text}") != 1 or self.question.count("{classes}") != 1:
            raise ConfigError("question must hold {text} and {classes} exactly once each")
        if self.per_class is not None and self.per_class < 1:
            raise ConfigError(f"per_class is {self.per_class}; it must be at least 1")
        if self.labels is None:
            if not 0 <= self.test_share < 1:
                raise ConfigError(f"test_share is {self.test_share}; it is a share, from 0 to below 1")
            return
        labels = self.labels
        if len(labels.thresholds) != len(self.classes) - 1:
            raise ConfigError(
                f"labels.thresholds: {len(labels.thresholds)} of them part {len(labels.thresholds) + 1} classes, but "
                f"classes has {len(self.classes)}"
            )
        if not all(left < right for left, right in itertools.pairwise([-1.0, *labels.thresholds, float("inf")])):
            raise ConfigError(f"labels.thresholds: {labels.thresholds} must rise, and lie above -1")
        if labels.horizon_days < 1 or labels.gap_days < 0:
            raise ConfigError("labels: horizon_days must be at least 1 and gap_days at least 0")
        if not 0 <= labels.close_hour < 24 or not labels.split_move > 0:
            raise ConfigError("labels: close_hour must lie in 0 to below 24, and split_move above 0")
        try:
            parse_moment(labels.split_date)
        except ValueError as error:
            raise ConfigError(f"labels.split_date: {error}") from error


@dataclass(frozen=True)
class FinanceRecord:
    """A text with its class.

    Attributes:
        part: train or test.
        about: for news its date, symbol, change and the days of base and target.
    """

    key: str
    id: str
    text: str
    label: int
    part: str
    about: dict[str, Any]

    def row(self, config: FinanceConfig) -> dict[str, Any]:
        """As it is written: for tuning (messages), and for distillation (text and label)."""
        name = config.classes[self.label]
        question = fill(config.question, text=self.text, classes="、".join(config.classes))
        messages = [Message("user", question), Message("assistant", name)]
        content = {"id": self.id, "text": self.text, "label": name, **self.about}
        return content | {"messages": message_rows(messages)}


@dataclass
class FinanceReport:
    """What came of the records.

    Attributes:
        records: lines read.
        found: part -> class -> records with that label.
        kept: part -> class -> records written.
        left_out: reason -> records; with `kept` they add up to `records`.
        bad: the first bad records, by file, line and reason.
        prices: what was found in the price file.
    """

    records: int = 0
    found: dict[str, dict[str, int]] = field(default_factory=dict)
    kept: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    prices: dict[str, int] = field(default_factory=dict)


class _LeftOutError(ValueError):
    """A good record that has no place in the data."""


def prepare_finance(config: FinanceConfig, show: Callable[[int], None] | None = None) -> FinanceReport:
    """Label, split, balance and write.

    Args:
        show: called with the number of records read, now and then.

    Raises:
        ConfigError: a key that cannot be used.
        DataError: a file is missing or damaged, or a class has no record to train on.
    """
    config.validate()
    paths = expand_paths(config.input)
    folder = Path(config.out)
    refuse_to_overwrite(paths, [folder / name for name in ("train.jsonl", "test.jsonl", "summary.json")])
    report = FinanceReport()
    labelled = _NewsLabels(config.labels, report) if config.labels is not None else _GivenLabels(config)
    records = _distinct(list(_records(paths, labelled, report, show)), report)
    trained = {record.text for record in records if record.part == "train"}
    again = [record for record in records if record.part == "test" and record.text in trained]
    if again:
        report.left_out["tested text that is trained on"] = len(again)
    parts = {
        "train": [record for record in records if record.part == "train"],
        "test": [record for record in records if record.part == "test" and record.text not in trained],
    }
    report.found = {part: _by_class(found, config.classes) for part, found in parts.items()}
    parts["train"] = _balanced(parts["train"], config, report)
    report.kept = {part: _by_class(kept, config.classes) for part, kept in parts.items()}
    for part, kept in parts.items():
        write_json_lines(folder / f"{part}.jsonl", (record.row(config) for record in kept))
    write_summary(folder / "summary.json", {**vars(report), "left_out": dict(report.left_out)})
    return report


def price_class(change: float, thresholds: list[float]) -> int:
    """The number of thresholds that a change has reached."""
    return sum(change >= threshold for threshold in thresholds)


class _NewsLabels:
    """Labels and parts of news by prices and dates."""

    def __init__(self, labels: PriceLabels, report: FinanceReport) -> None:
        self.labels = labels
        self.prices = read_prices(labels.prices)
        report.prices = self.prices.counts | {"symbols": len(self.prices.closes), "trading days": len(self.prices.days)}
        self.split = parse_moment(labels.split_date).astype("datetime64[D]")
        self.tested_from = self.split + np.timedelta64(labels.gap_days, "D")

    def label(self, content: dict[str, Any], text: str) -> tuple[int, str, dict[str, Any]]:
        """(class, part, about) of a news record. Raises ValueError, `_LeftOutError` where nothing is wrong with it."""
        symbol = content.get("symbol")
        if not isinstance(symbol, str) or not symbol.strip():
            raise ValueError("no symbol")
        moment = parse_moment(content.get("date"))
        labels = self.labels
        try:
            move = self.prices.move(symbol.strip(), moment, labels.close_hour, labels.horizon_days, labels.split_move)
        except ValueError as error:
            raise _LeftOutError(str(error)) from error
        day = moment.astype("datetime64[D]")
        if self.split <= day < self.tested_from:
            raise _LeftOutError("in the gap after the split")
        if day < self.split <= move.target:
            raise _LeftOutError("its label reaches past the split")
        about = {
            "date": content["date"],
            "symbol": symbol.strip(),
            "change": round(move.change, 6),
            "base": str(move.base),
            "target": str(move.target),
        }
        return price_class(move.change, labels.thresholds), "train" if day < self.split else "test", about


class _GivenLabels:
    """Labels that the records carry; parts by a hash of the text."""

    def __init__(self, config: FinanceConfig) -> None:
        self.config = config

    def label(self, content: dict[str, Any], text: str) -> tuple[int, str, dict[str, Any]]:
        """(class, part, about) of a comment. Raises ValueError."""
        label, classes = content.get("label"), len(self.config.classes)
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
            raise ValueError(f"label {label!r} is none of 0 to {classes - 1}")
        draw = xxhash.xxh3_64_intdigest(f"{self.config.seed}:test:{text}".encode()) / 2**64
        return label, "test" if draw < self.config.test_share else "train", {}


def _records(
    paths: list[str],
    labelled: _NewsLabels | _GivenLabels,
    report: FinanceReport,
    show: Callable[[int], None] | None,
) -> Iterator[FinanceRecord]:
    """The records that have a class and a part; the rest is counted."""
    for path in paths:
        for where, content in read_json_lines(path):
            report.records += 1
            if show is not None and report.records % _EVERY == 0:
                show(report.records)
            try:
                yield _record(where, content, labelled)
            except _LeftOutError as error:
                report.left_out[str(error)] += 1
            except ValueError as error:
                report.left_out[f"bad: {error}"] += 1
                if len(report.bad) < _EXAMPLES:
                    report.bad.append(f"{where}: {error}")


def _record(where: str, content: Any, labelled: _NewsLabels | _GivenLabels) -> FinanceRecord:
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    text = content.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no text")
    label, part, about = labelled.label(content, text.strip())
    key = content_key(text.strip(), about.get("symbol", ""), about.get("base", ""))
    return FinanceRecord(key, str(content.get("id", where)), text.strip(), label, part, about)


def _distinct(records: list[FinanceRecord], report: FinanceReport) -> list[FinanceRecord]:
    """The first record of each text (for news: and symbol and day), none of a text that has two labels."""
    labels: dict[str, set[int]] = {}
    for record in records:
        labels.setdefault(record.key, set()).add(record.label)
    distinct: dict[str, FinanceRecord] = {}
    for record in records:
        if len(labels[record.key]) > 1:
            report.left_out["the same text has two labels"] += 1
        elif record.key in distinct:
            report.left_out["says the same as another"] += 1
        else:
            distinct[record.key] = record
    return list(distinct.values())


def _by_class(records: list[FinanceRecord], classes: list[str]) -> dict[str, int]:
    counts = Counter(record.label for record in records)
    return {name: counts[label] for label, name in enumerate(classes)}


def _balanced(records: list[FinanceRecord], config: FinanceConfig, report: FinanceReport) -> list[FinanceRecord]:
    """Equally many records of each class, in the order of the input. Raises DataError where a class has none."""
    counts = report.found["train"]
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise DataError(
            f"no record of class {empty[0]} to train on ({', '.join(f'{n} {c:,}' for n, c in counts.items())}; left "
            f"out: {dict(report.left_out)}); give more records, or change the thresholds or the split"
        )
    size = config.per_class or min(counts.values())
    chosen: set[str] = set()
    for label in range(len(config.classes)):
        of_class = [record for record in records if record.label == label]
        chosen |= {record.key for record in stable_sample(of_class, size, lambda record: record.key, config.seed)}
    if len(chosen) < len(records):
        report.left_out["more than its class takes"] = len(records) - len(chosen)
    return [record for record in records if record.key in chosen]
