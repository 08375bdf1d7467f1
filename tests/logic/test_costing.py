from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from engine_assets.logic.costing import VOLATILITY_DAYS, cost_snapshot
from hamilton_client.core.contracts import HuracanError
from hamilton_client.core.policy import FeeSchedule
from market import POLICY, START, candles_of, noise, scaled

CANDLES = noise(1, 60)
AS_OF = START + timedelta(days=60, hours=2)


def snapshot(candles=CANDLES, policy=POLICY, as_of=AS_OF):
    return cost_snapshot("BTCUSDT", candles, policy, as_of, 1.5, "book", "2026-07-15")


def fees(*rows):
    schedule = tuple(FeeSchedule(since=since, tier="t", maker_bps=1.0, taker_bps=taker, funding_bps_per_8h=0.5) for since, taker in rows)
    return POLICY.model_copy(update={"cost_model": POLICY.cost_model.model_copy(update={"fee_schedule": {"binance": schedule}})})


def test_every_figure_has_its_date():
    costs = snapshot()
    assert (costs.maker_fee_bps, costs.taker_fee_bps, costs.funding_bps_per_8h) == (2.0, 4.0, 1.0)
    assert (costs.spread_bps, costs.spread_source) == (1.5, "book")
    assert (costs.impact_factor, costs.participation_rate) == (0.5, 0.1)
    assert costs.as_of == {"fees": "2019-09-01", "spread": "2026-07-15", "volatility": "2023-03-04", "volume": "2023-03-04"}


def test_volatility_and_volume_are_of_the_last_complete_days():
    closes = CANDLES["close"].to_numpy().reshape(-1, 24)[-VOLATILITY_DAYS:, -1]
    volume = (CANDLES["close"] * CANDLES["volume"]).to_numpy().reshape(-1, 24).sum(axis=1)[-VOLATILITY_DAYS:]
    costs = snapshot()
    assert costs.volatility_daily_bps == pytest.approx(1e4 * np.diff(np.log(closes)).std(ddof=1))
    assert costs.volatility_daily_bps == pytest.approx(60 * np.sqrt(24), rel=0.3)
    assert costs.volume_daily_usd == pytest.approx(np.median(volume))
    started = candles_of(np.full(24 * 60 + 2, 5.0), volume=9.0).tail(2)  # two hours of a new day
    assert snapshot(pl.concat([CANDLES, started])) == costs
    assert snapshot(scaled(pl.concat([CANDLES, started]), pl.col("ts") >= AS_OF - timedelta(hours=2))) == costs


def test_the_fees_are_those_of_the_day():
    policy = fees(("2020-01-01", 5.0), ("2023-02-01", 4.5), ("2024-01-01", 3.0))
    assert snapshot(policy=policy).taker_fee_bps == 4.5
    assert snapshot(policy=policy, as_of=datetime(2023, 1, 31, 2, tzinfo=UTC)).taker_fee_bps == 5.0


def test_missing_fees_are_refused_with_advice():
    with pytest.raises(HuracanError, match="starts with 2024-01-01"):
        snapshot(policy=fees(("2024-01-01", 3.0)))
    elsewhere = POLICY.model_copy(update={"market": POLICY.market.model_copy(update={"venue": "nowhere"})})
    with pytest.raises(HuracanError, match="no venue 'nowhere'"):
        snapshot(policy=elsewhere)


@pytest.mark.parametrize("hours", [0, 5, 30])
def test_a_young_coin_has_no_figures_yet(hours):
    costs = snapshot(CANDLES[:hours], as_of=START + timedelta(hours=hours))
    assert costs.volatility_daily_bps == 0
    assert (costs.volume_daily_usd > 0) == (hours >= 24)
