import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine_assets.logic.labels import gross_labels
from engine_assets.logic.replay import Orders, Prices, replay
from market import DAY_MS, HOUR_MS, noise

ANY = st.floats(-0.03, 0.03)
BARS = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 1, 1, 1, 1, 2, 4]),  # hours since the bar before
        ANY,  # jump at the open
        ANY,  # move over the bar
        st.floats(0, 0.02),  # wicks
        st.floats(0, 0.02),
        st.sampled_from([-1, 0, 0, 0, 1]),  # decision at the close
        st.integers(1, 6),
        st.sampled_from([30.0, 150.0, 9000.0]),
        st.floats(0, 30),
    ),
    min_size=1,
    max_size=30,
)


class Gate:
    """Admits all but the orders of some bars; remembers what it was asked and told."""

    def __init__(self, refused=()):
        self.refused, self.asked, self.told = set(refused), [], []

    def __call__(self, row, at_ms):
        self.asked.append((row, at_ms))
        return row not in self.refused

    def closed(self, at_ms, net_bps, size_usd):
        self.told.append((at_ms, net_bps, size_usd))


def prices_of(open_, high, low, close, hours=None, start_ms=0):
    hours = np.ones(len(open_), np.int64) if hours is None else np.asarray(hours)
    return Prices(start_ms + np.cumsum(hours) * HOUR_MS, *(np.array(x, float) for x in (open_, high, low, close)), HOUR_MS)


def orders_of(action, horizon=4, stop=9000.0, cost=0.0, size=1000.0):
    n = len(action)
    each = (np.broadcast_to(np.asarray(value, float), n).copy() for value in (stop, size, cost))
    return Orders(np.array(action, np.int8), np.broadcast_to(np.asarray(horizon, np.int64), n).copy(), *each)


def world(bars, start_ms=0):
    close, open_ = [], []
    for _, jump, move, *_ in bars:
        open_.append((close[-1] if close else 100.0) * (1 + jump))
        close.append(open_[-1] * (1 + move))
    up, down = (np.array([bar[at] for bar in bars]) for at in (3, 4))
    high, low = np.maximum(open_, close) * (1 + up), np.minimum(open_, close) * (1 - down)
    prices = prices_of(open_, high, low, close, [bar[0] for bar in bars], start_ms)
    action, horizon, stop, cost = ([bar[at] for bar in bars] for at in (5, 6, 7, 8))
    return prices, orders_of(action, horizon, stop, cost, np.arange(len(bars)) + 1.0)


class Account:
    """One position at most, moved from instant to instant."""

    def __init__(self, bars, funding):
        self.gross, self.cost, self.trades, self.held, self.funding = np.zeros(bars), np.zeros(bars), [], None, funding

    def enter(self, i, price, at_ms, side, row, fee):
        self.held = {"side": side, "entry": price, "mark": price, "at": at_ms, "since": at_ms, "row": row, "fee": fee}
        self.cost[i] += fee / 2

    def move(self, i, price, at_ms):
        held = self.held
        self.gross[i] += held["side"] * (price - held["mark"]) / held["entry"] * 1e4
        self.cost[i] += held["side"] * self.funding * (at_ms - held["at"]) / (8 * HOUR_MS)
        held.update(mark=price, at=at_ms)

    def leave(self, i, price, at_ms, reason):
        self.move(i, price, at_ms)
        self.cost[i] += self.held["fee"] / 2
        self.trades.append((self.held["since"], at_ms, self.held["side"], reason, self.held["row"]))
        self.held = None


def simulate(prices, orders, funding, refused=()):
    """The obvious way: walk the bars, hold one position, look at nothing later than the bar."""
    account = Account(len(prices.open_ms), funding)
    for i, opened in enumerate(prices.open_ms.tolist()):
        decision = at_the_open(account, i, opened, prices, orders)
        follows = decision is not None and prices.open_ms[decision] + HOUR_MS == opened
        if follows and orders.action[decision] and decision not in refused:
            account.enter(i, prices.open[i], opened, int(orders.action[decision]), decision, orders.trading_cost_bps[decision])
        if account.held is not None:
            during_the_bar(account, i, opened, prices, orders)
    return account.gross, account.cost, account.trades


