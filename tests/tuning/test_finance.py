"""Finance data: labels from prices against brute force, no look-ahead, the split by date, balance, and bad files."""

import csv
import json
import subprocess
import sys
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.tuning.finance import FinanceConfig, PriceLabels, prepare_finance, price_class
from mindllm_engine.tuning.prices import Prices, parse_moment, read_prices
from mindllm_engine.tuning.records import Record, read_records
from tests.real_data import REAL_DATA

ROOT = Path(__file__).resolve().parents[2]
FIRST = date(2022, 1, 3)
THRESHOLDS = [-0.03, -0.01, 0.01, 0.03]
CLASSES = ["大跌", "小跌", "平稳", "小涨", "大涨"]

Closes = dict[str, dict[date, float]]


def _prices(closes: Closes) -> Prices:
    days = sorted({day for of_symbol in closes.values() for day in of_symbol})
    columns = {symbol: np.array([of.get(day, np.nan) for day in days]) for symbol, of in closes.items()}
    return Prices(np.array(days, "datetime64[D]"), columns)


def _brute_move(
    closes: Closes, symbol: str, moment: datetime, hour: int, horizon: int
) -> tuple[date, date, float] | None:
    """By walking over days, as one would say it."""
    days = sorted({day for of_symbol in closes.values() for day in of_symbol})
    known = [day for day in days if datetime(day.year, day.month, day.day, hour) <= moment]
    later = [day for day in days if datetime(day.year, day.month, day.day, hour) > moment]
    if not known or len(later) < horizon:
        return None
    base, target = known[-1], later[horizon - 1]
    if base not in closes[symbol] or target not in closes[symbol]:
        return None
    return base, target, closes[symbol][target] / closes[symbol][base] - 1


def _move(prices: Prices, symbol: str, moment: datetime, horizon: int) -> tuple[date, date, float] | None:
    try:
        move = prices.move(symbol, np.datetime64(moment, "m"), 15.0, horizon, split_move=1e9)
    except ValueError:
        return None
    return move.base.astype(date), move.target.astype(date), move.change


all_closes = st.dictionaries(
    st.sampled_from("AB"),
    st.dictionaries(st.integers(0, 30).map(lambda n: FIRST + timedelta(n)), st.floats(1, 100), min_size=1),
    min_size=1,
)
moments = st.builds(
    lambda days, minutes: datetime(2022, 1, 1) + timedelta(days=days, minutes=minutes),
    st.integers(0, 36), st.sampled_from([0, 899, 900, 901, 1439]),
)  # fmt: skip


@given(all_closes, moments, st.integers(1, 4))
def test_moves_are_those_of_brute_force(closes: Closes, moment: datetime, horizon: int) -> None:
    for symbol in closes:
        assert _move(_prices(closes), symbol, moment, horizon) == pytest.approx(
            _brute_move(closes, symbol, moment, 15, horizon)
        )


@given(all_closes, moments, st.integers(1, 4), st.floats(1, 100))
def test_no_label_looks_ahead_or_behind(closes: Closes, moment: datetime, horizon: int, other: float) -> None:
    """Whatever all closes but two become, a label stays: what is after the target, and what is before the base."""
    for symbol, of_symbol in closes.items():
        move = _move(_prices(closes), symbol, moment, horizon)
        if move is not None:
            base, target, _ = move
            assert datetime(base.year, base.month, base.day, 15) <= moment
            assert datetime(target.year, target.month, target.day, 15) > moment
            changed = {day: close if day in (base, target) else other for day, close in of_symbol.items()}
            assert _move(_prices(closes | {symbol: changed}), symbol, moment, horizon) == move
            # With every later day cut off, the label is the same: it was known when the target's market closed.
            cut = {name: {day: close for day, close in of.items() if day <= target} for name, of in closes.items()}
            assert _move(_prices(cut), symbol, moment, horizon) == move


@given(st.floats(-0.99, 5))
def test_price_classes(change: float) -> None:
    expected = (
        0 if change < -0.03 else 1 if change < -0.01 else 2 if change < 0.01 else 3 if change < 0.03 else 4
    )  # fmt: skip
    assert price_class(change, THRESHOLDS) == expected


def _write_prices(path: Path, rows: list[tuple[Any, Any, Any]]) -> Path:
    if path.suffix == ".parquet":
        dates, symbols, closes = map(list, zip(*rows, strict=True))
        pyarrow.parquet.write_table(pyarrow.table({"date": dates, "symbol": symbols, "close": closes}), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("date", "symbol", "close"), *rows])
    return path


