"""What is validated is what trades: backtest, shadow and live make the same decision on the same bar with the same bundle."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from flow.small_world import CLOCK, NIGHTS, SYNTHETIC, TIMEFRAMES, World, finished_world

from engine_assets.logic.evaluate import Book, decided, trade
from engine_assets.logic.replay import Prices
from engine_assets.work.prepare import read_candles, read_features, read_regimes
from engine_assets.work.publish import Coin, decision_pnl_bps
from engine_assets.work.shadow import _book, _spoken
from engine_resources.records import Unit
from hamilton_client.bundle import Bundle, read_bundle
from hamilton_client.core import layout
from hamilton_client.core.contracts import ChampionPointer, DecisionEvent
from hamilton_client.core.decide import ACTIONS, REASONS, Decisions, decide
from hamilton_client.core.features import build
from hamilton_client.core.regimes import classify, codes
from hamilton_client.core.signals import Signals, required_base_bars
from hamilton_client.pointer import PointerWatch
from hamilton_client.runner import Champions, bundle_signals, decide_once
from hamilton_client.settings import load_settings

pytestmark = pytest.mark.slow
SYMBOLS = (SYNTHETIC, "BTCUSDT")
BARS = [NIGHTS[0] + timedelta(hours=hours) for hours in range(23)]
"""Closes that the first night's bundle may decide on, up to the end of the candles."""
FIGURES = ("score", "agreement", "effective", "expected_edge_bps", "costs_bps", "net_edge_bps", "size_usd", "stop_bps")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """The finished world, where the champions of the first night are in force again: its second day is then live."""
    made = finished_world(tmp_path_factory.getbasetemp()).copy(tmp_path_factory.mktemp("parity") / "home")
    for symbol in SYMBOLS:
        first = made.bucket / layout.champion_history(symbol, 1)
        (made.bucket / layout.champion_pointer(symbol)).write_bytes(first.read_bytes())
    return made


@pytest.fixture(scope="module")
def pointers(world) -> dict[str, ChampionPointer]:
    return {symbol: world.pointers()[symbol] for symbol in SYMBOLS}


@pytest.fixture(scope="module")
def bundles(world, pointers) -> dict[str, Bundle]:
    return {symbol: read_bundle(world.store, pointer) for symbol, pointer in pointers.items()}


@pytest.fixture(scope="module")
def history(world) -> dict[str, pl.DataFrame]:
    """Every closed base candle of each coin."""
    return {symbol: read_candles(Unit(symbol, "1h"), world.night(CLOCK)) for symbol in SYMBOLS}


@pytest.fixture(scope="module")
def live(world) -> dict[str, list[DecisionEvent]]:
    """What Hamilton decides at each of BARS, from a tail of candles and one row."""
    settings = load_settings(world.variables)
    champions = Champions(world.store, PointerWatch())
    return {symbol: [decide_once(world.store, champions, symbol, settings, bar) for bar in BARS] for symbol in SYMBOLS}


@pytest.fixture(scope="module")
def batch(bundles, history) -> dict[str, Signals]:
    """Signals on the whole history at once."""
    return {symbol: bundle_signals(bundles[symbol], history[symbol]) for symbol in SYMBOLS}


def rows_of(signals: Signals, bars: list[datetime]) -> np.ndarray:
    wanted = np.array([int(bar.timestamp() * 1000) for bar in bars])
    rows = np.searchsorted(signals.bars.close_ms, wanted)
    assert (signals.bars.close_ms[rows] == wanted).all()
    return rows


def book_of(bundle: Bundle, candles: pl.DataFrame, signals: Signals) -> Book:
    """The book that a backtest of the whole history trades with."""
    prices = Prices.of(candles, layout.timeframe_ms("1h"))
    return Book(bundle.card.symbol, prices, signals.bars, bundle.costs, bundle.policy, bundle.policy.risk.preset)


