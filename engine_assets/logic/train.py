"""One coin × timeframe from candles to scored models: what the night runs per partition, callable on a DataFrame.

result = train_coin("BTCUSDT", candles, recipe, policy=policy, costs=costs)
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl

from engine_assets.logic.calibrate import fit_calibration, prequential
from engine_assets.logic.costing import cost_snapshot
from engine_assets.logic.evaluate import Book, baselines, trade_segment
from engine_assets.logic.fit import REGIME_CODE, TrainingFrame, final_models, fit_window, training_frame
from engine_assets.logic.plan import DAY_MS, fold_key
from engine_assets.logic.prepare import all_features, all_regimes
from engine_assets.logic.replay import Prices
from engine_assets.logic.splits import Fold, TooFewWindows, walk_forward
from engine_assets.logic.stats import segment_metrics
from hamilton_client.core.bars import closed, day_hashes, derive
from hamilton_client.core.contracts import (
    TRAINED_REGIMES,
    Calibration,
    CostSnapshot,
    FloatArray,
    Regime,
    RiskPresetName,
    SegmentMetrics,
    SignArray,
)
from hamilton_client.core.costs import bar_context
from hamilton_client.core.layout import timeframe_minutes, timeframe_ms
from hamilton_client.core.policy import Policy
from hamilton_client.core.recipe import Recipe
from hamilton_client.core.regimes import codes
from hamilton_client.core.signals import Learned

ASSUMED_SPREAD_BPS = 5.0
FoldCache = MutableMapping[str, pl.DataFrame]
PooledScore = Callable[[TrainingFrame], FloatArray]


@dataclass(frozen=True, slots=True)
class Series:
    """Candles of one coin and what the features and regimes stages made of them, one row per bar of `timeframe`."""

    symbol: str
    timeframe: str
    base: pl.DataFrame
    base_regime: SignArray
    candles: pl.DataFrame
    features: pl.DataFrame
    regime: SignArray
    base_days: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rules:
    """By which rules a unit is trained and judged."""

    recipe: Recipe
    policy: Policy
    preset: RiskPresetName
    min_windows: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """One segment: metrics (None: too little data to score), daily P&L, calibration and model text (None: nothing to trade with)."""

    metrics: SegmentMetrics | None
    daily: pl.DataFrame
    calibration: Calibration | None
    model: str | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What one unit made. `oof` has close_ms, regime (code), score, edge_bps, probability per out-of-sample bar."""

    symbol: str
    timeframe: str
    segments: dict[Regime, SegmentResult]
    oof: pl.DataFrame
    windows: int
    fitted: int
    reused: int
    notes: list[str] = field(default_factory=list)


def train_coin(
    symbol: str,
    candles: pl.DataFrame,
    recipe: Recipe,
    *,
    policy: Policy | None = None,
    costs: CostSnapshot | None = None,
    as_of: datetime | None = None,
    preset: RiskPresetName = RiskPresetName.BALANCED,
    min_windows: int = 5,
    folds: FoldCache | None = None,
) -> dict[str, UnitResult]:
    """Do for one coin's base candles what the night does for its partitions; returns one UnitResult per timeframe of the recipe.

    `candles` are clean base bars (see `bars.check_candles`), `as_of` defaults to the end of the last one. `policy` defaults to that of
    `config/policy.yaml`, `costs` to its fees and a spread of `ASSUMED_SPREAD_BPS`. Pass a dict as `folds` to keep out-of-fold scores
    between calls: a window that was fitted once is never fitted again.
    """
    policy = policy or Policy()
    base_timeframe = policy.base_timeframe
    end = candles["ts"][-1] + timedelta(minutes=timeframe_minutes(base_timeframe))
    as_of = as_of or end
    base = closed(candles, base_timeframe, as_of)
    costs = costs or cost_snapshot(symbol, base, policy, as_of, ASSUMED_SPREAD_BPS, "assumed", f"{as_of:%Y-%m-%d}")
    days = day_hashes(base)
    cache: FoldCache = {} if folds is None else folds
    rules = Rules(recipe, policy, preset, min_windows)
    base_regime = codes(all_regimes(base, days, recipe, base_timeframe)["regime"])
    results = {}
    for timeframe in recipe.horizon_bars:
        is_base = timeframe == base_timeframe
        frame = base if is_base else derive(base, base_timeframe, timeframe, as_of=as_of)
        regime = base_regime if is_base else codes(all_regimes(frame, days, recipe, timeframe)["regime"])
        features = all_features(frame, days, recipe, timeframe)
        series = Series(symbol, timeframe, base, base_regime, frame, features, regime, days)
        results[timeframe] = train_unit(series, rules, costs, as_of, cache)
    return results