def _write_news(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _market(seed: int = 0, days: int = 120) -> list[tuple[str, str, float]]:
    """Closes of three symbols on weekdays; 000002 was suspended for a week, 000003 was split."""
    rng = np.random.default_rng(seed)
    rows = []
    for symbol in ("000001", "000002", "000003"):
        close = 20.0
        for number in range(days):
            day = FIRST + timedelta(number)
            if day.weekday() < 5:
                close *= 1 + float(rng.normal(0, 0.025))
                if symbol == "000003" and number == 42:
                    close /= 2
                if not (symbol == "000002" and 21 <= number < 28):
                    rows.append((day.isoformat(), symbol, round(close, 4)))
    return rows


def _news(days: int = 118) -> list[dict[str, Any]]:
    return [
        {"date": (FIRST + timedelta(n)).isoformat() + hour, "symbol": symbol, "text": f"公司{symbol}第{n}条消息{hour}"}
        for n in range(days)
        for symbol in ("000001", "000002", "000003")
        for hour in ("", " 10:30")
    ]


def _labels(prices: Path, **changed: Any) -> PriceLabels:
    values = {"prices": str(prices), "thresholds": THRESHOLDS, "split_date": "2022-03-21"}
    return PriceLabels(**values | changed)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_news_is_labelled_split_and_balanced(tmp_path: Path, kind: str) -> None:
    rows = _market()
    prices = _write_prices(tmp_path / f"prices.{kind}", rows)
    news = _write_news(tmp_path / "news.jsonl", _news())
    config = FinanceConfig(str(news), str(tmp_path / "out"), labels=_labels(prices))
    report = prepare_finance(config)
    parts = {part: _read(tmp_path / "out" / f"{part}.jsonl") for part in ("train", "test")}

    closes: Closes = {}
    for day, symbol, close in rows:
        closes.setdefault(symbol, {})[date.fromisoformat(day)] = close
    split, tested_from = date(2022, 3, 21), date(2022, 3, 28)
    for part, records in parts.items():
        assert records
        for record in records:
            moment = parse_moment(record["date"]).astype(datetime)
            brute = _brute_move(closes, record["symbol"], moment, 15, 1)
            assert brute is not None
            assert (record["base"], record["target"]) == (brute[0].isoformat(), brute[1].isoformat())
            assert record["label"] == CLASSES[price_class(brute[2], THRESHOLDS)]
            assert record["messages"][1]["content"] == record["label"]
            assert record["text"] in record["messages"][0]["content"]
            assert brute[1] < split if part == "train" else moment.date() >= tested_from
    counts = Counter(record["label"] for record in parts["train"])
    assert counts == dict.fromkeys(CLASSES, min(report.found["train"].values()))
    assert sum(sum(kept.values()) for kept in report.kept.values()) + sum(report.left_out.values()) == report.records
    assert report.left_out["a move larger than split_move"] >= 2  # the split of 000003
    assert report.left_out["no close on the day of the base"] > 0  # the week of 000002
    assert report.left_out["its label reaches past the split"] > 0
    assert report.left_out["in the gap after the split"] > 0
    assert report.left_out["before the first trading day"] == 3  # that day's morning
    # The same again, and whatever the order of either file.
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    prepare_finance(config)
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before
    _write_prices(prices, rows[::-1])
    shuffled = prepare_finance(config)
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before
    assert shuffled.prices["rows out of order"] == len(rows) - 3


def _total(classes: dict[str, int]) -> int:
    return sum(classes.values())


def _read(path: Path) -> list[dict[str, Any]]:
    assert all(isinstance(record, Record) for record in read_records(path))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_future_does_not_change_what_is_trained_on(tmp_path: Path) -> None:
    """All prices from the split on may change, and the news as well: the training file stays to the byte."""
    rows, news = _market(), _news()
    written = []
    for number, seed in enumerate((0, 9)):
        other = {(day, symbol): close for day, symbol, close in _market(seed)}
        kept = [(d, s, c if d < "2022-03-21" else other[d, s]) for d, s, c in rows]
        items = [item if number == 0 or item["date"] < "2022-03-21" else item | {"text": "别的"} for item in news]
        out = tmp_path / str(number)
        out.mkdir()
        source = _write_news(out / "news.jsonl", items)
        labels = _labels(_write_prices(tmp_path / f"{number}.csv", kept))
        prepare_finance(FinanceConfig(str(source), str(out), labels=labels))
        written.append((out / "train.jsonl").read_bytes())
    assert written[0] == written[1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=40, max_size=80), st.integers(0, 3), st.none() | st.integers(1, 9))
