"""What a decision costs: votes to decision, many coins in one batched pass, and one live decision as Hamilton makes it."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from bench_figures import Figure, cpu_ms, quantile, wall_ms
from bench_sizes import SECOND, Size, settings_at
from engine_assets.work.night import Night
from engine_assets.work.prepare import read_candles
from engine_resources.pool import Unit
from hamilton_client.bundle import Bundle, read_bundle
from hamilton_client.core import layout
from hamilton_client.core.combine import gain
from hamilton_client.core.contracts import ChampionPointer, FloatArray, IntArray, SignArray
from hamilton_client.core.costs import BarContext, bar_context
from hamilton_client.core.decide import Decisions, decide
from hamilton_client.core.engines import ENGINES, RULES, learned_votes, rule_votes
from hamilton_client.core.features import build
from hamilton_client.core.regimes import REGIME_CODES, RegimeRecipe, classify, codes
from hamilton_client.core.signals import required_bars, signals
from hamilton_client.core.votes import Votes
from hamilton_client.pointer import PointerWatch, write_pointer
from hamilton_client.runner import Champions, bundle_signals, decide_once
from hamilton_client.settings import HamiltonSettings
from hamilton_client.store import ObjectStore

CERTAIN = dict.fromkeys((engine.name for engine in RULES), 1.0)  # rules then report the whole move, to be scaled per coin
LEARNED = [(engine.name, engine.timeframe, engine.horizon_bars) for engine in ENGINES.values() if engine.kind == "learned"]
TOLERANCE = 1e-9


class Coin(NamedTuple):
    """A coin to decide for: its verified bundle and the tail of its base candles that a decision depends on."""

    symbol: str
    bundle: Bundle
    tail: pl.DataFrame


def decision_figures(home: Path, size: Size) -> list[Figure]:
    """Measure on the bundles that the nights in `home` published, as if all of their segments were champions."""
    night = Night(settings_at(home, size), SECOND)
    pointers = [ChampionPointer.from_bytes(night.store.get(layout.published(symbol, SECOND))) for symbol in size.coins]
    bundles = [read_bundle(night.store, pointer) for pointer in pointers]
    candles = [read_candles(Unit(symbol, night.base), night) for symbol in size.coins]
    return [
        *_votes_to_decision(bundles[0], candles[0], size),
        _batched(_many(bundles, candles, size.batch_coins), size),
        *_live(night.store, pointers, home, size),
    ]


def _votes_to_decision(bundle: Bundle, candles: pl.DataFrame, size: Size) -> list[Figure]:
    seen = bundle_signals(bundle, candles, tail=1)
    preset = bundle.policy.risk.preset
    decide_row = partial(decide, seen.votes, seen.bars, policy=bundle.policy, combiner=bundle.combiner, costs=bundle.costs, preset=preset)
    times = wall_ms(decide_row, 200 * size.repeats)
    note = f"core.decide.decide on one row of {len(seen.votes.engines)} engines, wall time of {len(times)} calls"
    expected = "0.4: some 60 numpy calls on tiny arrays"
    return [
        Figure("decide_p50_ms", quantile(times, 0.5), "ms", "<= 1", expected, note),
        Figure(
            "decide_p99_ms", quantile(times, 0.99), "ms", "<= 100", "0.8", f"{note}; the target is the mission's floor for the consensus"
        ),
    ]


def _many(bundles: Sequence[Bundle], candles: Sequence[pl.DataFrame], count: int) -> list[Coin]:
    """`count` coins made of few: each tail ends a day before the one made of the same coin before it."""
    one = bundles[0]
    bars = required_bars(one.policy, one.features, _base_only(one))[one.policy.base_timeframe]
    coins = []
    for number in range(count):
        days_ago, which = divmod(number, len(bundles))
        frame = candles[which]
        coins.append(Coin(bundles[which].card.symbol, bundles[which], frame.head(frame.height - 24 * days_ago).tail(bars)))
    return coins


def _base_only(bundle: Bundle) -> RegimeRecipe:
    base = bundle.policy.base_timeframe
    return RegimeRecipe(by_timeframe={base: bundle.regimes.by_timeframe[base]})


class Market(NamedTuple):
    """The newest bar of every coin, out of one pass over all tails."""

    x: FloatArray
    regime: SignArray
    bars: BarContext
    rules: Votes


def look(coins: Sequence[Coin]) -> Market:
    """Features, regimes, context and rule votes of all coins at once: tails stand one after another, only last rows are kept."""
    one = coins[0].bundle
    base = one.policy.base_timeframe
    tails = pl.concat([coin.tail for coin in coins])
    ends: IntArray = np.cumsum([coin.tail.height for coin in coins]) - 1
    built = build(tails, one.features)[ends].select(one.features.names).fill_null(np.nan)
    regime = codes(classify(tails, one.regimes.by_timeframe[base], base))
    bars = bar_context(tails, regime, base_minutes=layout.timeframe_minutes(base), volatility_bars=one.policy.exits.volatility_bars)
    return Market(np.ascontiguousarray(built.to_numpy()), regime[ends], bars.take(ends), rule_votes(tails, CERTAIN).take(ends))


def say(coin: Coin, market: Market, row: int) -> Decisions:
    """Score, vote and decide for one coin on its row of the market: rules and the learned engine of the base timeframe."""
    bundle, at = coin.bundle, slice(row, row + 1)
    base = bundle.policy.base_timeframe
    score = bundle.score(base, market.x[at], market.regime[at])
    table = bundle.calibrations.get(layout.segment(base, REGIME_CODES[market.regime[row]]))
    nothing = np.full(1, np.nan)
    probability, edge_bps = (nothing, nothing) if table is None else (table.probability(score), table.edge_bps(score))
    rules = market.rules.take(at)
    strength = gain(np.array([bundle.combiner.reliability.get(name, 0.5) for name in rules.engines]))
    scaled = Votes(rules.engines, rules.direction, rules.confidence, rules.edge_bps * strength, rules.horizon_bars)
    learned = [
        learned_votes(name, *((probability, edge_bps) if timeframe == base else (nothing, nothing)), horizon_bars)
        for name, timeframe, horizon_bars in LEARNED
    ]
    votes = Votes.concat(scaled, *learned)
    return decide(
        votes, market.bars.take(at), policy=bundle.policy, combiner=bundle.combiner, costs=bundle.costs, preset=bundle.policy.risk.preset
    )


def decide_all(coins: Sequence[Coin]) -> list[Decisions]:
    """One batched pass: a decision per coin."""
    market = look(coins)
    return [say(coin, market, row) for row, coin in enumerate(coins)]


def _batched(coins: list[Coin], size: Size) -> Figure:
    for coin, found in list(zip(coins, decide_all(coins), strict=True))[:: max(1, len(coins) // 10)]:
        _same(found, _alone(coin))
    market = look(coins)
    parts = {
        "features_regimes_rules_ms": cpu_ms(lambda: look(coins), size.repeats) / len(coins),
        "scores_and_decisions_ms": cpu_ms(lambda: [say(coin, market, row) for row, coin in enumerate(coins)], size.repeats) / len(coins),
    }
    bars, names = coins[0].tail.height, coins[0].bundle.features.names
    return Figure(
        "features_and_decision_ms",
        sum(parts.values()),
        "CPU-ms per coin",
        "<= 5",
        "4: a millisecond each for features, regimes, the rules and the decision",
        f"One batched pass of {len(coins)} coins in one process: {len(names)} features, regimes, {len(RULES)} rules, one LightGBM score, "
        f"decide(), base timeframe only, tails of {bars} bars of {len({coin.symbol for coin in coins})} coins, each at many ends. Some "
        "decisions are compared with core.signals on that coin alone. hamilton_client has no such pass yet: it is written in this bench",
        parts,
    )


def _alone(coin: Coin) -> Decisions:
    bundle = coin.bundle
    horizons = {engine.timeframe: 1 for engine in ENGINES.values() if engine.timeframe} | {bundle.policy.base_timeframe: 4}
    seen = signals(
        coin.tail,
        policy=bundle.policy,
        recipe=bundle.features,
        regimes=_base_only(bundle),
        score=bundle.score,
        calibrations=bundle.calibrations,
        horizons=horizons,
        reliability=bundle.combiner.reliability,
        tail=1,
    )
    return decide(
        seen.votes, seen.bars, policy=bundle.policy, combiner=bundle.combiner, costs=bundle.costs, preset=bundle.policy.risk.preset
    )


def _same(batched: Decisions, alone: Decisions) -> None:
    assert batched.action == alone.action
    for name in ("score", "agreement", "expected_edge_bps", "net_edge_bps", "stop_bps"):
        np.testing.assert_allclose(getattr(batched, name), getattr(alone, name), rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def _live(store: ObjectStore, pointers: Sequence[ChampionPointer], home: Path, size: Size) -> list[Figure]:
    """`decide_once` for every coin, with the night's challenger bundle put in force, so that models are scored."""
    for pointer in pointers:
        write_pointer(store, pointer.model_copy(update={"generation": 1_000}))
    settings = HamiltonSettings(home=home)
    champions = Champions(store, PointerWatch())
    started = time.process_time()
    for pointer in pointers:
        decide_once(store, champions, pointer.symbol, settings, SECOND)
    cold = 1000 * (time.process_time() - started) / len(pointers)
    warm = cpu_ms(lambda: [decide_once(store, champions, pointer.symbol, settings, SECOND) for pointer in pointers], size.repeats)
    models = sum(1 for pointer in pointers for entry in pointer.segments.values() if entry.model_id)
    note = f"hamilton_client.runner.decide_once as it is, {len(size.timeframes)} timeframes, {models / len(pointers):.0f} models a coin"
    return [
        Figure("decide_once_ms", warm / len(pointers), "CPU-ms per coin", "", "60: candles are read and derived three times", note),
        Figure(
            "decide_once_cold_ms",
            cold,
            "CPU-ms per coin",
            "",
            "150",
            f"{note}; the first decision after a promotion: the bundle is fetched, verified and its golden tails replayed",
        ),
    ]
