"""Units of the champions stage: per coin, compose the night's challenger bundle and the next champion bundle, and write both."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import polars as pl

from engine_assets.logic.evaluate import Book, buy_and_hold, trade
from engine_assets.logic.promote import Choice
from engine_assets.logic.replay import Prices
from engine_assets.logic.train import learned
from engine_assets.work.night import Night
from engine_assets.work.prepare import read_candles, read_regimes
from engine_assets.work.train import UnitPart, costs_of, read_model, read_part, read_part_frame
from engine_resources.plots import Curves, coin_page
from engine_resources.records import Unit
from hamilton_client.bundle import SUMS, BundleCard, PackedBundle, SegmentCard, SegmentFiles, compose, fetch, write_bundle
from hamilton_client.core import layout
from hamilton_client.core.combine import Combiner, outcomes, seed
from hamilton_client.core.contracts import (
    ChampionPointer,
    CostSnapshot,
    Record,
    Regime,
    SegmentMetrics,
    SegmentPointer,
    SignArray,
    canonical_json,
)
from hamilton_client.core.costs import bar_context
from hamilton_client.core.decide import silence
from hamilton_client.core.signals import Learned, Signals, signals

COMBINER_DAYS = 180


class CoinPlan(Record):
    """`plan.json`: what the champions stage decided for one coin, for its bundles to be composed in a worker.

    `candidates` are the night's judged segments, `choices` where each segment of the next champion bundle comes from, `champion` the
    pointer in force before this night.
    """

    symbol: str
    candidates: dict[str, SegmentPointer]
    metrics: dict[str, SegmentMetrics]
    choices: dict[str, Choice]
    champion: ChampionPointer | None


@dataclass(frozen=True)
class CoinBundles:
    """Both bundles as written, the plot page, and the segments whose promotion was refused because the whole decision would be worse."""

    challenger: PackedBundle
    champion: PackedBundle
    champion_path: str
    page: bytes | None
    refused: tuple[str, ...]
    segments: Mapping[str, SegmentPointer]


@dataclass(frozen=True)
class Coin:
    """A coin's candles and what its votes are made of."""

    base: pl.DataFrame
    base_regime: SignArray
    costs: CostSnapshot
    oof: Mapping[str, Learned]
    lineage: str


def bundles_unit(unit: Unit, night: Night) -> CoinBundles:
    """Compose and write a coin's challenger and champion bundles by its `plan.json`; the pointer is not touched here."""
    plan = CoinPlan.from_bytes(night.store.get(plan_key(unit.symbol, night)))
    coin = _coin(unit.symbol, night)
    combiner = seed_combiner(coin, night)
    fresh = _candidate_files(plan, night)
    challenger = _compose(plan.symbol, plan.candidates, fresh, coin, combiner, night, challenger=True)
    segments, refused = _not_worse(plan, coin, combiner, night)
    chosen = _champion_files(plan, segments, fresh, night)
    champion = _compose(plan.symbol, segments, chosen, coin, combiner, night, challenger=False)
    write_bundle(night.store, layout.bundle(plan.symbol, night.as_of, challenger=True), challenger)
    path = _free_path(plan.symbol, champion.sha256, night)
    write_bundle(night.store, path, champion)
    record = _published(plan.symbol, challenger, plan.candidates, night)
    night.store.put(layout.published(plan.symbol, night.as_of), record.to_bytes())
    return CoinBundles(challenger, champion, path, _page(coin, plan.symbol, night), refused, segments)


def plan_key(symbol: str, night: Night) -> str:
    """Where the champions stage leaves a coin's plan."""
    return layout.night_part(night.run_id, symbol, night.base, "plan.json")


def _free_path(symbol: str, sha256: str, night: Night) -> str:
    """A bundle is never overwritten by another: a night that is run again with another result takes the next name."""
    first = layout.bundle(symbol, night.as_of)
    for number in count(1):
        path = first if number == 1 else f"{first}.r{number}"
        sums = f"{path}/{SUMS}"
        if not night.store.exists(sums) or hashlib.sha256(night.store.get(sums)).hexdigest() == sha256:
            break
    return path