def until(row, prices, orders):
    return prices.open_ms[row] + orders.horizon_bars[row] * HOUR_MS


def at_the_open(account, i, opened, prices, orders):
    """Leave where the bar before, or time, says so; returns the row of a decision that may enter."""
    if account.held is None:
        return i - 1 if i else None
    if orders.action[i - 1] == -account.held["side"]:
        account.leave(i, prices.open[i], opened, "opposite")
        return i - 1
    if opened > until(account.held["row"], prices, orders):
        account.leave(i, prices.open[i], opened, "gap")
    return None


def during_the_bar(account, i, opened, prices, orders):
    side, row, entry = (account.held[name] for name in ("side", "row", "entry"))
    stop, worst = entry * (1 - side * orders.stop_bps[row] / 1e4), prices.low[i] if side > 0 else prices.high[i]
    if side * (worst - stop) <= 0:
        jumped_over = side * (prices.open[i] - stop) < 0
        account.leave(i, prices.open[i] if jumped_over else (stop + worst) / 2, opened + HOUR_MS, "stop")
    elif opened == until(row, prices, orders):
        account.leave(i, prices.close[i], opened + HOUR_MS, "horizon")
    else:
        account.move(i, prices.close[i], opened + HOUR_MS)


@settings(max_examples=300, deadline=None)
@given(BARS, st.sampled_from([0.0, 1.0, -3.0]), st.sets(st.integers(0, 30), max_size=4))
@example([(1, 0, 0, 0, 0, 1, 2, 9000.0, 2.0), (1, 0, 0.01, 0, 0, 0, 1, 30.0, 0), (4, -0.02, 0, 0, 0, 0, 1, 30.0, 0)], 1.0, set())
def test_agrees_with_a_bar_by_bar_simulation(bars, funding, refused):
    prices, orders = world(bars)
    gate = Gate(refused)
    result = replay(prices, orders, funding_bps_per_8h=funding, admit=gate)
    gross, cost, trades = simulate(prices, orders, funding, refused)
    np.testing.assert_allclose(result.gross_bps, gross, atol=1e-6)
    np.testing.assert_allclose(result.cost_bps, cost, atol=1e-9)
    assert result.trades.select("entry_ms", "exit_ms", "side", "exit_reason").rows() == [trade[:4] for trade in trades]
    assert result.trades["size_usd"].to_list() == [row + 1.0 for *_, row in trades]
    booked = result.trades["gross_bps"] - result.trades["cost_bps"]
    np.testing.assert_allclose(result.trades["net_bps"], booked, atol=1e-9)
    assert gate.told == result.trades.select("exit_ms", "net_bps", "size_usd").rows()
    assert all(at == prices.open_ms[row + 1] == prices.open_ms[row] + HOUR_MS for row, at in gate.asked)


