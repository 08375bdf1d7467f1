"""The golden tail: a few bars of each timeframe as the engine saw them, replayed on the machine that is about to trade on them."""

import io

import numpy as np
import polars as pl

from hamilton_client.core.contracts import TRAINED_REGIMES
from hamilton_client.core.features import FeatureRecipe, build
from hamilton_client.core.regimes import REGIME_CODES, RegimeRecipe, classify
from hamilton_client.core.signals import Scorer

GOLDEN_ROWS = 16
TOLERANCE = 1e-9
FEATURE, SCORE, REGIME = "feature.", "score", "regime"


def golden_tail(
    candles: pl.DataFrame, timeframe: str, features: FeatureRecipe, regimes: RegimeRecipe, score: Scorer, rows: int = GOLDEN_ROWS
) -> bytes:
    """Parquet of the last `rows` closed bars, out of the whole history: `feature.*`, `regime`, and `score.*` of each regime's model.

    Just the candles a client needs to compute the same stand before them, with nulls there. `score` is as in `core.signals`.
    """
    seen = _seen(candles, timeframe, features, regimes, score, rows)
    needed = rows - 1 + max(features.warmup_bars, regimes.by_timeframe[timeframe].warmup_bars)
    buffer = io.BytesIO()
    candles.tail(needed).join(seen, on="ts", how="left", maintain_order="left").write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def replay(golden: bytes, timeframe: str, features: FeatureRecipe, regimes: RegimeRecipe, score: Scorer) -> str | None:
    """Compute a golden tail again from its own candles; returns the first column that differs by more than `TOLERANCE`, or None."""
    tail = pl.read_parquet(io.BytesIO(golden))
    expected = tail.filter(pl.col(REGIME).is_not_null())
    if expected.is_empty():
        return REGIME
    candles = tail.select(name for name in tail.columns if not name.startswith((FEATURE, SCORE, REGIME)))
    found = _seen(candles, timeframe, features, regimes, score, expected.height)
    for column in found.columns:
        if column not in expected.columns or not _same(found[column], expected[column]):
            return column
    return None


def _seen(candles: pl.DataFrame, timeframe: str, features: FeatureRecipe, regimes: RegimeRecipe, score: Scorer, rows: int) -> pl.DataFrame:
    built = build(candles, features).tail(rows)
    regime = classify(candles, regimes.by_timeframe[timeframe], timeframe).tail(rows)
    x = np.ascontiguousarray(built.select(features.names).fill_null(np.nan).to_numpy(), dtype=np.float64)
    models = {code: each for code, each in enumerate(REGIME_CODES) if each in TRAINED_REGIMES}
    scores = [pl.Series(f"{SCORE}.{each}", score(timeframe, x, np.full(len(x), code, np.int8))) for code, each in models.items()]
    return built.select("ts", pl.col(features.names).name.prefix(FEATURE)).with_columns(regime.alias(REGIME), *scores)


def _same(found: pl.Series, expected: pl.Series) -> bool:
    if expected.dtype != pl.Float64:
        return found.equals(expected)
    return np.allclose(found.to_numpy(), expected.to_numpy(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
