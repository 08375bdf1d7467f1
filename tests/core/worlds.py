"""Synthetic candles, and the one check of causality and finite memory that features, regimes and votes must pass."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from hamilton_client.core.layout import timeframe_minutes

BASE_FEATURES = {
    "return": [1, 2, 4, 8, 24, 48], "volatility": [8, 24, 72], "volatility_ratio": [[8, 24], [24, 72]], "zscore": [24, 72],
    "trend_score": [24, 72], "efficiency_ratio": [12, 24, 48], "rsi": [14], "sma_gap": [[8, 24], [24, 72]],
    "donchian_position": [24, 72], "atr_ratio": [[8, 48]], "parkinson": [24], "skew": [48], "autocorrelation": [24, 72],
    "variance_ratio": [[4, 72]], "volume_zscore": [24], "volume_ratio": [[8, 72]], "volume_imbalance": [12], "vwap_gap": [24],
    "amihud_ratio": [[24, 72]], "body": [], "upper_wick": [], "lower_wick": [], "close_location": [], "hour_sin": [],
    "hour_cos": [], "weekday_sin": [],
}  # fmt: skip


def candles_of(log_close: np.ndarray, seed: int = 0, timeframe: str = "1h", volume: np.ndarray | float | None = None) -> pl.DataFrame:
    """Candles around a given log close: opens at the previous close, wicks of about 20 bps, lognormal volume."""
    rng = np.random.default_rng(seed)
    rows = len(log_close)
    log_open = np.concatenate([log_close[:1], log_close[:-1]])
    high = np.maximum(log_open, log_close) + rng.exponential(0.002, rows)
    low = np.minimum(log_open, log_close) - rng.exponential(0.002, rows)
    step = timedelta(minutes=timeframe_minutes(timeframe))
    start = datetime(2023, 1, 3, 5, tzinfo=UTC) if timeframe != "1d" else datetime(2023, 1, 3, tzinfo=UTC)
    traded = rng.lognormal(8, 0.7, rows) if volume is None else np.broadcast_to(volume, rows)
    return pl.DataFrame(
        {
            "ts": pl.Series([start + step * at for at in range(rows)], dtype=pl.Datetime("us", "UTC")),
            "open": np.exp(log_open),
            "high": np.exp(high),
            "low": np.exp(low),
            "close": np.exp(log_close),
            "volume": traded.astype(float),
        }
    )


def random_walk(seed: int, rows: int, timeframe: str = "1h") -> pl.DataFrame:
    """A walk of 60 bps bars whose volatility comes in waves."""
    rng = np.random.default_rng(seed)
    sigma = 0.006 * np.exp(0.8 * np.sin(np.arange(rows) / 150 + seed))
    return candles_of(5 + np.cumsum(rng.standard_t(4, rows) * sigma / np.sqrt(2)), seed, timeframe)


def poison(candles: pl.DataFrame, cut: int) -> pl.DataFrame:
    """Replace prices and volumes from row `cut` on by other ones."""
    late = pl.int_range(pl.len()) >= cut
    wild = 1.5 + (pl.int_range(pl.len()) * 37 % 11).cast(pl.Float64)
    return candles.with_columns(pl.when(late).then(pl.col(name) * wild).otherwise(pl.col(name)) for name in candles.columns[1:])


def assert_causal(compute: Callable[[pl.DataFrame], pl.DataFrame], candles: pl.DataFrame, warmup_bars: int, seed: int = 0) -> None:
    """Fail unless past rows ignore the future to the last bit, and rows past the warm-up ignore where the series begins (1e-9)."""
    whole = compute(candles)
    assert whole.height == candles.height
    rng = np.random.default_rng(seed)
    cuts = {1, warmup_bars, candles.height - 1, *rng.integers(2, candles.height, 12).tolist()}
    for cut in cuts:
        assert compute(candles[:cut]).equals(whole[:cut]), f"a row before {cut} changes when the later rows are cut off"
        assert compute(poison(candles, cut))[:cut].equals(whole[:cut]), f"a row before {cut} changes with later prices"
    for start in {1, *rng.integers(2, candles.height - warmup_bars, 12).tolist()}:
        tail, batch = compute(candles[start:])[warmup_bars - 1 :], whole[start + warmup_bars - 1 :]
        for name in batch.columns:
            assert _same(tail[name], batch[name]), f"{name} depends on more than {warmup_bars} bars (tail from {start})"


def _same(one: pl.Series, other: pl.Series) -> bool:
    if not one.dtype.is_float():
        return one.equals(other)
    return bool(np.allclose(one.to_numpy(), other.to_numpy(), rtol=1e-9, atol=1e-12, equal_nan=True))
