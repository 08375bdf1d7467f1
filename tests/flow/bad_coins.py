"""Coins as no night wants them, each with what must become of it."""

import io
from datetime import timedelta

import numpy as np
import polars as pl

from hamilton_client.core.bars import PRICES

BROKEN = ("ALLNANUSDT", "CUTUSDT", "EMPTYUSDT", "SCHEMAUSDT", "TEXTUSDT")
"""Files of which not one candle can be used."""
ODD = ("HOLEYUSDT", "MESSYUSDT", "PEGUSDT", "YOUNGUSDT")
"""Files that are strange and usable."""
NOT_SYMBOLS = ("btcusdt", "BTC-USDT", "$(touch pwned)USDT")
"""File names that are no symbols."""


def bad_coins(good: pl.DataFrame) -> dict[str, pl.DataFrame | bytes]:
    """By file name; `good` is a real hourly series."""
    flat = {name: pl.lit(1.0) for name in PRICES}
    return {
        "EMPTYUSDT": b"",
        "CUTUSDT": _parquet(good)[:-4000],
        "TEXTUSDT": b"ts,open,high,low,close,volume\n2023-06-30,1,2,0.5,1,10\n",
        "SCHEMAUSDT": good.rename({"close": "last"}).with_columns(pl.col("open").cast(pl.String)),
        "ALLNANUSDT": good.with_columns(pl.lit(float("nan")).alias(name) for name in PRICES),
        "MESSYUSDT": messy(good),
        "HOLEYUSDT": holey(good),
        "PEGUSDT": good.with_columns(**flat),
        "YOUNGUSDT": good.tail(64),
    } | dict.fromkeys(NOT_SYMBOLS, good.tail(64))


def messy(good: pl.DataFrame) -> pl.DataFrame:
    """Every row twice, backwards in blocks, and a hundred of them again seven minutes late."""
    late = good.head(100).with_columns(pl.col("ts") + timedelta(minutes=7))
    order = np.random.default_rng(1).permutation(2 * good.height + late.height)
    return pl.concat([good, good, late])[order]


def holey(good: pl.DataFrame) -> pl.DataFrame:
    """NaN prices in every 50th bar and no volume in every 7th."""
    row = pl.int_range(pl.len())
    closes = pl.when(row % 50 == 3).then(float("nan")).otherwise(pl.col("close"))
    return good.with_columns(close=closes, volume=pl.when(row % 7 == 0).then(0.0).otherwise(pl.col("volume")))


def _parquet(frame: pl.DataFrame) -> bytes:
    body = io.BytesIO()
    frame.write_parquet(body)
    return body.getvalue()
