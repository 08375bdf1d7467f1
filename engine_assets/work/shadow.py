"""Units of the shadow stage: what every published version would have traded, point in time; appended, never rewritten."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl

from engine_assets.logic.evaluate import Book, trade_segment
from engine_assets.logic.replay import DAY_MS, Prices
from engine_assets.work.night import Night
from engine_assets.work.prepare import Detail
from engine_resources.lake import write_frame
from engine_resources.records import Unit
from hamilton_client.bundle import Bundle, read_bundle
from hamilton_client.core import layout
from hamilton_client.core.bars import closed, derive
from hamilton_client.core.contracts import NEVER_TRADED, TRAINED_REGIMES, ChampionPointer
from hamilton_client.core.costs import bar_context
from hamilton_client.core.regimes import classify, codes
from hamilton_client.core.signals import Learned, learned_rows, required_base_bars

SHADOW_SCHEMA = {
    "date": pl.Date,
    "regime": pl.String,
    "model_id": pl.String,
    "gross_bps": pl.Float64,
    "cost_bps": pl.Float64,
    "net_bps": pl.Float64,
    "trades": pl.Int64,
    "wins": pl.Int64,
    "from_ms": pl.Int64,
    "evidence": pl.String,
}


def shadow_unit(unit: Unit, night: Night) -> Detail:
    """Score the newest complete day of one series with the versions that were in force on it; at most one new row per segment."""
    day = (night.as_of - timedelta(days=1)).date()
    published = [pointer for pointer in published_before(unit.symbol, night) if pointer.promoted_at.date() <= day]
    if not published:
        return {"days": 0, "note": "no version was published before this day"}
    key = layout.shadow(night.recipe.hash, unit.symbol, unit.timeframe, day)
    if night.store.exists(key):
        return {"days": 0, "note": f"{day} was scored before and stays as it is"}
    rows = _score_day(unit, night, published, day)
    if not write_frame(night.store, key, rows, if_absent=True):
        return {"days": 0, "note": f"{day} was scored by another run and stays as it is"}
    return {
        "days": 1,
        "day": f"{day}",
        "trades": int(rows["trades"].sum()),
        "net_bps": float(rows["net_bps"].sum()),
        "evidence": night.evidence,
    }


def published_before(symbol: str, night: Night) -> list[ChampionPointer]:
    """Challenger bundles published before this night, oldest first; those of another lineage are left out."""
    keys = [key for key in night.store.list(layout.published(symbol)) if key.endswith("Z.json")]
    pointers = [ChampionPointer.from_bytes(night.store.get(key)) for key in keys if key < layout.published(symbol, night.as_of)]
    return [pointer for pointer in pointers if any(entry.lineage == night.recipe.hash for entry in pointer.segments.values())]


def _score_day(unit: Unit, night: Night, published: list[ChampionPointer], day: date) -> pl.DataFrame:
    """Votes of the versions in force around `day`, replayed from flat a horizon before it; one row per traded regime with a model."""
    start = datetime.combine(day, datetime.min.time(), UTC)
    horizon = night.recipe.horizon_base_bars(unit.timeframe, night.base)
    replay_from = start - timedelta(minutes=layout.timeframe_minutes(night.base) * (horizon + 2 * night.policy.risk.cooldown_bars))
    warmup = required_base_bars(night.policy, night.recipe.features, night.recipe.regimes) * timedelta(
        minutes=layout.timeframe_minutes(night.base)
    )
    until = start + timedelta(days=1)
    base = closed(night.candles.read(unit.symbol, night.base, since=replay_from - warmup, until=until), night.base, until)
    candles = base if unit.timeframe == night.base else derive(base, night.base, unit.timeframe, as_of=until)
    used = [pointer for pointer in published[:-1] if pointer.promoted_at >= replay_from] + published[-1:]
    bundles = [read_bundle(night.store, pointer, parity=False) for pointer in used]
    said = _spoken(unit.timeframe, candles, used, bundles)
    book = _book(unit.symbol, base, bundles[-1], night, replay_from)
    number = (day - date(1970, 1, 1)).days
    rows = []
    for regime in TRAINED_REGIMES:
        card = bundles[-1].card.segments.get(layout.segment(unit.timeframe, regime))
        if regime in NEVER_TRADED or card is None or card.model_id is None:
            continue
        result, _ = trade_segment(book, unit.timeframe, horizon, said, regime)
        daily = result.daily(book.prices.open_ms, number, number).row(0, named=True)
        from_ms = max(int(used[0].promoted_at.timestamp() * 1000), number * DAY_MS)
        rows.append(daily | {"regime": regime.value, "model_id": card.model_id, "from_ms": from_ms, "evidence": night.evidence})
    return pl.DataFrame(rows, schema=SHADOW_SCHEMA)


def _spoken(timeframe: str, candles: pl.DataFrame, published: list[ChampionPointer], bundles: list[Bundle]) -> Learned:
    """What was said on each bar by the version in force when it closed: from its publication until the next one's."""
    since = [int(pointer.promoted_at.timestamp() * 1000) for pointer in published]
    spans = zip(since, [*since[1:], np.iinfo(np.int64).max], bundles, strict=True)
    parts = []
    for start, end, bundle in spans:
        rows = learned_rows(
            candles, timeframe, recipe=bundle.features, regimes=bundle.regimes, score=bundle.score, calibrations=bundle.calibrations
        )
        parts.append(rows.take((rows.close_ms > start) & (rows.close_ms <= end)))
    columns = ("close_ms", "regime", "score", "edge_bps", "probability")
    return Learned(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def _book(symbol: str, base: pl.DataFrame, bundle: Bundle, night: Night, replay_from: datetime) -> Book:
    regime = codes(classify(base, night.recipe.regimes.by_timeframe[night.base], night.base))
    minutes = layout.timeframe_minutes(night.base)
    context = bar_context(base, regime, base_minutes=minutes, volatility_bars=night.policy.exits.volatility_bars)
    rows = (base["ts"] >= replay_from).to_numpy()
    prices = Prices.of(base.filter(pl.col("ts") >= replay_from), minutes * 60_000)
    return Book(symbol, prices, context.take(rows), bundle.costs, night.policy, night.policy.risk.preset)
