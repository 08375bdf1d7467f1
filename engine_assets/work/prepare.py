"""Units of the first four stages: candles in, features, regimes and the fold plan out."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from engine_assets.logic.fit import training_frame
from engine_assets.logic.plan import YearChunk, feature_chunks, fold_key, regime_chunks
from engine_assets.logic.prepare import feature_chunk, regime_chunk
from engine_assets.logic.splits import TooFewWindows
from engine_assets.logic.train import Series, plan_folds
from engine_assets.work.night import Night
from engine_resources.lake import StoredFolds, read_frame, write_frame
from engine_resources.records import Unit
from hamilton_client.core import layout
from hamilton_client.core.bars import check_candles, closed, day_hashes, derive
from hamilton_client.core.contracts import HuracanError, SignArray, canonical_json, utc_iso
from hamilton_client.core.regimes import codes

OVERLAP = timedelta(days=3)
Detail = dict[str, Any]


def raw_unit(unit: Unit, night: Night) -> Detail:
    """Bring one series up to `as_of`: the base timeframe from the source, checked; others resampled from the stored base."""
    return _base_candles(unit.symbol, night) if unit.timeframe == night.base else _derived_candles(unit, night)


def _base_candles(symbol: str, night: Night) -> Detail:
    newest = _newest(symbol, night.base, night)
    fetched = night.source.fetch(symbol, night.base, newest and newest - OVERLAP, night.as_of)
    checked = check_candles(fetched, night.base, as_of=night.as_of)
    if checked.frame.is_empty() and newest is None:
        found = _defects(checked.counts) or "nothing"
        raise HuracanError(f"{symbol}: no usable {night.base} candle before {utc_iso(night.as_of)}; found {found}")
    written = night.candles.write(symbol, night.base, checked.frame)
    if checked.quarantine.height:
        write_frame(night.store, layout.night_part(night.run_id, symbol, night.base, "quarantine.parquet"), checked.quarantine)
    series = closed(night.candles.read(symbol, night.base), night.base, night.as_of)
    night.store.put(layout.inputs(night.run_id, symbol), canonical_json(day_hashes(series)))
    return {
        "bars": series.height,
        "first": f"{series['ts'][0]:%Y-%m-%d %H:%M}",
        "last": f"{series['ts'][-1]:%Y-%m-%d %H:%M}",
        "new_bars": written.new_bars,
        "restated_bars": written.restated_bars,
        "defects": _defects(checked.counts),
    }


def _derived_candles(unit: Unit, night: Night) -> Detail:
    newest = _newest(unit.symbol, unit.timeframe, night)
    since = newest and newest - OVERLAP
    night.days(unit.symbol)
    base = night.candles.read(unit.symbol, night.base, since=since and since.replace(hour=0), until=night.as_of)
    written = night.candles.write(unit.symbol, unit.timeframe, derive(base, night.base, unit.timeframe, as_of=night.as_of))
    return {"new_bars": written.new_bars, "restated_bars": written.restated_bars}


def _newest(symbol: str, timeframe: str, night: Night) -> datetime | None:
    recent = night.candles.read(symbol, timeframe, since=night.as_of - timedelta(days=30), until=night.as_of)
    return None if recent.is_empty() else recent["ts"][-1]


def _defects(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def features_unit(unit: Unit, night: Night) -> Detail:
    """Compute the yearly feature chunks that are missing or whose candles changed."""
    chunks = feature_chunks(night.days(unit.symbol), night.recipe, unit.timeframe)

    def make(candles: pl.DataFrame, chunk: YearChunk) -> pl.DataFrame:
        return feature_chunk(candles, chunk, night.recipe)

    return _store_chunks("features", unit, night, chunks, make)


def regimes_unit(unit: Unit, night: Night) -> Detail:
    """Classify the yearly chunks that are missing or whose candles changed."""
    chunks = regime_chunks(night.days(unit.symbol), night.recipe, unit.timeframe)

    def make(candles: pl.DataFrame, chunk: YearChunk) -> pl.DataFrame:
        return regime_chunk(candles, chunk, night.recipe, unit.timeframe)

    detail = _store_chunks("regimes", unit, night, chunks, make)
    counts = _read_chunks("regimes", unit, night, chunks[-1:])["regime"].value_counts()
    return detail | {"bars_this_year": dict(counts.iter_rows())}


def _store_chunks(stage: str, unit: Unit, night: Night, chunks: list[YearChunk], make: Any) -> Detail:
    missing = [chunk for chunk in chunks if not night.store.exists(_chunk_key(stage, unit, night, chunk))]
    if missing:
        candles = night.candles.read(unit.symbol, unit.timeframe, since=missing[0].padded_start, until=night.as_of)
        candles = closed(candles, unit.timeframe, night.as_of)
        for chunk in missing:
            write_frame(night.store, _chunk_key(stage, unit, night, chunk), make(candles, chunk))
    return {"chunks": len(chunks), "computed": len(missing), "reused": len(chunks) - len(missing)}


def _read_chunks(stage: str, unit: Unit, night: Night, chunks: list[YearChunk]) -> pl.DataFrame:
    return pl.concat([read_frame(night.store, _chunk_key(stage, unit, night, chunk)) for chunk in chunks])


def _chunk_key(stage: str, unit: Unit, night: Night, chunk: YearChunk) -> str:
    return layout.chunk(stage, night.recipe.hash, unit.symbol, unit.timeframe, chunk.year, chunk.key)


def read_features(unit: Unit, night: Night) -> pl.DataFrame:
    """Features of every closed bar of a series, as the features stage left them. Raises NotFound where it did not run."""
    return _read_chunks("features", unit, night, feature_chunks(night.days(unit.symbol), night.recipe, unit.timeframe))


def read_regimes(unit: Unit, night: Night) -> SignArray:
    """Regime codes of every closed bar of a series, as the regimes stage left them. Raises NotFound where it did not run."""
    return codes(_read_chunks("regimes", unit, night, regime_chunks(night.days(unit.symbol), night.recipe, unit.timeframe))["regime"])


def read_candles(unit: Unit, night: Night) -> pl.DataFrame:
    """Closed candles of a series."""
    return closed(night.candles.read(unit.symbol, unit.timeframe, until=night.as_of), unit.timeframe, night.as_of)


def read_series(unit: Unit, night: Night) -> Series:
    """Everything the models of one unit are made from."""
    candles = read_candles(unit, night)
    base_unit = Unit(unit.symbol, night.base)
    base = candles if unit == base_unit else read_candles(base_unit, night)
    regime = read_regimes(unit, night)
    base_regime = regime if unit == base_unit else read_regimes(base_unit, night)
    return Series(unit.symbol, unit.timeframe, base, base_regime, candles, read_features(unit, night), regime, night.days(unit.symbol))


def folds_unit(unit: Unit, night: Night) -> Detail:
    """Plan the purged walk-forward windows of a series and say which are fitted already."""
    frame = training_frame(read_candles(unit, night), read_features(unit, night), read_regimes(unit, night), night.recipe, unit.timeframe)
    try:
        minimum = night.settings.validation.walk_forward.min_windows
        folds = plan_folds(frame, night.recipe, unit.timeframe, night.as_of, minimum)
    except TooFewWindows as error:
        return {"windows": 0, "note": str(error)}
    done, days = StoredFolds(night.store, *unit), night.days(unit.symbol)
    keys = [fold_key(fold, days, night.recipe, unit.timeframe, "cpu") for fold in folds]
    return {
        "windows": len(folds),
        "fitted_already": sum(key in done for key in keys),
        "first_test_day": f"{datetime.fromtimestamp(folds[0].test_start_ms / 1000, tz=UTC):%Y-%m-%d}",
        "last_test_day": f"{datetime.fromtimestamp(folds[-1].test_end_ms / 1000 - 1, tz=UTC):%Y-%m-%d}",
    }