def test_balance_of_labelled_comments(tmp_path: Path, labels: list[int], seed: int, per_class: int | None) -> None:
    rows = [{"id": str(n), "text": f"评论{n}", "label": label} for n, label in enumerate(labels)]
    source = _write_news(tmp_path / "comments.jsonl", rows)
    config = FinanceConfig(str(source), str(tmp_path / "out"), ["消极", "中性", "积极"], seed=seed, per_class=per_class)
    try:
        report = prepare_finance(config)
    except DataError:
        # All of some class fell to the test part, by the test share.
        assert min(Counter(labels)[label] for label in range(3)) < 8
        return
    train, test = _read(tmp_path / "out" / "train.jsonl"), _read(tmp_path / "out" / "test.jsonl")
    by_id = {row["id"]: row for row in rows}
    assert all(record["label"] == config.classes[by_id[record["id"]]["label"]] for record in train + test)
    assert not {record["text"] for record in train} & {record["text"] for record in test}
    counts, available = Counter(record["label"] for record in train), report.found["train"]
    assert counts == {name: min(per_class or min(available.values()), count) for name, count in available.items()}
    assert report.found["test"] == report.kept["test"]  # as it came
    assert len(test) + sum(available.values()) == len(rows)


def test_bad_records_are_counted_with_their_line(tmp_path: Path) -> None:
    good = [{"text": f"好评{n}", "label": n % 3} for n in range(30)]
    bad = [
        {"text": "一", "label": 3}, {"text": "二", "label": -1}, {"text": "三", "label": "1"}, {"text": "四"},
        {"text": " ", "label": 1}, {"label": 1}, [], {"text": "五", "label": True}, good[0],
        {"text": "好评1", "label": 2},
    ]  # fmt: skip
    source = _write_news(tmp_path / "comments.jsonl", good + bad)
    report = prepare_finance(FinanceConfig(str(source), str(tmp_path / "out"), ["消极", "中性", "积极"]))
    assert len(report.bad) == 8
    assert report.bad[0] == "comments.jsonl:31: label 3 is none of 0 to 2"
    assert report.left_out["says the same as another"] == 1
    assert report.left_out["the same text has two labels"] == 2
    assert report.left_out["bad: no text"] == 2
    assert sum(sum(kept.values()) for kept in report.kept.values()) + sum(report.left_out.values()) == 40
    news = [{"text": "一", "date": "2022-01-32", "symbol": "000001"}, {"text": "二", "date": "2022-02-01"}]
    news += [{"text": "三", "date": "2022-02-01T10:00+08:00", "symbol": "000001"}, {"text": "四", "symbol": "000001"}]
    prices = _write_prices(tmp_path / "prices.csv", _market())
    source = _write_news(tmp_path / "news.jsonl", _news() + news)
    report = prepare_finance(FinanceConfig(str(source), str(tmp_path / "out"), labels=_labels(prices)))
    reasons = [line.split(": ", 1)[1] for line in report.bad]
    assert "2022-01-32" in reasons[0]
    assert reasons[1] == "no symbol"
    assert "time zone" in reasons[2]
    assert reasons[3] == "date is no text"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("2022-01-03", "A", "x")], "close 'x' is no number"),
        ([("2022-01-03", "A", "0")], "close 0 of A on 2022-01-03 is no price"),
        ([("2022-01-03", "A", "-3")], "close -3 of A"),
        ([("2022-01-03", "A", "inf")], "close inf of A"),
        ([("2022-01-03", "A", "NaN"), ("2022-01-04", "A", "")], "holds no price"),
        ([("2022-01-03", "A", "3"), ("2022-01-03", "A", "4")], "has two closes on 2022-01-03, 3 and 4"),
        ([("03.01.2022", "A", "3")], "date '03.01.2022' is none"),
        ([("2022-01-03", "", "3")], "row 1: has no symbol"),
    ],
)
def test_bad_prices_are_refused(tmp_path: Path, rows: list[tuple[str, str, str]], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_prices(_write_prices(tmp_path / "prices.csv", rows))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prices_that_can_be_put_right(tmp_path: Path) -> None:
    rows = [("2022-01-05", "A", "3"), ("2022-01-03", "A", "2"), ("2022-01-03", "A", "2"), ("2022-01-04", "A", "nan")]
    prices = read_prices(_write_prices(tmp_path / "prices.csv", rows))
    assert prices.days.astype(str).tolist() == ["2022-01-03", "2022-01-05"]
    assert prices.closes["A"].tolist() == [2, 3]
    assert prices.counts == {"rows": 4, "rows without a close": 1, "rows out of order": 1, "rows given twice": 1}
    (tmp_path / "other.csv").write_text("date,symbol\n2022-01-03,A\n")
    with pytest.raises(DataError, match="lacks the column close; it has date, symbol"):
        read_prices(tmp_path / "other.csv")
    (tmp_path / "other.csv").write_text("date,symbol,close,close\n2022-01-03,A,1,2\n")
    with pytest.raises(DataError, match="has more than once the column close"):
        read_prices(tmp_path / "other.csv")
    (tmp_path / "other.csv").write_bytes("date,symbol,close,名称\n2022-01-03,A,1,股票\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"other\.csv: (is no UTF-8|prices cannot be read)"):
        read_prices(tmp_path / "other.csv")
    for path in ("none.csv", "none.parquet"):
        with pytest.raises(DataError, match="prices cannot be read"):
            read_prices(tmp_path / path)
    typed = [(date(2022, 1, 3), "A", 2.0), (date(2022, 1, 4), "A", float("nan"))]
    assert read_prices(_write_prices(tmp_path / "typed.parquet", typed)).closes["A"].tolist() == [2]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    prices = _write_prices(tmp_path / "prices.csv", _market())
    news = _write_news(tmp_path / "news.jsonl", _news())

    def refused(**changed: Any) -> str:
        labels = {name: changed.pop(name) for name in list(changed) if hasattr(PriceLabels("x"), name)}
        values: dict[str, Any] = {"input": str(news), "out": str(tmp_path / "out"), "labels": _labels(prices, **labels)}
        with pytest.raises((ConfigError, DataError)) as caught:
            prepare_finance(FinanceConfig(**values | changed))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "part 3 classes, but classes has 5" in refused(thresholds=[0.0, 0.1])
    assert "must rise" in refused(thresholds=[0.0, 0.1, 0.1, 0.2])
    assert "must rise" in refused(thresholds=[0.0, float("nan"), 0.1, 0.2])
    assert "labels.split_date" in refused(split_date="soon")
    assert "labels.split_date" in refused(split_date="")
    assert "horizon_days must be at least 1" in refused(horizon_days=0)
    assert "close_hour" in refused(close_hour=24)
    assert "part of another" in refused(classes=["跌", "大跌", "平", "涨", "高"])
    assert "two different names" in refused(classes=["平"])
    assert "question must hold" in refused(question="{text}")
    assert "per_class is 0" in refused(per_class=0)
    assert "test_share is 1" in refused(labels=None, test_share=1.0)
    assert "no file matches" in refused(input=str(tmp_path / "none*"))
    # A class without a record: moves beyond 30 % do not occur.
    assert "no record of class 大涨 to train on" in refused(thresholds=[-0.02, 0.0, 0.02, 0.3])
    assert "no record of class" in refused(split_date="2022-01-01")


def test_the_tool_on_real_comments(tmp_path: Path) -> None:
    source = REAL_DATA / "finance" / "finfe_train.jsonl.gz"
    if not source.exists():
        pytest.skip(f"{source} is absent; set MINDLLM_DATA")
    command = [
        sys.executable, ROOT / "tools" / "prepare_finance.py", "--config", ROOT / "configs" / "tuning" / "finance.yaml",
        "--input", source, "--out", tmp_path / "out",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["records"] == 16157
    assert len(set(summary["kept"]["train"].values())) == 1
    assert len(_read(tmp_path / "out" / "train.jsonl")) == sum(summary["kept"]["train"].values()) > 6000
    assert 0.08 < sum(summary["kept"]["test"].values()) / sum(map(_total, summary["found"].values())) < 0.12
    assert summary["left_out"]["the same text has two labels"] == 1559
    assert "left out" in done.stdout


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps({"text": f"text {n}", "label": n % 2}) + "\n" for n in range(40)))
    before = source.read_bytes()
    with pytest.raises(ConfigError, match=r"train\.jsonl is read from, and would be overwritten"):
        prepare_finance(FinanceConfig(str(source), str(tmp_path), classes=["a", "b"]))
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
