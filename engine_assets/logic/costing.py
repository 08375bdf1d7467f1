"""The cost snapshot of a coin: dated fees, quoted spread, and recent volatility and volume of its candles."""

from datetime import UTC, datetime

import numpy as np
import polars as pl

from hamilton_client.core.contracts import CostSnapshot, HuracanError
from hamilton_client.core.costs import fees_at
from hamilton_client.core.policy import Policy

VOLATILITY_DAYS = 30


def cost_snapshot(
    symbol: str, candles: pl.DataFrame, policy: Policy, as_of: datetime, spread_bps: float, spread_source: str, spread_as_of: str
) -> CostSnapshot:
    """Collect every figure of `costs.json` with its date; volatility and volume are of the last 30 complete days of base candles.

    Raises HuracanError where the venue has no fees for the date.
    """
    try:
        schedule = policy.cost_model.fee_schedule[policy.market.venue]
    except KeyError:
        raise HuracanError(f"cost_model.fee_schedule has no venue {policy.market.venue!r}; add its dated fees to policy.yaml") from None
    fees = fees_at(schedule, as_of.date())
    midnight = as_of.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    daily = (
        candles.filter(pl.col("ts") < midnight)
        .group_by_dynamic("ts", every="1d")
        .agg(pl.col("close").last(), usd=(pl.col("close") * pl.col("volume")).sum())
        .tail(VOLATILITY_DAYS)
    )
    returns = daily["close"].log().diff().drop_nulls().to_numpy() * 1e4
    day = f"{as_of:%Y-%m-%d}"
    return CostSnapshot(
        symbol=symbol,
        maker_fee_bps=fees.maker_bps,
        taker_fee_bps=fees.taker_bps,
        spread_bps=spread_bps,
        spread_source=spread_source,
        impact_factor=policy.cost_model.slippage.impact_factor,
        participation_rate=policy.cost_model.slippage.participation_rate,
        funding_bps_per_8h=fees.funding_bps_per_8h,
        volatility_daily_bps=float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0,
        volume_daily_usd=float(daily["usd"].median() or 0.0),  # type: ignore[arg-type]  # a Float64 median
        as_of={"fees": fees.since, "spread": spread_as_of, "volatility": day, "volume": day},
    )
