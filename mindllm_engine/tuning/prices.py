"""Closing prices, and the moves after a moment, for labels of news (arXiv 2310.15777, section 6.2).

The calendar is the days on which any symbol has a close, so weekends and holidays need no list. For a moment t the
*base* is the last close known at t and the *target* the close of the `horizon`-th trading day whose close comes after
t. Nothing after the target is read, and no close from between t and the base exists, so a label looks neither further
ahead than its horizon nor back before the last close.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.errors import DataError

_COLUMNS = ("date", "symbol", "close")


@dataclass(frozen=True)
class Move:
    """How far a close went from base to target.

    Attributes:
        base, target: trading days.
        change: close of the target / close of the base - 1.
    """

    base: np.datetime64
    target: np.datetime64
    change: float


@dataclass
class Prices:
    """The closes of many symbols.

    Attributes:
        days: datetime64[D], the trading days in order.
        closes: symbol -> float64[days], NaN where it has no close.
        counts: rows in all, and what was put right in reading: rows out of a symbol's order, given twice, or without a
            close.
    """

    days: NDArray[np.datetime64]
    closes: dict[str, NDArray[np.float64]]
    counts: dict[str, int] = field(default_factory=dict)

    def move(self, symbol: str, moment: np.datetime64, close_hour: float, horizon: int, split_move: float) -> Move:
        """The move that news of a moment could have caused.

        Args:
            moment: datetime64[m]; a news item of a day without an hour is of the day's last minute.
            close_hour: when the market closes, in hours after midnight; a close at t is known at t.
            horizon: trading days to the target, at least 1.
            split_move: a larger move from one close to the next within the window is a split of the share, or an error.

        Raises:
            ValueError: with the reason why there is none.
        """
        closes = self.closes.get(symbol)
        if closes is None:
            raise ValueError("no prices of the symbol")
        known = self.days.astype("datetime64[m]") + np.timedelta64(round(close_hour * 60), "m") <= moment
        base = int(known.sum()) - 1  # days are in order
        target = base + horizon
        if base < 0:
            raise ValueError("before the first trading day")
        if target >= len(self.days):
            raise ValueError("its target lies after the last trading day")
        if np.isnan(closes[base]) or np.isnan(closes[target]):
            raise ValueError(f"no close on the day of the {'base' if np.isnan(closes[base]) else 'target'}")
        window = closes[base : target + 1]
        window = window[~np.isnan(window)]
        if (np.abs(window[1:] / window[:-1] - 1) > split_move).any():
            raise ValueError("a move larger than split_move")
        return Move(self.days[base], self.days[target], float(closes[target] / closes[base] - 1))


def read_prices(path: str | Path) -> Prices:
    """The closes in a .csv or .parquet file with the columns date, symbol and close; other columns are passed over.

    Rows may come in any order. Rows without a close (empty, NaN) are counted, and so are equal rows given twice.

    Raises:
        DataError: the file is missing or damaged or lacks a column; a date cannot be read; a price is not above 0; or a
            symbol has two different closes on a day.
    """
    path = Path(path)
    table = _read_table(path)
    dates, symbols = _days(path, table["date"]), table["symbol"]
    closes = _closes(path, table["close"])
    priced = ~np.isnan(closes)
    for row in np.flatnonzero(priced & ~((closes > 0) & np.isfinite(closes)))[:1]:
        raise DataError(f"{path}: row {row + 1}: close {closes[row]:g} of {symbols[row]} on {dates[row]} is no price")
    if not priced.any():
        raise DataError(f"{path}: holds no price")
    counts = {
        "rows": len(dates),
        "rows without a close": int((~priced).sum()),
        "rows out of order": 0,
        "rows given twice": 0,
    }
    days = np.unique(dates[priced])
    place = np.searchsorted(days, dates)
    by_symbol: dict[str, NDArray[np.float64]] = {}
    last_day: dict[str, np.datetime64] = {}
    for row in np.flatnonzero(priced):
        counts["rows out of order"] += bool(dates[row] < last_day.get(symbols[row], dates[row]))
        last_day[symbols[row]] = dates[row]
        column = by_symbol.setdefault(symbols[row], np.full(len(days), np.nan))
        before = column[place[row]]
        if before == closes[row]:
            counts["rows given twice"] += 1
        elif not np.isnan(before):
            raise DataError(
                f"{path}: row {row + 1}: {symbols[row]} has two closes on {dates[row]}, {before:g} and "
                f"{closes[row]:g}; keep one"
            )
        column[place[row]] = closes[row]
    return Prices(days, by_symbol, counts)


def parse_moment(text: Any) -> np.datetime64:
    """A date, or a date and time, as datetime64[m]; a date alone is its last minute, when all its closes are known.

    Raises:
        ValueError: it is neither, in ISO 8601.
    """
    if not isinstance(text, str):
        raise ValueError("date is no text")
    try:
        moment = datetime.fromisoformat(text.strip().replace("/", "-"))
    except ValueError as error:
        raise ValueError(f"date {text!r} is none such as 2023-05-31 or 2023-05-31 14:05") from error
    if moment.tzinfo is not None:
        raise ValueError(f"date {text!r} has a time zone; give the exchange's local time")
    minute = np.datetime64(moment.replace(second=0, microsecond=0), "m")
    is_day = len(text.strip()) <= len("2023-05-31")
    return minute + np.timedelta64(24 * 60 - 1, "m") if is_day else minute


def _read_table(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            # As text: a symbol such as 000001 is no number.
            options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pyarrow.string()))
            table = pyarrow.csv.read_csv(path, convert_options=options)
        names = table.column_names
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8; convert it first") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: prices cannot be read: {error}".splitlines()[0]) from error
    for name in _COLUMNS:
        if names.count(name) != 1:
            found = "lacks the column" if name not in names else "has more than once the column"
            raise DataError(f"{path}: {found} {name}; it has {', '.join(names)}")
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in _COLUMNS}
    for row, symbol in enumerate(columns["symbol"]):
        if symbol is None or not str(symbol).strip():
            raise DataError(f"{path}: row {row + 1}: has no symbol")
    columns["symbol"] = [str(symbol).strip() for symbol in columns["symbol"]]
    return columns


def _days(path: Path, dates: list[Any]) -> NDArray[np.datetime64]:
    days = []
    for row, date in enumerate(dates):
        try:
            days.append(parse_moment(str(date)))
        except ValueError as error:
            raise DataError(f"{path}: row {row + 1}: {error}") from error
    return np.array(days, "datetime64[m]").astype("datetime64[D]")


def _closes(path: Path, closes: list[Any]) -> NDArray[np.float64]:
    values = []
    for row, close in enumerate(closes):
        try:
            values.append(float("nan") if close is None or close == "" else float(close))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: row {row + 1}: close {close!r} is no number") from error
    return np.array(values, np.float64)