def plan_folds(frame: TrainingFrame, recipe: Recipe, timeframe: str, as_of: datetime, min_windows: int) -> list[Fold]:
    """Walk-forward folds on the epoch-anchored grid over the rows whose features are known. Raises TooFewWindows."""
    geometry = recipe.folds[timeframe]
    known = np.flatnonzero(frame.known)
    folds = walk_forward(
        frame.open_ms[known],
        frame.label_end_ms[known],
        train_days=geometry.train_days,
        test_days=geometry.test_days,
        purge_days=geometry.purge_days,
        anchor=0,
        min_windows=min_windows,
        until_ms=_ms(as_of),
    )
    return [replace(fold, train=known[fold.train], test=known[fold.test]) for fold in folds if fold.skipped is None]


def train_unit(
    series: Series, rules: Rules, costs: CostSnapshot, as_of: datetime, cache: FoldCache, pooled: PooledScore | None = None
) -> UnitResult:
    """Fit the windows that are missing in `cache`, score every segment out of sample, and fit the models that will trade."""
    recipe, timeframe = rules.recipe, series.timeframe
    frame = training_frame(series.candles, series.features, series.regime, recipe, timeframe)
    try:
        folds = plan_folds(frame, recipe, timeframe, as_of, rules.min_windows)
    except TooFewWindows as error:
        return _too_little(series, str(error))
    keys = [fold_key(fold, series.base_days, recipe, timeframe, rules.device) for fold in folds]
    missing = [(fold, key) for fold, key in zip(folds, keys, strict=True) if key not in cache]
    for fold, key in missing:
        cache[key] = fit_window(frame, fold, recipe, rules.device)
    oof = _out_of_fold(frame, folds, [cache[key] for key in keys], recipe)
    book = _book(series, rules, costs)
    pooled_oof = None if pooled is None else _pooled_out_of_fold(frame, oof, pooled, recipe)
    scored = {regime: _score_segment(book, timeframe, rules, oof, regime, pooled_oof) for regime in TRAINED_REGIMES}
    wanted = [regime for regime, segment in scored.items() if segment.calibration]  # a model without tables has no say
    models = final_models(frame, recipe, timeframe, _ms(as_of), rules.device, regimes=wanted)
    segments = {regime: _with_model(segment, models.get(regime)) for regime, segment in scored.items()}
    return UnitResult(series.symbol, timeframe, segments, oof, len(folds), len(missing), len(folds) - len(missing))


def _out_of_fold(frame: TrainingFrame, folds: list[Fold], scored: list[pl.DataFrame], recipe: Recipe) -> pl.DataFrame:
    """Scores of all windows with labels, and calibrated prequentially: a window never sees a table that knew its outcomes."""
    parts = []
    for number, (fold, scores) in enumerate(zip(folds, scored, strict=True)):
        labels = {
            "window": np.full(len(fold.test), number),
            "window_start_ms": np.full(len(fold.test), fold.test_start_ms),
            "gross_bps": frame.gross_bps[fold.test],
            "label_end_ms": frame.label_end_ms[fold.test],
            "uniqueness": frame.uniqueness[fold.test],
        }
        parts.append(scores.with_columns(**{name: pl.Series(values) for name, values in labels.items()}))
    oof = pl.concat(parts)
    edge, probability = prequential(oof, recipe.calibration)
    return oof.with_columns(edge_bps=pl.Series(edge), probability=pl.Series(probability))


def _pooled_out_of_fold(frame: TrainingFrame, oof: pl.DataFrame, pooled: PooledScore, recipe: Recipe) -> pl.DataFrame:
    """The pooled model's scores on the same bars, calibrated the same way."""
    at = np.searchsorted(frame.close_ms, oof["close_ms"].to_numpy())
    scored = oof.with_columns(score=pl.Series(pooled(frame)[at]))
    edge, probability = prequential(scored, recipe.calibration)
    return scored.with_columns(edge_bps=pl.Series(edge), probability=pl.Series(probability))