def assert_same(event: DecisionEvent, decisions: Decisions, row: int) -> None:
    told = {
        "score": event.consensus_score,
        "agreement": event.metadata["agreement"],
        "effective": event.metadata["effective_engines"],
        "expected_edge_bps": event.expected_edge_bps,
        "costs_bps": event.costs_bps,
        "net_edge_bps": event.net_edge_bps,
        "size_usd": event.size_usd,
        "stop_bps": event.metadata["stop_bps"],
    }
    assert event.action is ACTIONS[int(decisions.action[row])]
    assert event.reason == REASONS[decisions.reason[row]]
    assert event.metadata["horizon_bars"] == decisions.horizon_bars[row]
    for name in FIGURES:
        assert told[name] == pytest.approx(float(np.nan_to_num(getattr(decisions, name)[row])), rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_live_equals_batch_on_every_bar(symbol, live, batch, bundles):
    seen, bundle = batch[symbol], bundles[symbol]
    decisions = decide(
        seen.votes,
        seen.bars,
        policy=bundle.policy,
        combiner=bundle.combiner,
        costs=bundle.costs,
        preset=bundle.policy.risk.preset,
        learned_available=seen.learned_available,
    )
    for row, event in zip(rows_of(seen, BARS), live[symbol], strict=True):
        assert_same(event, decisions, row)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_live_equals_what_the_backtest_trades(symbol, live, batch, bundles, history):
    seen, bundle = batch[symbol], bundles[symbol]
    book = book_of(bundle, history[symbol], seen)
    rows, decisions = decided(book, seen.votes, bundle.combiner, seen.learned_available)
    for row, event in zip(rows_of(seen, BARS), live[symbol], strict=True):
        at = np.searchsorted(rows, row)
        if at < len(rows) and rows[at] == row:
            assert_same(event, decisions, int(at))
        else:
            assert event.action.value == "hold"


def test_the_synthetic_coin_trades_both_live_and_in_the_backtest(live, batch, bundles, history):
    """The parity above would also hold between two paths that never trade."""
    seen, bundle = batch[SYNTHETIC], bundles[SYNTHETIC]
    actions = [event.action.value for event in live[SYNTHETIC]]
    assert len(actions) - actions.count("hold") >= 5, actions
    result = trade(book_of(bundle, history[SYNTHETIC], seen), seen.votes, bundle.combiner, seen.learned_available)
    entries = set(result.trades["entry_ms"].to_list())
    taken = {int(event.timestamp.timestamp() * 1000) for event in live[SYNTHETIC] if event.action.value != "hold"}
    assert entries & taken, "the replay enters at the open of the bar that follows a live decision"


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_shadow_hears_what_hamilton_hears(symbol, world, live, pointers, bundles):
    """Scores, edges and probabilities of each timeframe, as the shadow stage collects them, on every bar of the day."""
    night = world.night(CLOCK)
    for timeframe in TIMEFRAMES:
        candles = read_candles(Unit(symbol, timeframe), night)
        said = _spoken(timeframe, candles, [pointers[symbol]], [bundles[symbol]])
        for event in live[symbol]:
            told = event.metadata["learned"][timeframe]
            close_ms = int(event.timestamp.timestamp() * 1000)
            row = np.searchsorted(said.close_ms, close_ms, side="right") - 1
            if row < 0:  # the bar in force closed before the bundle was published
                continue
            for name in ("score", "probability", "edge_bps"):
                heard = float(getattr(said, name)[row])
                assert (told[name] is None and np.isnan(heard)) or told[name] == pytest.approx(heard, rel=1e-9, abs=1e-12)


def test_the_shadow_trades_with_the_context_that_hamilton_decides_in(world, batch, bundles, history):
    symbol, night = SYNTHETIC, world.night(CLOCK)
    until, replay_from = NIGHTS[1].replace(hour=0), NIGHTS[0].replace(hour=0) - timedelta(hours=8)
    span = required_base_bars(night.policy, night.recipe.features, night.recipe.regimes)
    base = history[symbol].filter(pl.col("ts").is_between(replay_from - timedelta(hours=span), until, closed="left"))
    book = _book(symbol, base, bundles[symbol], night, replay_from)
    whole = batch[symbol].take(np.isin(batch[symbol].bars.close_ms, book.close_ms))
    assert len(whole) == len(book.close_ms) == 32
    assert (book.context.regime == whole.bars.regime).all()
    np.testing.assert_allclose(book.context.sigma_bps, whole.bars.sigma_bps, rtol=1e-9)
    np.testing.assert_allclose(book.context.bar_volume_usd, whole.bars.bar_volume_usd, rtol=1e-9)


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_features_and_regimes_are_those_that_were_trained_on(symbol, timeframe, world, bundles):
    """Yearly chunks of the training path against one pass over the history, and against the live path's tail."""
    night, bundle = world.night(CLOCK), bundles[symbol]
    unit = Unit(symbol, timeframe)
    candles = read_candles(unit, night)
    names = list(bundle.features.names)
    trained = read_features(unit, night).select(names).to_numpy()
    whole = build(candles, bundle.features).select(names).to_numpy()
    np.testing.assert_allclose(trained, whole, rtol=1e-9, atol=1e-12)
    params = bundle.regimes.by_timeframe[timeframe]
    state = codes(classify(candles, params, timeframe))
    assert (read_regimes(unit, night) == state).all()
    warm = max(bundle.features.warmup_bars, params.warmup_bars)
    if candles.height > warm:
        tail = candles.tail(warm)
        np.testing.assert_allclose(build(tail, bundle.features).select(names).to_numpy()[-1], whole[-1], rtol=1e-9, atol=1e-12)
        assert codes(classify(tail, params, timeframe))[-1] == state[-1]


def test_a_backtest_without_a_learned_champion_holds_as_hamilton_does(world, bundles, history):
    """Where no learned engine has an opinion, live holds; the comparison that guards promotions must not trade there either."""
    symbol, night = SYNTHETIC, world.night(CLOCK)
    coin = Coin(history[symbol], read_regimes(Unit(symbol, "1h"), night), bundles[symbol].costs, {}, night.recipe.hash)
    assert decision_pnl_bps(coin, bundles[symbol].combiner, night, set()) == 0.0


def test_a_single_changed_figure_breaks_parity(live, batch, bundles):
    """The fault that these tests must see: costs of another day."""
    seen, bundle = batch[SYNTHETIC], bundles[SYNTHETIC]
    costs = bundle.costs.model_copy(update={"spread_bps": bundle.costs.spread_bps + 0.01})
    decisions = decide(
        seen.votes,
        seen.bars,
        policy=bundle.policy,
        combiner=bundle.combiner,
        costs=costs,
        preset=bundle.policy.risk.preset,
        learned_available=seen.learned_available,
    )
    row = rows_of(seen, BARS[-1:])[0]
    with pytest.raises(AssertionError, match="bps"):
        assert_same(live[SYNTHETIC][-1], decisions, row)
