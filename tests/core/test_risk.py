"""Every limit refuses by name, none traps a position, and no sequence of orders ends above a limit."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hamilton_client.core.contracts import Action, HuracanError, RiskPresetName
from hamilton_client.core.policy import Policy
from hamilton_client.core.risk import DAY_MS, SIZE_LIMITS, RiskState, admit, preset_of, size, stop_distance_bps

POLICY = Policy.model_validate(yaml.safe_load((Path(__file__).parents[2] / "config/policy.yaml").read_text()))
SPOT = POLICY.model_copy(update={"market": POLICY.market.model_copy(update={"instrument": "spot"})})
BALANCED = RiskPresetName.BALANCED
HOUR = 3_600_000
NOON = 1000 * DAY_MS + 12 * HOUR
SECTORS = {"ETHUSDT": "layer1", "SOLUSDT": "layer1", "ADAUSDT": "layer1", "DOTUSDT": "layer1", "BTCUSDT": "store"}


def account(nav=100_000.0, **positions):
    state = RiskState(nav)
    state.mark(nav, NOON)
    for symbol, usd in positions.items():
        state.opened(symbol, usd)
    return state


def ask(state, symbol="BTCUSDT", action=Action.BUY, usd=1000.0, at=NOON, policy=POLICY, portfolio=True):
    return admit(state, symbol, action, usd, at, policy, BALANCED, SECTORS, portfolio)


def test_an_order_within_all_limits_passes_whole():
    assert ask(account()) == type(ask(account()))(1000.0, None)
    assert ask(account(), usd=10_000.0).size_usd == 10_000


def fallen(nav, at=NOON):
    state = account()
    state.mark(nav, at)
    return state


def lost(usd, at=NOON):
    state = account()
    state.closed("XRPUSDT", -usd, at)
    return state


def closed_ago(ms):
    state = account()
    state.closed("BTCUSDT", 5.0, NOON - ms)
    return state


def decided_ago(ms, action=Action.BUY):
    state = account()
    state.decided("BTCUSDT", action, NOON - ms)
    return state


def crowded(count, usd=10.0):
    return account(**{f"C{i}": usd for i in range(count)})


@pytest.mark.parametrize(
    ("state", "limit"),
    [
        (fallen(95_000.0), "circuit_breaker daily_drawdown"),
        (fallen(85_000.0), "circuit_breaker total_drawdown"),
        (lost(2500.0), "daily_loss_limit"),
        (closed_ago(2 * HOUR - 1), "cooldown_bars"),
        (decided_ago(59_999), "dedup_seconds"),
        (account(BTCUSDT=10_000.0), "coin"),
        (account(ETHUSDT=30_000.0, BTCUSDT=0.0), "sector"),
        (crowded(100, 1000.0), "sector other"),
        (crowded(500), "max_concurrent_trades"),
        (RiskState(0.0), "no_nav"),
    ],
)
def test_a_limit_that_is_reached_refuses_by_name(state, limit):
    symbol = "SOLUSDT" if limit == "sector" else "NEWUSDT" if limit == "sector other" else "BTCUSDT"
    got = ask(state, symbol)
    assert got.size_usd == 0
    assert got.reason is not None
    assert got.reason.startswith(limit)


@pytest.mark.parametrize(
    "state",
    [
        fallen(95_001.0),
        lost(2499.0),
        closed_ago(2 * HOUR),
        decided_ago(60_000),
        decided_ago(1, Action.SELL),
        account(BTCUSDT=8000.0),
        crowded(100),
    ],
)
def test_just_inside_a_limit_passes(state):
    assert ask(state) == ask(account())


def test_venue_global_and_leverage_limits():
    many = {f"C{i}USDT": 9000.0 for i in range(11)}
    spread_out = {name: f"s{i}" for i, name in enumerate(many)}
    state = account(**many)
    assert admit(state, "BTCUSDT", Action.BUY, 1000.0, NOON, POLICY, BALANCED, spread_out).reason.startswith("venue binance")
    limits = POLICY.risk.limits_pct_of_nav

    def relaxed(**update):
        wide = {"venue": 1000, "sector": 1000} | update
        return POLICY.model_copy(update={"risk": POLICY.risk.model_copy(update={"limits_pct_of_nav": limits.model_copy(update=wide)})})

    state.opened("C0USDT", 60_000.0)
    assert admit(state, "BTCUSDT", Action.BUY, 1000.0, NOON, relaxed(), BALANCED, {}).reason.startswith("global")
    state.opened("C0USDT", 60_000.0)
    assert admit(state, "BTCUSDT", Action.BUY, 1000.0, NOON, relaxed(global_=1000), BALANCED, {}).reason.startswith("max_leverage")


def test_orders_shrink_in_the_upper_band_of_a_limit():
    assert ask(account(ETHUSDT=24_000.0), "SOLUSDT").size_usd == 1000
    assert ask(account(ETHUSDT=27_000.0), "SOLUSDT").size_usd == pytest.approx(500)
    assert ask(account(ETHUSDT=27_000.0), "SOLUSDT").reason == "sector layer1: 27000 of 30000 in use"
    assert ask(crowded(300), usd=1000.0).size_usd == pytest.approx(500)
    assert ask(account(BTCUSDT=9500.0), usd=1000.0).size_usd == pytest.approx(250)


def test_portfolio_limits_off_leaves_the_limits_of_the_coin():
    heavy = fallen(80_000.0)
    for i in range(500):
        heavy.opened(f"C{i}", 1000.0)
    assert ask(heavy, portfolio=False) == ask(account())
    assert ask(lost(2500.0), portfolio=False).reason.startswith("daily_loss_limit")
    assert ask(closed_ago(HOUR), portfolio=False).reason.startswith("cooldown_bars")
    assert ask(account(BTCUSDT=10_000.0), portfolio=False).reason.startswith("coin")


@pytest.mark.parametrize("state", [fallen(50_000.0), lost(9000.0), crowded(500), closed_ago(1), account()])
def test_no_limit_traps_a_position(state):
    state.opened("BTCUSDT", 4000.0)
    assert ask(state, action=Action.SELL, usd=4000.0) == type(ask(state))(4000.0, None)
    assert ask(state, action=Action.SELL, usd=1500.0).size_usd == 1500


def test_a_reversal_under_a_breaker_only_closes():
    state = fallen(90_000.0)
    state.opened("BTCUSDT", 4000.0)
    got = ask(state, action=Action.SELL, usd=6000.0)
    assert got.size_usd == 4000
    assert got.reason.startswith("circuit_breaker")
    healthy = account(BTCUSDT=4000.0)
    assert ask(healthy, action=Action.SELL, usd=6000.0).size_usd == 6000


def test_on_spot_a_sell_only_closes():
    assert ask(account(), action=Action.SELL, policy=SPOT).reason == "spot_sell_only_closes"
    got = ask(account(BTCUSDT=700.0), action=Action.SELL, policy=SPOT)
    assert (got.size_usd, got.reason) == (700.0, "spot_sell_only_closes")
    assert ask(account(), action=Action.BUY, policy=SPOT).size_usd == 1000


@pytest.mark.parametrize(("action", "usd"), [(Action.HOLD, 1000.0), (Action.BUY, 0.0), (Action.BUY, float("nan"))])
def test_nothing_to_trade(action, usd):
    assert ask(account(), action=action, usd=usd).reason == "nothing_to_trade"


def test_a_new_day_forgets_yesterdays_loss_but_not_the_peak():
    tomorrow = NOON + DAY_MS
    assert ask(lost(5000.0), at=tomorrow).reason is None
    state = fallen(94_000.0)
    state.mark(94_000.0, tomorrow)
    assert ask(state, at=tomorrow).reason is None
    state.mark(84_000.0, tomorrow)
    assert ask(state, at=tomorrow).reason.startswith("circuit_breaker total")
    overnight = account()
    overnight.mark(94_000.0, tomorrow)  # fell between the last mark and the first of the day
    assert ask(overnight, at=tomorrow).reason.startswith("circuit_breaker daily")


orders = st.lists(
    st.tuples(st.sampled_from([*SECTORS, "XUSDT"]), st.sampled_from([Action.BUY, Action.SELL]), st.floats(1, 200_000)), max_size=30
)


@given(orders)
def test_no_sequence_of_orders_ends_above_a_limit(sequence):
    state = account()
    for step, (symbol, action, usd) in enumerate(sequence):
        at = NOON + step * HOUR
        got = ask(state, symbol, action, usd, at)
        assert 0 <= got.size_usd <= usd * (1 + 1e-12)
        assert got.reason is not None or got.size_usd == pytest.approx(usd)
        state.opened(symbol, got.size_usd if action is Action.BUY else -got.size_usd)
        state.decided(symbol, action, at)
        gross = {name: abs(value) for name, value in state.positions.items()}
        assert max(gross.values()) <= 10_000 * (1 + 1e-9)
        assert sum(value for name, value in gross.items() if SECTORS.get(name) == "layer1") <= 30_000 * (1 + 1e-9)
        assert sum(gross.values()) <= 100_000 * (1 + 1e-9)


def test_size_names_the_limit_that_bound_it():
    stop, cap = np.array([2000.0, 100.0, 100.0, np.nan, 100.0]), np.array([1e6, 1e6, 500.0, 1e6, 0.0])
    got = size(stop, cap, POLICY, BALANCED)
    assert got.size_usd[[0, 1, 2, 4]].tolist() == [5000, 10_000, 500, 0]
    assert np.isnan(got.size_usd[3])
    assert [SIZE_LIMITS[i] for i in got.limit[:3]] == ["per_trade_risk", "coin_limit", "participation_rate"]
    wide = POLICY.risk.limits_pct_of_nav.model_copy(update={"coin": 1000})
    policy = POLICY.model_copy(update={"risk": POLICY.risk.model_copy(update={"limits_pct_of_nav": wide})})
    levered = size(np.array([10.0]), np.array([1e9]), policy, BALANCED)
    assert (levered.size_usd[0], SIZE_LIMITS[levered.limit[0]]) == (200_000, "max_leverage")


@given(st.floats(1, 5000), st.floats(1, 3), st.integers(1, 100))
def test_a_stopped_trade_loses_no_more_than_its_risk(sigma, sigmas, horizon):
    stop = stop_distance_bps(np.array([sigma]), np.array([horizon]), sigmas)
    for name in RiskPresetName:
        got = size(stop, np.array([1e12]), POLICY, name).size_usd[0]
        assert got * stop[0] / 1e4 <= POLICY.nav_usd * POLICY.risk_presets[name].per_trade_risk_pct / 100 * (1 + 1e-9)
    assert (
        size(stop, np.array([1e12]), POLICY, RiskPresetName.CONSERVATIVE).size_usd
        <= size(stop, np.array([1e12]), POLICY, BALANCED).size_usd
    )


def test_a_stop_needs_volatility():
    assert stop_distance_bps(np.array([60.0]), np.array([4]), 2.0).tolist() == [240]
    assert np.isnan(stop_distance_bps(np.array([0.0, np.nan]), np.array([4, 4]), 2.0)).all()


def test_an_unknown_preset_names_those_there_are():
    policy = POLICY.model_copy(update={"risk_presets": {BALANCED: POLICY.risk_presets[BALANCED]}})
    with pytest.raises(HuracanError, match=r"'aggressive' is not in the policy; it has: balanced"):
        preset_of(policy, RiskPresetName.AGGRESSIVE)