def _score_segment(
    book: Book, timeframe: str, rules: Rules, oof: pl.DataFrame, regime: Regime, pooled: pl.DataFrame | None
) -> SegmentResult:
    """Evidence counts the rows, windows and days on which the segment could trade, not those its first tables were fitted on."""
    recipe = rules.recipe
    inside = oof.filter(pl.col("regime") == REGIME_CODE[regime], pl.col("score").is_finite())
    judged = inside.filter(pl.col("edge_bps").is_finite())
    score, gross, weight = (inside[name].to_numpy() for name in ("score", "gross_bps", "uniqueness"))
    table = fit_calibration(score, gross, weight, recipe.calibration)
    if table is None or judged.is_empty():
        needed = recipe.calibration.min_effective_rows
        note = f"{weight.sum():.0f} effective out-of-sample rows; calibration needs {needed} in earlier windows"
        return SegmentResult(None, _no_days(), None, None, note)
    horizon = recipe.horizon_base_bars(timeframe, rules.policy.base_timeframe)
    days = _judged_days(book, judged, oof, recipe.folds[timeframe].test_days, horizon)
    result, rows = trade_segment(book, timeframe, horizon, learned(oof), regime)
    beside = None if pooled is None else trade_segment(book, timeframe, horizon, learned(pooled), regime)[0]
    daily = result.daily(book.prices.open_ms, *days)
    metrics = segment_metrics(
        daily,
        windows=judged["window"].n_unique(),
        effective_sample=float(judged["uniqueness"].sum()),
        n_trials=1,
        trial_sharpe_var=0.0,
        window=(_day(days[0]), _day(days[1])),
        baselines=baselines(book, result, rows, horizon, days, beside),
    )
    return SegmentResult(metrics, daily, table, None)


def _with_model(segment: SegmentResult, model: str | None) -> SegmentResult:
    note = "the last train window is too small for a model" if segment.calibration and not model else segment.note
    return replace(segment, model=model, note=note)


def _judged_days(book: Book, judged: pl.DataFrame, oof: pl.DataFrame, test_days: int, horizon_base_bars: int) -> tuple[int, int]:
    """First and last day (since the epoch) of a segment's evidence.

    From its first calibrated window to the day on which the last trade of the last test window must end, if that day is complete.
    """
    starts_ms = judged["window_start_ms"].to_numpy(), oof["window_start_ms"].to_numpy()
    end_ms = int(starts_ms[1].max()) + test_days * DAY_MS + horizon_base_bars * book.prices.bar_ms
    return int(starts_ms[0].min()) // DAY_MS, min((end_ms - 1) // DAY_MS, int(book.close_ms[-1]) // DAY_MS - 1)


def learned(oof: pl.DataFrame) -> Learned:
    """Out-of-fold rows as the votes they stand for."""
    return Learned(*(oof[name].to_numpy() for name in ("close_ms", "regime", "score", "edge_bps", "probability")))


def _book(series: Series, rules: Rules, costs: CostSnapshot) -> Book:
    base = rules.policy.base_timeframe
    bars = rules.policy.exits.volatility_bars
    context = bar_context(series.base, series.base_regime, base_minutes=timeframe_minutes(base), volatility_bars=bars)
    return Book(series.symbol, Prices.of(series.base, timeframe_ms(base)), context, costs, rules.policy, rules.preset)


def _too_little(series: Series, note: str) -> UnitResult:
    empty = pl.DataFrame(
        schema={"close_ms": pl.Int64, "regime": pl.Int8, "score": pl.Float64, "edge_bps": pl.Float64, "probability": pl.Float64}
    )
    segments = {regime: SegmentResult(None, _no_days(), None, None, note) for regime in TRAINED_REGIMES}
    return UnitResult(series.symbol, series.timeframe, segments, empty, 0, 0, 0, [note])


def _no_days() -> pl.DataFrame:
    schema = {"date": pl.Date, "gross_bps": pl.Float64, "cost_bps": pl.Float64, "net_bps": pl.Float64, "trades": pl.Int64, "wins": pl.Int64}
    return pl.DataFrame(schema=schema)


def _ms(instant: datetime) -> int:
    return int(instant.astimezone(UTC).timestamp() * 1000)


def _day(number: int) -> date:
    return date(1970, 1, 1) + timedelta(days=number)
