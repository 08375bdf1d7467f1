"""Features and regimes of one series in yearly chunks: the same bits whoever computes them, whenever, from whichever tail."""

from collections.abc import Iterable

import polars as pl

from engine_assets.logic.plan import DayHashes, YearChunk, feature_chunks, regime_chunks
from hamilton_client.core.features import build
from hamilton_client.core.recipe import Recipe
from hamilton_client.core.regimes import classify


def feature_chunk(candles: pl.DataFrame, chunk: YearChunk, recipe: Recipe) -> pl.DataFrame:
    """Features of one year: `ts` and one Float64 column per feature; `candles` must reach back to `chunk.padded_start`."""
    return build(_padded(candles, chunk), recipe.features).filter(_in_year(chunk))


def regime_chunk(candles: pl.DataFrame, chunk: YearChunk, recipe: Recipe, timeframe: str) -> pl.DataFrame:
    """Regimes of one year: columns `ts` and `regime`."""
    padded = _padded(candles, chunk)
    regime = classify(padded, recipe.regimes.by_timeframe[timeframe], timeframe)
    return padded.select("ts").with_columns(regime.alias("regime")).filter(_in_year(chunk))


def all_features(candles: pl.DataFrame, days: DayHashes, recipe: Recipe, timeframe: str) -> pl.DataFrame:
    """Every chunk of `feature_chunk`, one row per candle."""
    return _joined(feature_chunk(candles, chunk, recipe) for chunk in feature_chunks(days, recipe, timeframe))


def all_regimes(candles: pl.DataFrame, days: DayHashes, recipe: Recipe, timeframe: str) -> pl.DataFrame:
    """Every chunk of `regime_chunk`, one row per candle."""
    return _joined(regime_chunk(candles, chunk, recipe, timeframe) for chunk in regime_chunks(days, recipe, timeframe))


def _joined(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(list(parts))


def _padded(candles: pl.DataFrame, chunk: YearChunk) -> pl.DataFrame:
    return candles.filter(pl.col("ts") >= chunk.padded_start, pl.col("ts") < chunk.end)


def _in_year(chunk: YearChunk) -> pl.Expr:
    return (pl.col("ts") >= chunk.start) & (pl.col("ts") < chunk.end)
