"""Candles as facts: what a clean series is, what was wrong with a raw one, how higher timeframes follow, and which day is which."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hamilton_client.core.contracts import HuracanError, IntArray
from hamilton_client.core.layout import timeframe_minutes

TS = pl.Datetime("us", "UTC")
CANDLE_SCHEMA: dict[str, pl.DataType] = {
    "ts": TS,
    "open": pl.Float64(),
    "high": pl.Float64(),
    "low": pl.Float64(),
    "close": pl.Float64(),
    "volume": pl.Float64(),
}
OPTIONAL_COLUMNS: dict[str, pl.DataType] = {"quote_volume": pl.Float64(), "trades": pl.Int64()}
PRICES = ("open", "high", "low", "close")
DAY_US = 86_400_000_000

DEFECT_RULES: dict[str, str] = {
    "backward": "sorted",
    "duplicate": "dropped",
    "null_ts": "quarantined",
    "off_grid": "quarantined",
    "null_price": "quarantined",
    "non_positive_price": "quarantined",
    "impossible_range": "quarantined",
    "bad_volume": "quarantined",
    "unclosed": "quarantined",
    "conflicting_duplicate": "quarantined (the first row is kept)",
    "zero_volume": "kept",
    "flat": "kept",
    "gaps": "kept",
    "missing_bars": "kept",
    "longest_gap_bars": "kept",
}
"""Every count of `CheckedCandles.counts` and what is done about it."""


@dataclass(frozen=True, slots=True)
class CheckedCandles:
    """A clean series (sorted, unique, on the grid, closed), what was found on the way, and the rows set aside with a `reason`."""

    frame: pl.DataFrame
    counts: dict[str, int]
    quarantine: pl.DataFrame


def empty_candles() -> pl.DataFrame:
    """A candle frame of no rows."""
    return pl.DataFrame(schema=CANDLE_SCHEMA)


def conform(frame: pl.DataFrame, what: str = "candles") -> pl.DataFrame:
    """Return the candle columns of `frame`, typed and in canonical order; other columns are left out.

    Raises HuracanError naming `what` and every missing or wrongly typed column. A stamp without a time zone is refused: guessing
    one would shift every bar.
    """
    wanted = CANDLE_SCHEMA | {name: kind for name, kind in OPTIONAL_COLUMNS.items() if name in frame.columns}
    missing = [name for name in wanted if name not in frame.columns]
    wrong = [f"{name} is {kind}" for name, kind in frame.schema.items() if name in wanted and not _castable(name, kind)]
    if missing or wrong:
        faults = ([f"lack the columns {', '.join(missing)}"] if missing else []) + (
            [f"have wrong types: {', '.join(wrong)}"] if wrong else []
        )
        raise HuracanError(
            f"{what} {' and '.join(faults)}. Needed: ts (the bar's open, a UTC timestamp) and open, high, low, close, volume (numbers); "
            f"found: {', '.join(frame.columns) or 'nothing'}"
        )
    return frame.select(pl.col(name).cast(kind) for name, kind in wanted.items())


def _castable(name: str, kind: pl.DataType) -> bool:
    if name == "ts":
        return isinstance(kind, pl.Datetime) and kind.time_zone == "UTC"
    return kind.is_numeric() or kind == pl.Null


def check_candles(frame: pl.DataFrame, timeframe: str, *, as_of: datetime | None) -> CheckedCandles:
    """Find, count and settle every defect of a raw series by the rule `DEFECT_RULES` names; nothing is filled or dropped unsaid.

    A bar is closed iff `ts + timeframe <= as_of`; with `as_of` None every bar counts as closed. Raises HuracanError on a wrong schema.
    """
    raw = conform(frame).with_row_index("_row")
    stamps = raw["ts"].drop_nulls()
    counts = dict.fromkeys(DEFECT_RULES, 0) | {"backward": int((stamps.diff() < timedelta(0)).sum())}

    judged = raw.sort("ts", "_row").with_columns(_reason(timeframe, as_of).alias("reason"))
    sound = judged.filter(pl.col("reason").is_null())
    values = [name for name in sound.columns if name not in ("_row", "reason")]
    distinct = sound.unique(values, keep="first", maintain_order=True)
    clean = distinct.unique("ts", keep="first", maintain_order=True)
    conflicts = distinct.join(clean, on="_row", how="anti").with_columns(reason=pl.lit("conflicting_duplicate"))
    quarantine = pl.concat([judged.filter(pl.col("reason").is_not_null()), conflicts]).sort("_row").drop("_row")

    counts |= {str(reason): n for reason, n in quarantine["reason"].value_counts().iter_rows()}
    good = clean.select(values)
    missing = gaps(good, timeframe)["missing_bars"]
    counts |= {
        "duplicate": sound.height - distinct.height,
        "zero_volume": int((good["volume"] == 0).sum()),
        "flat": int((good["high"] == good["low"]).sum()),
        "gaps": missing.len(),
        "missing_bars": int(missing.sum()),
        "longest_gap_bars": int(missing.to_numpy().max(initial=0)),
    }
    return CheckedCandles(good, counts, quarantine)


def _reason(timeframe: str, as_of: datetime | None) -> pl.Expr:
    """Why a row cannot be used, the first that applies; null for a sound row."""
    ts = pl.col("ts")
    tests: dict[str, pl.Expr] = {
        "null_ts": ts.is_null(),
        "off_grid": ts.dt.epoch("us") % _step_us(timeframe) != 0,
        "null_price": pl.any_horizontal(~_finite(name) for name in PRICES),
        "non_positive_price": pl.min_horizontal(PRICES) <= 0,
        "impossible_range": (pl.col("high") < pl.max_horizontal("open", "close", "low"))
        | (pl.col("low") > pl.min_horizontal("open", "close")),
        "bad_volume": ~_finite("volume") | (pl.col("volume") < 0),
    }
    if as_of is not None:
        tests["unclosed"] = ts > _last_open(timeframe, as_of)
    return pl.coalesce(pl.when(test).then(pl.lit(reason)) for reason, test in tests.items())


def _finite(name: str) -> pl.Expr:
    return pl.col(name).is_finite().fill_null(value=False)


def _step_us(timeframe: str) -> int:
    return timeframe_minutes(timeframe) * 60_000_000


def _last_open(timeframe: str, as_of: datetime) -> datetime:
    if as_of.tzinfo is None:
        raise HuracanError(f"as_of {as_of.isoformat()} has no time zone; give it in UTC, such as {as_of.isoformat()}+00:00")
    return as_of.astimezone(UTC) - timedelta(minutes=timeframe_minutes(timeframe))


def closed(frame: pl.DataFrame, timeframe: str, as_of: datetime) -> pl.DataFrame:
    """Rows of `frame` whose bar has ended: `ts + timeframe <= as_of`."""
    return frame.filter(pl.col("ts") <= _last_open(timeframe, as_of))


def gaps(frame: pl.DataFrame, timeframe: str) -> pl.DataFrame:
    """Holes in a clean series: one row each of `after_ts`, `before_ts` (the bars on either side) and `missing_bars`."""
    step = _step_us(timeframe)
    return (
        frame.select(after_ts=pl.col("ts").shift(1), before_ts="ts")
        .with_columns(missing_bars=(pl.col("before_ts") - pl.col("after_ts")).dt.total_microseconds() // step - 1)
        .filter(pl.col("missing_bars") > 0)
    )


def derive(base: pl.DataFrame, base_timeframe: str, timeframe: str, *, as_of: datetime | None = None) -> pl.DataFrame:
    """Build a higher timeframe from a clean base series, anchored at the epoch.

    A derived bar exists iff all its base bars exist and it has ended by `as_of` (None: the base bars are known to be closed). Its
    values depend on its own base bars only, bit for bit. Raises HuracanError where `timeframe` is no multiple of the base.
    """
    step, base_step = _step_us(timeframe), _step_us(base_timeframe)
    if step % base_step:
        raise HuracanError(f"{timeframe} bars cannot be made of {base_timeframe} bars; choose a multiple of {base_timeframe}")
    stamps = _epoch_us(base)
    starts = np.flatnonzero(stamps % step == 0)
    starts = starts[starts + step // base_step <= stamps.size]
    ends = starts + step // base_step - 1
    complete = stamps[ends] - stamps[starts] == step - base_step
    starts, ends = starts[complete], ends[complete]
    rows = starts[:, None] + np.arange(step // base_step)

    def blocks(name: str) -> NDArray[np.float64]:
        return np.asarray(base[name].cast(pl.Float64).to_numpy()[rows], dtype=np.float64)

    columns: dict[str, Any] = {
        "ts": base["ts"].gather(starts),
        "open": base["open"].gather(starts),
        "high": blocks("high").max(axis=1),
        "low": blocks("low").min(axis=1),
        "close": base["close"].gather(ends),
    }
    columns |= {name: blocks(name).sum(axis=1) for name in ("volume", *OPTIONAL_COLUMNS) if name in base.columns}
    derived = conform(pl.DataFrame(columns, nan_to_null=True))
    return derived if as_of is None else closed(derived, timeframe, as_of)


def day_hashes(frame: pl.DataFrame) -> dict[str, str]:
    """Identity of each UTC day of a clean series: `YYYYMMDD` → sha256 hex over its rows (ts in µs, o, h, l, c, volume; little endian).

    Depends on values only: not on parquet bytes, file layout, chunking or further columns.
    """
    stamps = _epoch_us(frame)
    if (np.diff(stamps) <= 0).any():
        raise HuracanError("day hashes need a sorted series of unique stamps; run check_candles on it first")
    table = np.empty((stamps.size, len(CANDLE_SCHEMA)), dtype="<i8")
    table[:, 0] = stamps
    for column, name in enumerate(("open", "high", "low", "close", "volume"), start=1):
        table[:, column] = (frame[name].to_numpy() + 0.0).astype("<f8").view("<i8")  # + 0.0: -0.0 and 0.0 are one value
    days = stamps // DAY_US
    bounds = np.flatnonzero(np.diff(days, prepend=-1, append=-1)) if stamps.size else np.empty(0, dtype=np.int64)
    return {
        datetime.fromtimestamp(int(days[first]) * 86_400, UTC).strftime("%Y%m%d"): hashlib.sha256(table[first:last].data).hexdigest()
        for first, last in pairwise(bounds)
    }


def _epoch_us(frame: pl.DataFrame) -> IntArray:
    return frame["ts"].dt.epoch("us").to_numpy().astype(np.int64)