@settings(max_examples=100, deadline=None)
@given(BARS, st.integers(0, 23))
def test_days_add_up_to_bars_and_hold_zeros(bars, hour):
    prices, orders = world(bars, hour * HOUR_MS)
    result = replay(prices, orders, funding_bps_per_8h=1.0, admit=Gate())
    first, last = int(prices.open_ms[0] // DAY_MS), int(prices.open_ms[-1] // DAY_MS)
    daily = result.daily(prices.open_ms, first - 1, last + 2)
    assert daily["date"].cast(pl.Int32).to_list() == list(range(first - 1, last + 3))
    for name, per_bar in (("gross_bps", result.gross_bps), ("cost_bps", result.cost_bps), ("net_bps", result.gross_bps - result.cost_bps)):
        by_hand = [per_bar[prices.open_ms // DAY_MS == day].sum() for day in range(first - 1, last + 3)]
        np.testing.assert_allclose(daily[name], by_hand, atol=1e-9)
    assert daily["trades"].sum() == len(result.trades)
    assert daily["wins"].sum() == (result.trades["net_bps"] > 0).sum()
    assert daily.row(0)[1:] == daily.row(-1)[1:] == (0, 0, 0, 0, 0)
    part = result.daily(prices.open_ms, first, first)
    assert part.equals(daily.slice(1, 1))


def flat(price, n):
    return prices_of(*[np.full(n, price)] * 4)


def test_a_trade_is_counted_on_the_day_of_its_last_profit():
    """An opposite decision at 23:00-24:00 leaves at the open of midnight: its last move, and the trade, belong to the new day."""
    close = np.array([100.0, 101, 102, 103, 104, 105])
    prices = prices_of(close, close, close, close, start_ms=DAY_MS - 4 * HOUR_MS)  # bars open at 21:00 … 02:00
    reversed_ = replay(prices, orders_of([1, 0, -1, 0, 0, 0], horizon=[9] * 6), funding_bps_per_8h=0, admit=Gate({2}))
    assert reversed_.trades["exit_ms"].item() == DAY_MS
    daily = reversed_.daily(prices.open_ms, 0, 1)
    assert daily["gross_bps"].to_list() == pytest.approx([1e4 / 101, 1e4 / 101])
    assert daily["trades"].to_list() == [0, 1]
    ended = replay(prices, orders_of([1, 0, 0, 0, 0, 0], horizon=2), funding_bps_per_8h=0, admit=Gate())
    assert ended.trades["exit_ms"].item() == DAY_MS  # the close of 23:00-24:00 is still the old day
    assert ended.daily(prices.open_ms, 0, 1)["trades"].to_list() == [1, 0]


def test_each_side_of_a_trade_pays_half():
    prices = flat(100.0, 12)
    result = replay(prices, orders_of([0, 1] + [0] * 10, horizon=3, cost=10.0), funding_bps_per_8h=0, admit=Gate())
    assert result.cost_bps.tolist() == [0, 0, 5, 0, 5] + [0] * 7
    one_bar = replay(prices, orders_of([0, 1] + [0] * 10, horizon=1, cost=10.0), funding_bps_per_8h=0, admit=Gate())
    assert one_bar.cost_bps.tolist() == [0, 0, 10] + [0] * 9
    open_ = replay(prices, orders_of([0] * 9 + [1, 0, 0], horizon=9, cost=10.0), funding_bps_per_8h=0, admit=Gate())
    assert open_.cost_bps.tolist() == [0] * 10 + [5, 0]
    assert open_.trades.is_empty()


@pytest.mark.parametrize(("side", "paid"), [(1, 1.0), (-1, -1.0)])
def test_longs_pay_positive_funding_for_the_time_they_hold(side, paid):
    prices, action = flat(100.0, 20), np.zeros(20)
    action[2] = side
    held = replay(prices, orders_of(action, horizon=8), funding_bps_per_8h=1.0, admit=Gate())
    assert held.trades["cost_bps"].item() == pytest.approx(paid)
    action[6] = -side  # in bars 3..6, out at the open of bar 7: four of the eight hours
    cut = replay(prices, orders_of(action, horizon=8), funding_bps_per_8h=1.0, admit=Gate({6}))
    assert cut.trades["cost_bps"].item() == pytest.approx(paid / 2)


def test_no_orders_no_profit():
    prices = Prices.of(noise(1, 5), HOUR_MS)
    result = replay(prices, orders_of(np.zeros(120)), funding_bps_per_8h=1.0, admit=Gate())
    assert not result.gross_bps.any()
    assert not result.cost_bps.any()
    assert result.trades.is_empty()
    days = result.daily(prices.open_ms, 100, 102)
    assert days.height == 3
    assert days["trades"].sum() == 0


@settings(max_examples=60, deadline=None)
@given(BARS)
def test_long_is_minus_short_before_costs_and_stops(bars):
    prices, orders = world(bars)
    one_sided = np.abs(orders.action)
    long, short = (
        replay(prices, orders_of(side * one_sided, orders.horizon_bars, stop=np.nan), funding_bps_per_8h=0, admit=Gate())
        for side in (1, -1)
    )
    np.testing.assert_allclose(long.gross_bps, -short.gross_bps, atol=1e-9)


@pytest.mark.parametrize("horizon", [1, 4])
@pytest.mark.parametrize("side", [1, -1])
def test_a_trade_earns_its_label(horizon, side):
    """No stop, no cost: side × simple return between exactly the bars that the label's log return is taken between."""
    candles = noise(3, 6).with_row_index().filter(~pl.col("index").is_in([40, 41, 90])).drop("index")
    prices, labels = Prices.of(candles, HOUR_MS), gross_labels(candles, horizon, "1h")
    for row in np.flatnonzero(labels["gross_bps"].is_not_null().to_numpy()):
        action = np.zeros(candles.height)
        action[row] = side
        trade = replay(prices, orders_of(action, horizon, stop=np.nan), funding_bps_per_8h=0, admit=Gate()).trades
        assert trade["gross_bps"].item() == pytest.approx(side * 1e4 * np.expm1(labels["gross_bps"][int(row)] / 1e4), abs=1e-6)
        assert trade["entry_ms"].item() == prices.open_ms[row] + HOUR_MS
        assert trade["exit_ms"].item() == labels["label_end_ms"][int(row)]


@pytest.mark.parametrize(("low", "open_", "exit_"), [(98.8, 99.5, 98.9), (97.0, 98.0, 98.0), (99.0, 99.5, 99.0), (99.01, 99.5, 100.0)])
def test_a_stop_slips_towards_the_extreme_or_fills_at_a_worse_open(low, open_, exit_):
    o, lo, c = np.full(6, 100.0), np.full(6, 100.0), np.full(6, 100.0)
    o[3], lo[3] = open_, low
    result = replay(prices_of(o, o, lo, c), orders_of([0, 1, 0, 0, 0, 0], horizon=4, stop=100.0), funding_bps_per_8h=0, admit=Gate())
    assert result.trades["gross_bps"].item() == pytest.approx((exit_ - 100) * 100)


def test_a_horizon_inside_an_outage_leaves_at_the_first_price_after_it():
    """The close before the outage is a price nobody could have chosen without knowing that the outage comes."""
    close = [100.0, 100, 100, 100, 80, 80, 80]
    prices = prices_of(close, close, close, close, hours=[1, 1, 1, 1, 10, 1, 1])
    result = replay(prices, orders_of([0, 1, 0, 0, 0, 0, 0], horizon=4, stop=np.nan), funding_bps_per_8h=0, admit=Gate())
    assert result.trades.select("exit_ms", "gross_bps", "exit_reason").row(0) == (14 * HOUR_MS, -2000.0, "gap")


def test_a_reversal_enters_at_the_open_that_ends_the_old_trade():
    price = np.array([100.0, 100, 100, 102, 104, 106, 108, 108])
    prices = prices_of(price, price, price, price)
    result = replay(prices, orders_of([0, 1, 1, 0, -1, 0, 0, 0], horizon=9, stop=np.nan), funding_bps_per_8h=0, admit=(gate := Gate()))
    assert [row for row, _ in gate.asked] == [1, 4]  # the second buy falls into the first trade
    assert result.trades["exit_reason"].to_list() == ["opposite"]
    assert result.trades["gross_bps"].item() == pytest.approx(600)
    assert result.gross_bps.sum() == pytest.approx(600 - 1e4 * 2 / 106)  # the short is open at the end, and marked


def test_a_decision_before_a_gap_or_on_the_last_bar_is_not_traded():
    prices = prices_of(*[np.full(4, 100.0)] * 4, hours=[1, 1, 2, 1])
    gate = Gate()
    assert replay(prices, orders_of([0, 1, 0, 1]), funding_bps_per_8h=0, admit=gate).trades.is_empty()
    assert gate.asked == []
