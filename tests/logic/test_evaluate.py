import numpy as np
import polars as pl
import pytest

from engine_assets.logic.evaluate import RANDOM_DRAWS, baselines, buy_and_hold, random_entries, trade, trade_segment
from hamilton_client.core.bars import derive
from hamilton_client.core.combine import solo
from hamilton_client.core.contracts import Regime
from hamilton_client.core.decide import decide
from hamilton_client.core.engines import learned_votes
from hamilton_client.core.policy import ExitRule
from hamilton_client.core.signals import Learned
from market import COSTS, DAY_MS, FREE, HOUR_MS, POLICY, SPOT, START, book_of, candles_of, code, noise, pegged

CANDLES = noise(5, 30)
CLOSE_MS = CANDLES["ts"].dt.epoch("ms").to_numpy() + HOUR_MS
NO_STOPS = {"exits": ExitRule(stop_sigmas=1000)}


def said(rows, edge=80.0, close_ms=CLOSE_MS, regime=Regime.TREND):
    """A forecast on `rows`: the price rises (edge > 0) or falls, with nine chances in ten."""
    edges = np.full(len(close_ms), np.nan)
    edges[rows] = edge
    probability = np.where(edges > 0, 0.9, np.where(edges < 0, 0.1, np.nan))
    return Learned(close_ms, np.full(len(close_ms), code(regime), np.int8), probability, edges, probability)


def test_a_segment_trades_its_own_regime_only():
    spoken = said([200, 300, 400])
    spoken.regime[300] = code(Regime.RANGE)
    trend, rows = trade_segment(book_of(CANDLES), "1h", 4, spoken, Regime.TREND)
    assert trend.trades["entry_ms"].to_list() == CLOSE_MS[[200, 400]].tolist()
    assert rows.tolist() == [200, 400]  # bars with an opinion, not all bars of the regime: random entries are drawn from them
    other, rows = trade_segment(book_of(CANDLES), "1h", 4, spoken, Regime.RANGE)
    assert other.trades["entry_ms"].to_list() == [CLOSE_MS[300]]
    assert rows.tolist() == [300]


@pytest.mark.parametrize("regime", [Regime.ILLIQUID, Regime.UNKNOWN])
def test_the_base_regime_gates_every_segment(regime):
    result, _ = trade_segment(book_of(CANDLES, regime), "1h", 4, said([200, 300]), Regime.TREND)
    assert result.trades.is_empty()
    assert not result.cost_bps.any()


def test_silence_costs_nothing():
    result, rows = trade_segment(book_of(CANDLES), "1h", 4, said([]), Regime.TREND)
    assert result.trades.is_empty()
    assert not rows.size


@pytest.mark.parametrize("edge", [80.0, -80.0])
def test_costs_enter_once(edge):
    """A trade that ends at its horizon pays exactly what `decide` held against its edge, without the safety margin."""
    policy = POLICY.model_copy(update=NO_STOPS)
    book = book_of(CANDLES, policy=policy)
    result, _ = trade_segment(book, "1h", 4, said([300], edge), Regime.TREND)
    spoken = said([300], edge)
    votes = learned_votes("learned_1h", spoken.probability, spoken.edge_bps, 4)
    decided = decide(votes, book.context, policy=policy, combiner=solo("learned_1h"), costs=COSTS, preset=book.preset)
    assert result.trades["exit_reason"].item() == "horizon"
    assert result.trades["cost_bps"].item() == pytest.approx(decided.costs_bps[300])
    funding = np.sign(edge) * COSTS.funding_bps_per_8h / 2
    assert decided.costs_bps[300] == pytest.approx(2 * 4.0 + 1.0 + funding, abs=0.5)  # fees, spread, funding, a little impact
    assert result.trades["size_usd"].item() == decided.size_usd[300]
    entry, exit_ = CANDLES["open"][301], CANDLES["close"][304]
    assert result.trades["gross_bps"].item() == pytest.approx(np.sign(edge) * 1e4 * (exit_ / entry - 1))


@pytest.mark.parametrize("policy", [POLICY, SPOT])
def test_an_early_exit_saves_funding_and_nothing_else(policy):
    policy = policy.model_copy(update=NO_STOPS)
    spoken = said([300, 301])
    spoken.edge_bps[301], spoken.probability[301] = -80.0, 0.1
    cut, _ = trade_segment(book_of(CANDLES, policy=policy), "1h", 16, spoken, Regime.TREND)
    free, _ = trade_segment(
        book_of(CANDLES, policy=policy, costs=COSTS.model_copy(update={"funding_bps_per_8h": 0.0})), "1h", 16, spoken, Regime.TREND
    )
    assert cut.trades["exit_reason"][0] == "opposite"
    paid = 0.0 if policy is not None and policy.market.instrument == "spot" else 1 / 8
    assert cut.trades["cost_bps"][0] - free.trades["cost_bps"][0] == pytest.approx(paid)


def test_on_spot_nothing_is_sold_short():
    both = said([200, 300], -80.0)
    assert trade_segment(book_of(CANDLES, policy=SPOT), "1h", 4, both, Regime.TREND)[0].trades.is_empty()
    assert trade_segment(book_of(CANDLES), "1h", 4, both, Regime.TREND)[0].trades["side"].to_list() == [-1, -1]


