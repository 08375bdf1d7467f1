"""Conformance (stats.md §6, cases cost.*), invariants as properties, and a bar context that looks back only."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hamilton_client.core.contracts import CostSnapshot, HuracanError
from hamilton_client.core.costs import (
    CONTEXT_WARMUP_BARS,
    BarContext,
    bar_context,
    breakeven_hit_rate,
    context_warmup_bars,
    fees_at,
    fees_bps,
    funding_bps,
    max_order_usd,
    round_trip_costs,
    sqrt_impact_bps,
)
from hamilton_client.core.policy import FeeSchedule, Policy

POLICY = Policy.model_validate(yaml.safe_load((Path(__file__).parents[2] / "config/policy.yaml").read_text()))
SNAPSHOT = CostSnapshot(
    symbol="BTCUSDT",
    maker_fee_bps=2,
    taker_fee_bps=4,
    spread_bps=1.5,
    spread_source="static",
    impact_factor=0.5,
    participation_rate=0.1,
    funding_bps_per_8h=1.0,
    volatility_daily_bps=400,
    volume_daily_usd=1e7,
    as_of={},
)
T0 = datetime(2025, 1, 1, tzinfo=UTC)
EVENTS = [(T0, 1e-4), (T0 + timedelta(hours=8), 1e-4), (T0 + timedelta(hours=16), -3e-4), (T0 + timedelta(hours=24), 2e-4)]


@pytest.mark.parametrize(
    ("volatility", "order", "volume", "factor", "expected"),
    [
        (200, 1e6, 1e9, 1.0, 6.324555320336758),
        (400, 1e4, 1e7, 0.5, 6.324555320336758),
        (400, 4e4, 1e7, 0.5, 12.649110640673516),
        (400, 0, 1e7, 0.5, 0.0),
    ],
)
def test_conformance_impact(volatility, order, volume, factor, expected):
    assert sqrt_impact_bps(np.array([order]), np.array([volatility]), np.array([volume]), factor)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("entry", "exit_", "expected"),
    [
        (timedelta(hours=8), timedelta(hours=9), 0.0),
        (timedelta(hours=1), timedelta(hours=21), -2.0),
        (timedelta(hours=1), timedelta(hours=8), 1.0),
        (timedelta(hours=8, minutes=1), timedelta(hours=15, minutes=59), 0.0),
    ],
)
def test_conformance_funding(entry, exit_, expected):
    assert funding_bps(EVENTS, T0 + entry, T0 + exit_) == pytest.approx(expected, abs=1e-9)
    assert funding_bps(EVENTS, T0 + entry, T0 + exit_, side=-1) == pytest.approx(-expected, abs=1e-9)


def test_conformance_fees_cap_and_breakeven():
    assert fees_bps(SNAPSHOT) == 8.0
    assert fees_bps(SNAPSHOT.model_copy(update={"taker_fee_bps": 5.0}), "maker", "taker") == 7.0
    assert max_order_usd(np.array([50_000.0]), 0.1).tolist() == [5000.0]
    assert breakeven_hit_rate(12, 60) == pytest.approx(0.6, abs=1e-12)
    assert breakeven_hit_rate(12, 250) == pytest.approx(0.524, abs=1e-12)


def bars_of(volatility=400.0, volume=1e7, bar_volume=1e6):
    one = np.ones(1)
    return BarContext(np.zeros(1, np.int64), np.zeros(1, np.int8), one * 60, one * bar_volume, one * volatility, one * volume)


def cost(size=1e4, horizon=4, side=1, bars=None, snapshot=SNAPSHOT, policy=POLICY):
    return round_trip_costs(np.array([size]), np.array([horizon]), np.array([side], np.int8), bars or bars_of(), snapshot, policy)


def test_a_round_trip_is_the_sum_of_its_parts():
    got = cost()
    assert (got.fees_bps[0], got.spread_bps[0], got.funding_bps[0]) == (8.0, 1.5, 0.5)
    assert got.impact_bps[0] == pytest.approx(2 * 6.324555320336758)
    assert got.total_bps[0] == pytest.approx(8 + 1.5 + 2 * 6.324555320336758 + 0.5)
    assert (got.safety_margin_bps, got.max_order_usd[0]) == (0.5, 1e5)


def test_spot_has_no_funding():
    spot = POLICY.model_copy(update={"market": POLICY.market.model_copy(update={"instrument": "spot"})})
    assert cost(policy=spot).funding_bps[0] == 0


sizes, rates = st.floats(1, 1e6), st.floats(0, 50)


@given(sizes, rates, rates, st.floats(1, 2000), st.integers(1, 100), st.floats(1, 3))
def test_more_of_anything_never_costs_less(size, fee, spread, volatility, horizon, more):
    def total(size=size, fee=fee, spread=spread, volatility=volatility):
        snapshot = SNAPSHOT.model_copy(update={"taker_fee_bps": fee, "spread_bps": spread, "funding_bps_per_8h": 0.0})
        return cost(size, horizon, bars=bars_of(volatility=volatility), snapshot=snapshot).total_bps[0]

    base = total()
    assert base >= 0
    assert total(size=size * more) >= base
    assert total(fee=fee * more) >= base
    assert total(spread=spread * more) >= base
    assert total(volatility=volatility * more) >= base


@given(sizes)
def test_impact_is_concave(size):
    assert cost(size).impact_bps[0] <= cost(2 * size).impact_bps[0] < 2 * cost(size).impact_bps[0]


@given(st.floats(-10, 10), st.integers(1, 200))
def test_a_short_receives_what_a_long_pays(rate, horizon):
    snapshot = SNAPSHOT.model_copy(update={"funding_bps_per_8h": rate})
    long, short = (cost(horizon=horizon, side=side, snapshot=snapshot).funding_bps[0] for side in (1, -1))
    assert long == -short
    assert long == pytest.approx(rate * horizon / 8)


@pytest.mark.parametrize("field", ["taker_fee_bps", "spread_bps", "impact_factor", "funding_bps_per_8h"])
def test_a_missing_snapshot_figure_makes_the_total_unknown(field):
    assert np.isnan(cost(snapshot=SNAPSHOT.model_copy(update={field: float("nan")})).total_bps[0])


@pytest.mark.parametrize("bars", [bars_of(volatility=np.nan), bars_of(volume=np.nan), bars_of(volume=0.0)])
def test_a_missing_market_figure_makes_the_total_unknown(bars):
    assert np.isnan(cost(bars=bars).total_bps[0])


SCHEDULE = tuple(
    FeeSchedule(since=since, tier="t", maker_bps=1, taker_bps=taker)
    for since, taker in (("2024-01-01", 4), ("2019-09-01", 5), ("2025-06-01", 3))
)


@pytest.mark.parametrize(("day", "taker"), [("2019-09-01", 5), ("2023-12-31", 5), ("2024-01-01", 4), ("2026-01-01", 3)])
def test_the_newest_fee_row_not_after_the_day(day, taker):
    assert fees_at(SCHEDULE, date.fromisoformat(day)).taker_bps == taker


@pytest.mark.parametrize("schedule", [SCHEDULE, ()])
def test_no_fees_known_says_what_to_add(schedule):
    with pytest.raises(HuracanError, match=r"fee_schedule in config/policy\.yaml"):
        fees_at(schedule, date(2018, 1, 1))


def candles_of(n=200, seed=0, gap=None, **columns):
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.006, n)))
    hours = np.arange(n) + np.where(np.arange(n) >= (n if gap is None else gap), 3, 0)
    stamps = pl.Series("ts", [T0 + timedelta(hours=int(h)) for h in hours]).dt.cast_time_unit("us")
    frame = pl.DataFrame({"ts": stamps, "open": close, "high": close, "low": close, "close": close, "volume": rng.uniform(50, 100, n)})
    return frame.with_columns(**{name: pl.Series(values, dtype=pl.Float64) for name, values in columns.items()})


def context(frame, volatility_bars=72):
    return bar_context(frame, np.zeros(frame.height, np.int8), base_minutes=60, volatility_bars=volatility_bars)


def test_context_figures():
    frame = candles_of()
    got = context(frame)
    close, dollars = frame["close"].to_numpy(), (frame["close"] * frame["volume"]).to_numpy()
    returns = np.diff(np.log(close))[-72:]
    assert got.sigma_bps[-1] == pytest.approx(1e4 * returns.std(ddof=1))
    assert got.volatility_daily_bps[-1] == pytest.approx(got.sigma_bps[-1] * np.sqrt(24))
    assert got.volume_daily_usd[-1] == pytest.approx(dollars[-24:].sum())
    assert got.bar_volume_usd[-1] == pytest.approx(dollars[-1])
    assert got.close_ms[0] == int(T0.timestamp() * 1000) + 3_600_000
    assert np.isfinite(got.sigma_bps).sum() == 200 - 72
    assert np.isfinite(got.volume_daily_usd).sum() == 200 - 23


@given(st.integers(1, 200))
def test_context_never_looks_ahead(cut):
    frame = candles_of()
    whole, part = context(frame), context(frame.head(cut))
    for name in ("sigma_bps", "bar_volume_usd", "volatility_daily_bps", "volume_daily_usd"):
        assert getattr(whole, name)[:cut].tobytes() == getattr(part, name).tobytes()


@given(st.integers(0, 100))
def test_context_remembers_no_more_than_its_warm_up(start):
    frame = candles_of()
    whole, tail = context(frame), context(frame.slice(start))
    for name in ("sigma_bps", "bar_volume_usd", "volatility_daily_bps", "volume_daily_usd"):
        assert getattr(whole, name)[start + CONTEXT_WARMUP_BARS - 1 :].tobytes() == getattr(tail, name)[CONTEXT_WARMUP_BARS - 1 :].tobytes()
    assert context_warmup_bars(60, 72) == CONTEXT_WARMUP_BARS == 73
    assert context_warmup_bars(15, 72) == 96


def test_context_survives_bad_candles():
    close = np.full(200, 100.0)
    flat = context(candles_of(close=close))
    assert flat.sigma_bps[-1] == 0
    holes = [None if i % 10 == 0 else 100.0 + i % 3 for i in range(200)]
    holed = context(candles_of(close=holes, volume=[None if i == 199 else 1.0 for i in range(200)]))
    assert holed.sigma_bps[-1] > 0
    assert np.isnan(holed.bar_volume_usd[-1])
    assert holed.volume_daily_usd[-1] > 0
    mostly = context(candles_of(close=[100.0 if i % 4 < 2 else None for i in range(200)]))
    assert np.isnan(mostly.sigma_bps).all()
    assert np.isnan(context(candles_of(close=np.zeros(200))).sigma_bps).all()
    assert len(context(candles_of(5))) == 5
    assert len(context(candles_of(5).clear())) == 0


def test_a_gap_is_neither_a_return_nor_a_full_day():
    frame = candles_of(gap=190)
    jump = frame.with_columns(close=pl.when(pl.int_range(pl.len()) >= 190).then(500.0).otherwise(pl.col("close")))
    assert context(jump).sigma_bps[190] < 1.2 * context(frame).sigma_bps[189]
    dollars = (frame["close"] * frame["volume"]).to_numpy()
    assert context(frame).volume_daily_usd[190] == pytest.approx(dollars[191 - 21 : 191].sum())


def test_quote_volume_is_preferred_and_codes_must_fit():
    got = context(candles_of(30, quote_volume=[7.0] * 29 + [None]))
    assert got.bar_volume_usd[0] == 7.0
    assert got.bar_volume_usd[-1] > 1000
    with pytest.raises(HuracanError, match="3 regime codes for 30 candles"):
        bar_context(candles_of(30), np.zeros(3, np.int8), base_minutes=60, volatility_bars=72)


def test_take_keeps_rows_together():
    got = context(candles_of()).take(np.array([150, 160]))
    assert len(got) == 2
    assert got.close_ms[1] - got.close_ms[0] == 10 * 3_600_000