def _page(coin: Coin, symbol: str, night: Night) -> bytes | None:
    """The coin's plot page, None where no timeframe was scored."""
    prices = Prices.of(coin.base, layout.timeframe_ms(night.base))
    curves = []
    for timeframe in coin.oof:
        unit = Unit(symbol, timeframe)
        daily = (
            read_part_frame(unit, night, "daily.parquet").group_by("date").agg(pl.col("gross_bps", "net_bps", "trades").sum()).sort("date")
        )
        if daily.is_empty():
            continue
        first, last = (int(day) for day in daily["date"].cast(pl.Int32).to_numpy()[[0, -1]])
        hold = daily.join(buy_and_hold(prices, first, last).rename({"net_bps": "hold"}), on="date", how="left")["hold"].fill_null(0.0)
        rows = read_part_frame(unit, night, "oof.parquet")
        days, gross, net = (daily[name].to_numpy() for name in ("date", "gross_bps", "net_bps"))
        edges = (rows["edge_bps"].to_numpy(), rows["gross_bps"].to_numpy())
        curves.append(
            Curves(timeframe, days, gross, net, hold.to_numpy(), *edges, night.recipe.horizon_bars[timeframe], int(daily["trades"].sum()))
        )
    if not curves:
        return None
    return coin_page(symbol, curves, as_of=night.as_of, market=night.policy.market, synthetic=night.source.is_synthetic(symbol))


def _coin(symbol: str, night: Night) -> Coin:
    base_unit = Unit(symbol, night.base)
    base = read_candles(base_unit, night)
    units = [Unit(symbol, timeframe) for timeframe in night.settings.timeframes.train]
    oof = {unit.timeframe: learned(read_part_frame(unit, night, "oof.parquet")) for unit in units if read_part(unit, night)}
    return Coin(base, read_regimes(base_unit, night), costs_of(symbol, night.recent(symbol), night), oof, night.recipe.hash)


def coin_signals(coin: Coin, night: Night, oof: Mapping[str, Learned], reliability: Mapping[str, float]) -> Signals:
    """Votes of all engines over the last `COMBINER_DAYS`, the learned ones out of fold."""
    bars = COMBINER_DAYS * 1440 // layout.timeframe_minutes(night.base)
    return signals(
        coin.base.tail(bars + night.recipe.warmup_bars(night.base)),
        policy=night.policy,
        recipe=night.recipe.features,
        regimes=night.recipe.regimes,
        score=oof,
        calibrations={},
        horizons=night.recipe.horizon_bars,
        reliability=reliability,
        tail=bars,
    )


def seed_combiner(coin: Coin, night: Night) -> Combiner:
    """Reliabilities, vote correlations and soft weights from outcomes resolved by `as_of`, so that the first decision is not empty."""
    seen = coin_signals(coin, night, coin.oof, {})
    votes = silence(seen.votes, seen.bars.regime, night.policy)
    base = coin.base.tail(len(seen))
    found = outcomes(votes, base["open"].to_numpy(), base["close"].to_numpy(), seen.bars.close_ms)
    cost = 2 * coin.costs.taker_fee_bps + coin.costs.spread_bps
    return seed(votes, found.gross_bps, found.resolved_ms, night.as_of_ms, night.policy, regime_codes=seen.bars.regime, cost_bps=cost)


def _candidate_files(plan: CoinPlan, night: Night) -> dict[str, SegmentFiles]:
    parts: dict[str, UnitPart | None] = {}
    files = {}
    for key, pointer in plan.candidates.items():
        timeframe, regime = layout.split_segment(key)
        part = parts.setdefault(timeframe, read_part(Unit(plan.symbol, timeframe), night))
        if pointer.model_id is None or part is None:
            continue
        calibration = part.segments[regime].calibration
        assert calibration is not None
        files[key] = SegmentFiles(
            model=read_model(Unit(plan.symbol, timeframe), regime, night),
            config=_config(pointer, timeframe, part.device, night),
            metrics=plan.metrics[key].to_bytes(),
            calibration=calibration.to_bytes(),
        )
    return files


def _config(pointer: SegmentPointer, timeframe: str, device: str, night: Night) -> bytes:
    recipe = night.recipe
    return canonical_json(
        {
            "model_id": pointer.model_id,
            "lineage": recipe.hash,
            "recipe": recipe.model_dump(mode="json", exclude={"features", "regimes"}),
            "timeframe": timeframe,
            "parameters": recipe.model.lightgbm(device),
            "label": {"kind": "gross_return_sign", "entry": "next_open", "horizon_bars": recipe.horizon_bars[timeframe]},
            "as_of": night.as_of.isoformat(),
            "device": device,
            "versions": night.versions,
        }
    )


def _champion_files(
    plan: CoinPlan, segments: Mapping[str, SegmentPointer], fresh: Mapping[str, SegmentFiles], night: Night
) -> dict[str, SegmentFiles]:
    """Model files of every segment of the next champion: of the night where promoted, of the old bundle where kept."""
    old_files: Mapping[str, bytes] = {}
    kept = [key for key, pointer in segments.items() if pointer.model_id and plan.choices[key].source == "champion"]
    if kept and plan.champion is not None:
        old_files = fetch(night.store, plan.champion.bucket_path, plan.champion.sha256, plan.champion.size)
    return {key: SegmentFiles.of(old_files, key) if key in kept else fresh[key] for key, pointer in segments.items() if pointer.model_id}


