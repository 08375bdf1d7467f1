"""Units of the models stage: one coin × timeframe, and the pooled baseline of one timeframe."""

import json
from collections.abc import Sequence

import numpy as np
import polars as pl

from engine_assets.logic.costing import cost_snapshot
from engine_assets.logic.fit import TrainingFrame, training_frame
from engine_assets.logic.plan import DAY_MS
from engine_assets.logic.pooled import PooledScorer, fit_pooled, pooled_key, pooled_rows, quarter_starts
from engine_assets.logic.train import Rules, SegmentResult, UnitResult, train_unit
from engine_assets.work.night import Night
from engine_assets.work.prepare import Detail, read_series
from engine_resources.lake import StoredFolds, read_frame, write_frame
from engine_resources.pool import lightgbm_device
from engine_resources.records import Unit
from hamilton_client.core import layout
from hamilton_client.core.contracts import Calibration, CostSnapshot, Frozen, Record, Regime, SegmentMetrics
from hamilton_client.store import NotFound

POOLED = "POOLED"


class SegmentPart(Frozen):
    """What the models stage found for one segment."""

    metrics: SegmentMetrics | None
    calibration: Calibration | None
    has_model: bool
    note: str


class UnitPart(Record):
    """`result.json` of one unit, read by the stages after it."""

    symbol: str
    timeframe: str
    lineage: str
    device: str
    windows: int
    fitted: int
    reused: int
    segments: dict[Regime, SegmentPart]


def costs_of(symbol: str, candles: pl.DataFrame, night: Night) -> CostSnapshot:
    """Cost snapshot of a coin as of the night."""
    quote = night.source.spread(symbol)
    return cost_snapshot(symbol, candles, night.policy, night.as_of, quote.spread_bps, quote.source, quote.as_of)


def models_unit(unit: Unit, night: Night) -> Detail:
    """Fit what is missing, score every segment out of sample, and leave models, metrics and daily P&L for the stages after."""
    series = read_series(unit, night)
    device = lightgbm_device()
    rules = Rules(night.recipe, night.policy, night.policy.risk.preset, night.settings.validation.walk_forward.min_windows, device)
    costs = costs_of(unit.symbol, night.recent(unit.symbol), night)
    result = train_unit(series, rules, costs, night.as_of, StoredFolds(night.store, *unit), _pooled_scorer(unit.timeframe, night))
    _write_part(unit, night, result, device)
    states = {
        regime.value: segment.note or f"{segment.metrics.sample_size if segment.metrics else 0} trades"
        for regime, segment in result.segments.items()
    }
    return {"windows": result.windows, "fitted": result.fitted, "reused": result.reused, "device": device, **states}


def _write_part(unit: Unit, night: Night, result: UnitResult, device: str) -> None:
    """Write `result.json` last: a part without it is not finished."""

    def key(name: str) -> str:
        return layout.night_part(night.run_id, *unit, name)

    write_frame(
        night.store, key("oof.parquet"), result.oof.select("close_ms", "regime", "score", "edge_bps", "probability", *_labels(result.oof))
    )
    daily = [segment.daily.with_columns(regime=pl.lit(regime.value)) for regime, segment in result.segments.items()]
    write_frame(night.store, key("daily.parquet"), pl.concat(daily))
    for regime, segment in result.segments.items():
        if segment.model:
            night.store.put(key(f"{regime}.txt"), segment.model.encode())
    segments = {regime: _segment_part(segment) for regime, segment in result.segments.items()}
    part = UnitPart(
        symbol=unit.symbol,
        timeframe=unit.timeframe,
        lineage=night.recipe.hash,
        device=device,
        windows=result.windows,
        fitted=result.fitted,
        reused=result.reused,
        segments=segments,
    )
    night.store.put(key("result.json"), part.to_bytes())


def _labels(oof: pl.DataFrame) -> list[str]:
    return [name for name in ("gross_bps",) if name in oof.columns]


def _segment_part(segment: SegmentResult) -> SegmentPart:
    return SegmentPart(metrics=segment.metrics, calibration=segment.calibration, has_model=bool(segment.model), note=segment.note)


def read_part(unit: Unit, night: Night) -> UnitPart | None:
    """The unit's result in this run, or None where it has none."""
    try:
        return UnitPart.from_bytes(night.store.get(layout.night_part(night.run_id, *unit, "result.json")))
    except NotFound:
        return None


def read_part_frame(unit: Unit, night: Night, name: str) -> pl.DataFrame:
    """`oof.parquet` or `daily.parquet` of a unit."""
    return read_frame(night.store, layout.night_part(night.run_id, *unit, name))


def read_model(unit: Unit, regime: Regime, night: Night) -> bytes:
    """The LightGBM text of one segment."""
    return night.store.get(layout.night_part(night.run_id, *unit, f"{regime}.txt"))


def pooled_unit(unit: Unit, night: Night, symbols: Sequence[str]) -> Detail:
    """Fit the pooled baseline of one timeframe for every quarter that is missing, over the coins that have features."""
    days = {symbol: night.days(symbol) for symbol in symbols}
    first = min(min(hashes) for hashes in days.values())
    first_ms = int(np.datetime64(f"{first[:4]}-{first[4:6]}-{first[6:]}", "ms").astype(np.int64))
    limit = night.settings.validation.pooled_max_rows
    step_ms = night.recipe.folds[unit.timeframe].test_days * DAY_MS
    last_tested_ms = night.as_of_ms // step_ms * step_ms  # the grid is pinned to the epoch; a quarter without a tested bar needs no model
    device = lightgbm_device()
    quarters = quarter_starts(first_ms, last_tested_ms - 1)
    keys = {quarter: pooled_key(days, quarter, night.recipe, unit.timeframe, limit, device) for quarter in quarters}
    missing = {quarter: key for quarter, key in keys.items() if not night.store.exists(layout.pooled_fold(unit.timeframe, key))}
    frames = {symbol: _frame(Unit(symbol, unit.timeframe), night) for symbol in symbols} if missing else {}
    for quarter, key in missing.items():
        text = _fit_quarter(list(frames.values()), quarter, unit.timeframe, device, night)
        night.store.put(layout.pooled_fold(unit.timeframe, key), (text or "").encode())
    night.store.put(_pooled_index(unit.timeframe, night), json.dumps(keys).encode())
    return {"quarters": len(keys), "fitted": len(missing), "reused": len(keys) - len(missing)}


def _fit_quarter(frames: list[TrainingFrame], quarter_ms: int, timeframe: str, device: str, night: Night) -> str | None:
    share = night.settings.validation.pooled_max_rows // len(frames)
    parts = [pooled_rows(frame, quarter_ms, night.recipe, timeframe, share) for frame in frames]
    x, target, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    return fit_pooled(x, target, weight, night.recipe, device)


def _frame(unit: Unit, night: Night) -> TrainingFrame:
    series = read_series(unit, night)
    return training_frame(series.candles, series.features, series.regime, night.recipe, unit.timeframe)


def _pooled_index(timeframe: str, night: Night) -> str:
    return layout.night_part(night.run_id, POOLED, timeframe, "quarters.json")


def _pooled_scorer(timeframe: str, night: Night) -> PooledScorer | None:
    """The pooled models of this run; None where a unit runs alone, without the baseline."""
    try:
        quarters: dict[str, str] = json.loads(night.store.get(_pooled_index(timeframe, night)))
    except NotFound:
        return None
    texts = {int(quarter): night.store.get(layout.pooled_fold(timeframe, key)).decode() for quarter, key in quarters.items()}
    return PooledScorer({quarter: text for quarter, text in texts.items() if text})
