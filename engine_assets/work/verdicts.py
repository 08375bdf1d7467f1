"""Judge a night's segments as one cohort and plan each coin's next champion bundle."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from engine_assets.logic.promote import CHAMPION, Gates, Verdict, compose, first_champions, first_verdict, refresh_verdict, segments_frame
from engine_assets.logic.stats import DAYS_PER_YEAR, dsr
from engine_assets.work.night import Night
from engine_assets.work.publish import CoinPlan
from engine_assets.work.train import UnitPart, read_part, read_part_frame
from engine_resources.library import Library
from engine_resources.records import Unit, read_ledger
from engine_resources.tables import TrialRow
from hamilton_client.core import layout
from hamilton_client.core.contracts import NEVER_TRADED, ChampionPointer, Regime, SegmentMetrics, SegmentPointer

SegmentKey = tuple[str, str, Regime]


def judge(units: Sequence[Unit], night: Night, library: Library) -> dict[str, CoinPlan]:
    """Judge every segment that this night has trained; returns one plan per coin of `units`. Real and synthetic coins are separate cohorts.

    The cohort is the whole night's also where only a part is run again: a coin tried alone would pass a lower bar than among 400, and
    its other timeframes are part of its next bundle.
    """
    parts = _parts(night)
    _record_trials(parts, night, library)
    metrics = _deflated(parts, night, library)
    champions = {symbol: _champion_before(symbol, night, library) for symbol in {unit.symbol for unit in parts}}
    states: dict[SegmentKey, Verdict] = {}
    for synthetic in (False, True):
        cohort = {key: value for key, value in metrics.items() if night.source.is_synthetic(key[0]) is synthetic}
        states |= _verdicts(cohort, champions, night)
    symbols = sorted({unit.symbol for unit in units} & champions.keys())
    return {symbol: _plan(symbol, metrics, states, champions[symbol], parts, night, library) for symbol in symbols}


def _parts(night: Night) -> dict[Unit, UnitPart]:
    """What the models stage of this night has finished under this recipe."""
    units = [Unit(line.symbol, line.timeframe) for line in read_ledger(night.store, night.run_id, "models") if line.ok]
    parts = {unit: part for unit in units if (part := read_part(unit, night)) is not None}
    return {unit: part for unit, part in parts.items() if part.lineage == night.recipe.hash}


def gates_of(night: Night) -> Gates:
    """The gates of the configuration."""
    return Gates(**night.settings.gates.model_dump(), min_windows=night.settings.validation.walk_forward.min_windows)


def _record_trials(parts: Mapping[Unit, UnitPart], night: Night, library: Library) -> None:
    """Every segment that was scored is a trial, once per recipe; refreshes and folds are not. Synthetic coins are no evidence."""
    rows = [
        TrialRow(
            recipe_hash=night.recipe.hash,
            segment=f"{unit.symbol}.{layout.segment(unit.timeframe, regime)}",
            first_seen=night.as_of,
            sharpe=segment.metrics.sharpe,
        )
        for unit, part in parts.items()
        if not night.source.is_synthetic(unit.symbol)
        for regime, segment in part.segments.items()
        if segment.metrics is not None and regime not in NEVER_TRADED
    ]
    library.record_trials(rows)


def _deflated(parts: Mapping[Unit, UnitPart], night: Night, library: Library) -> dict[SegmentKey, SegmentMetrics | None]:
    """Metrics with DSR: every configuration ever looked at counts as a trial, with the variance of the trials' daily Sharpes."""
    sharpes = np.array(library.trial_sharpes()) / np.sqrt(DAYS_PER_YEAR)
    trials = max(1, library.trial_count())
    variance = float(sharpes.var(ddof=1)) if len(sharpes) > 1 else 0.0
    found: dict[SegmentKey, SegmentMetrics | None] = {}
    for unit, part in parts.items():
        daily = read_part_frame(unit, night, "daily.parquet")
        for regime, segment in part.segments.items():
            metrics = segment.metrics if segment.has_model else None
            if metrics is not None:
                net = daily.filter(pl.col("regime") == regime.value)["net_bps"].to_numpy()
                metrics = metrics.model_copy(update={"dsr": dsr(net, trials, variance)})
            found[unit.symbol, unit.timeframe, regime] = metrics
    return found


def _champion_before(symbol: str, night: Night, library: Library) -> ChampionPointer | None:
    """The pointer that was in force when this night began, so that a night that is run again decides the same."""
    earlier = [row for row in library.history(symbol) if row.as_of < night.as_of]
    return earlier[-1].pointer() if earlier else None


def _verdicts(
    cohort: Mapping[SegmentKey, SegmentMetrics | None], champions: Mapping[str, ChampionPointer | None], night: Night
) -> dict[SegmentKey, Verdict]:
    gates = gates_of(night)
    held = {key for key in cohort if _holds(key, champions[key[0]], night)}
    fresh = [(*key, metrics) for key, metrics in cohort.items() if key not in held]
    verdicts = {key: refresh_verdict(cohort[key], key[2], gates) for key in held}
    for row in first_champions(segments_frame(fresh), gates, night.settings.promotion.fdr_q).iter_rows(named=True):
        verdicts[row["symbol"], row["timeframe"], Regime(row["regime"])] = first_verdict(row["state"], row["failed"])
    return verdicts


def _holds(key: SegmentKey, champion: ChampionPointer | None, night: Night) -> bool:
    """Whether this recipe's lineage holds the segment already."""
    pointer = champion.segments.get(layout.segment(key[1], key[2])) if champion else None
    return pointer is not None and pointer.model_id is not None and pointer.lineage == night.recipe.hash


def _plan(
    symbol: str,
    metrics: Mapping[SegmentKey, SegmentMetrics | None],
    verdicts: Mapping[SegmentKey, Verdict],
    champion: ChampionPointer | None,
    parts: Mapping[Unit, UnitPart],
    night: Night,
    library: Library,
) -> CoinPlan:
    versions = library.segment_versions(symbol, before=night.as_of)
    judged, candidates, scored = {}, {}, {}
    for (coin, timeframe, regime), verdict in verdicts.items():
        if coin != symbol:
            continue
        key = layout.segment(timeframe, regime)
        judged[key] = verdict
        has_model = parts[Unit(symbol, timeframe)].segments[regime].has_model
        found = metrics[coin, timeframe, regime]
        old = champion.segments.get(key) if champion else None
        candidates[key] = SegmentPointer(
            model_id=layout.segment_model_id(symbol, timeframe, regime, versions.get(key, 0) + 1, night.as_of)
            if has_model and found
            else None,
            promoted_at=night.published_at if verdict.state == CHAMPION else None,
            state=verdict.state,
            lineage=night.recipe.hash,
            probation_until=_probation(old, verdict, night),
        )
        if found is not None:
            scored[key] = found.model_copy(update={"promoted": verdict.state == CHAMPION})
    choices = compose(champion.segments if champion else {}, candidates, judged)
    return CoinPlan(symbol=symbol, candidates=candidates, metrics=scored, choices=choices, champion=champion)


def _probation(old: SegmentPointer | None, verdict: Verdict, night: Night) -> datetime | None:
    """A first champion trades on paper until this instant; a refresh inherits it."""
    if verdict.state != CHAMPION:
        return None
    if old is not None and old.model_id is not None:
        return old.probation_until
    return night.published_at + timedelta(days=night.settings.promotion.min_duration_days)