def _compose(
    symbol: str,
    segments: Mapping[str, SegmentPointer],
    files: Mapping[str, SegmentFiles],
    coin: Coin,
    combiner: Combiner,
    night: Night,
    *,
    challenger: bool,
) -> PackedBundle:
    horizon = night.recipe.horizon_bars
    timeframes = sorted({layout.split_segment(key)[0] for key in files})
    card = BundleCard(
        symbol=symbol,
        model_id=layout.bundle(symbol, night.as_of, challenger=challenger).replace("/", "_"),
        as_of=night.as_of,
        run_id=night.run_id,
        market=night.policy.market,
        recipe=night.recipe.name,
        lineage=night.recipe.hash,
        segments={
            key: SegmentCard(**pointer.model_dump(), horizon_bars=horizon[layout.split_segment(key)[0]])
            for key, pointer in segments.items()
        },
        synthetic=night.source.is_synthetic(symbol),
    )
    return compose(
        card,
        features=night.recipe.features,
        regimes=night.recipe.regimes,
        combiner=combiner,
        costs=coin.costs,
        policy=night.policy,
        segments=files,
        candles={
            timeframe: coin.base if timeframe == night.base else read_candles(Unit(symbol, timeframe), night) for timeframe in timeframes
        },
    )


def _not_worse(plan: CoinPlan, coin: Coin, combiner: Combiner, night: Night) -> tuple[dict[str, SegmentPointer], tuple[str, ...]]:
    """Drop newly promoted segments where the full `decide()` out of sample would earn less with the new set than with the old one."""
    segments = {key: choice.pointer for key, choice in plan.choices.items()}
    held = {key for key, pointer in (plan.champion.segments if plan.champion else {}).items() if pointer.model_id}
    added = tuple(key for key, pointer in segments.items() if pointer.model_id and key not in held)
    if not added or not held:
        return segments, ()
    new = {key for key, pointer in segments.items() if pointer.model_id}
    if decision_pnl_bps(coin, combiner, night, new) >= decision_pnl_bps(coin, combiner, night, held & new):
        return segments, ()
    reason = SegmentPointer(model_id=None, promoted_at=None, state="rejected: decision_worse")
    return segments | dict.fromkeys(added, reason), added


def decision_pnl_bps(coin: Coin, combiner: Combiner, night: Night, spoken: Iterable[str]) -> float:
    """Net P&L in bps of the full decision over the combiner's window, with only the learned segments in `spoken` voting, out of fold."""
    allowed = set(spoken)
    oof = {timeframe: _only(rows, timeframe, allowed) for timeframe, rows in coin.oof.items()}
    seen = coin_signals(coin, night, oof, combiner.reliability)
    base = coin.base.tail(len(seen))
    minutes = layout.timeframe_minutes(night.base)
    context = bar_context(coin.base, coin.base_regime, base_minutes=minutes, volatility_bars=night.policy.exits.volatility_bars)
    at = np.arange(len(coin.base) - len(seen), len(coin.base))
    book = Book("", Prices.of(base, minutes * 60_000), context.take(at), coin.costs, night.policy, night.policy.risk.preset)
    result = trade(book, seen.votes, combiner, seen.learned_available)
    return float((result.gross_bps - result.cost_bps).sum())


def _only(rows: Learned, timeframe: str, allowed: set[str]) -> Learned:
    silent = np.array([layout.segment(timeframe, regime) not in allowed for regime in Regime])[rows.regime]
    return Learned(
        rows.close_ms, rows.regime, rows.score, np.where(silent, np.nan, rows.edge_bps), np.where(silent, np.nan, rows.probability)
    )


def _published(symbol: str, packed: PackedBundle, segments: Mapping[str, SegmentPointer], night: Night) -> ChampionPointer:
    """The record by which later nights find this version for the shadow; generation 0, because no champion table knows it."""
    path = layout.bundle(symbol, night.as_of, challenger=True)
    return ChampionPointer(
        symbol=symbol,
        generation=0,
        bucket_path=path,
        size=packed.size,
        sha256=packed.sha256,
        model_id=path.replace("/", "_"),
        segments=dict(segments),
        as_of=night.as_of,
        promoted_at=night.published_at,
        synthetic=night.source.is_synthetic(symbol),
    )