def test_a_higher_bar_speaks_until_its_successor_is_due():
    """A 4h bar is known at its close, not before; its vote holds for four base bars, and its horizon is counted in base bars."""
    higher = derive(CANDLES, "1h", "4h")
    close_ms = higher["ts"].dt.epoch("ms").to_numpy() + 4 * HOUR_MS
    result, rows = trade_segment(book_of(CANDLES), "4h", 12, said([60], close_ms=close_ms), Regime.TREND)
    assert (CLOSE_MS[rows] - close_ms[60]).tolist() == [0, HOUR_MS, 2 * HOUR_MS, 3 * HOUR_MS]
    trade_ = result.trades.row(0, named=True)
    assert trade_["entry_ms"] == close_ms[60]
    assert trade_["exit_ms"] <= close_ms[60] + 12 * HOUR_MS


def test_the_cooldown_and_the_daily_loss_limit_hold():
    eager = np.arange(100, 700)
    result, _ = trade_segment(book_of(CANDLES), "1h", 4, said(eager), Regime.TREND)
    pause = result.trades["entry_ms"].to_numpy()[1:] - result.trades["exit_ms"].to_numpy()[:-1]
    assert pause.min() == POLICY.risk.cooldown_bars * HOUR_MS
    tight = POLICY.risk_presets["balanced"].model_copy(update={"daily_loss_limit_pct": 0.01})
    careful = POLICY.model_copy(update={"risk_presets": POLICY.risk_presets | {"balanced": tight}})
    stopped, _ = trade_segment(book_of(CANDLES, policy=careful), "1h", 4, said(eager), Regime.TREND)
    realised_usd = dict.fromkeys(range(20_000), 0.0)
    for entry_ms, exit_ms, net_bps, size_usd in stopped.trades.select("entry_ms", "exit_ms", "net_bps", "size_usd").iter_rows():
        assert realised_usd[entry_ms // DAY_MS] > -10, "a day that lost 0.01 % of 100,000 is over"
        realised_usd[exit_ms // DAY_MS] += net_bps * size_usd / 1e4
    assert 0 < len(stopped.trades) < len(result.trades)


def test_deciding_only_where_somebody_votes_changes_nothing():
    spoken = said(np.arange(100, 700, 7))
    book = book_of(CANDLES)
    votes = learned_votes("learned_1h", spoken.probability, spoken.edge_bps, 4)
    loud = learned_votes("learned_1h", spoken.probability, spoken.edge_bps, 4)
    loud.direction[votes.direction == 0] = 1  # the rest votes too, but with no edge: decided, and held
    assert trade(book, votes, solo("learned_1h")).trades.equals(trade(book, loud, solo("learned_1h")).trades)


def test_buy_and_hold_earns_the_whole_move_of_its_days():
    candles = CANDLES.with_row_index().filter(~pl.col("index").is_between(240, 300)).drop("index")  # an outage of 2.5 days
    prices = book_of(candles).prices
    first = int(prices.open_ms[0] // DAY_MS)
    daily = buy_and_hold(prices, first + 3, first + 20)
    before = candles.filter(pl.col("ts").dt.epoch("ms") < (first + 3) * DAY_MS)["close"][-1]
    end = candles.filter(pl.col("ts").dt.epoch("ms") < (first + 21) * DAY_MS)["close"][-1]
    assert daily["net_bps"].sum() == pytest.approx(1e4 * np.log(end / before))
    assert daily["date"].cast(pl.Int32).to_list() == [day for day in range(first + 3, first + 21) if day not in (first + 10, first + 11)]
    assert buy_and_hold(prices, first, first)["net_bps"].to_list() == [0.0]


def test_random_entries_match_count_side_and_costs():
    rising = candles_of(np.arange(500) * 0.001, start=START)
    book = book_of(rising)
    rows = np.arange(100, 400)
    trades = pl.DataFrame({"side": pl.Series([1] * 30, dtype=pl.Int8), "cost_bps": [12.0] * 30, "net_bps": [0.0] * 30})
    drawn = random_entries(book, trades, rows, 4, seed=7)
    assert drawn.shape == (RANDOM_DRAWS,)
    assert drawn.mean() == pytest.approx(40 - 12, abs=2)  # four bars of 10 bps, less costs
    assert drawn.tolist() == random_entries(book, trades, rows, 4, seed=7).tolist()
    sold = random_entries(book, trades.with_columns(side=-pl.col("side")), rows, 4, seed=7)
    assert sold.mean() == pytest.approx(-40 - 12, abs=2)
    assert random_entries(book, trades[:0], rows, 4, seed=7).size == 0
    assert random_entries(book, trades, np.array([497, 498]), 4, seed=7).size == 0  # no horizon is left


def test_baselines_stand_beside_every_segment():
    book = book_of(CANDLES, costs=FREE)
    first = int(CLOSE_MS[0] // DAY_MS)
    result, rows = trade_segment(book, "1h", 4, said(np.arange(100, 700)), Regime.TREND)
    figures = baselines(book, result, rows, 4, (first, first + 20), None)
    assert figures["flat_net_pnl_pct"] == 0
    assert figures["buy_and_hold_net_pnl_pct"] == pytest.approx(buy_and_hold(book.prices, first, first + 20)["net_bps"].sum() / 100)
    assert 0 <= figures["random_percentile"] <= 1
    assert "pooled_net_bps" not in figures
    beside = baselines(book, result, rows, 4, (first, first + 20), result)
    assert beside["pooled_net_bps"] == result.trades["net_bps"].mean()
    assert beside["pooled_trades"] == len(result.trades)
    silent, none = trade_segment(book, "1h", 4, said([]), Regime.TREND)
    assert baselines(book, silent, none, 4, (first, first + 20), silent)["random_percentile"] is None


def test_a_price_that_never_moves_is_not_traded():
    """No volatility, no stop distance, no size: the input is missing, so the trade is refused."""
    result, _ = trade_segment(book_of(pegged(30)), "1h", 4, said(np.arange(100, 700)), Regime.TREND)
    assert result.trades.is_empty()
