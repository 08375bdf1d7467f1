"""Rules that expect a return to the middle."""

import polars as pl

from hamilton_client.core.contracts import Regime
from hamilton_client.core.engines.base import excess, rule, toward

stretch = pl.col("zscore_24")
place = pl.col("donchian_position_48") - 0.5
level = pl.col("donchian_position_72") - 0.5
wick = pl.when(level < 0).then(pl.col("lower_wick")).otherwise(pl.col("upper_wick"))

ENGINES = (
    rule(
        "mean_reversion",
        "close outside two-sigma Bollinger bands of 24 bars: Bollinger 2001",
        regimes={Regime.RANGE, Regime.PANIC},
        horizon_bars=8,
        direction=toward(stretch.abs() > 2, -stretch),
        strength=excess(stretch, 2, 4),
    ),
    rule(
        "range_trading",
        "stochastic oscillator of 48 bars beyond 15/85 while the path is inefficient: Lane 1984, Kaufman 1995",
        regimes={Regime.RANGE},
        horizon_bars=12,
        direction=toward((place.abs() > 0.35) & (pl.col("efficiency_ratio_48") < 0.3), -place),
        strength=excess(place, 0.35, 0.5),
    ),
    rule(
        "support_resistance",
        "long wick rejecting the outer quarter of the 72-bar range: bounces at support and resistance, Osler 2000",
        regimes={Regime.RANGE},
        horizon_bars=8,
        direction=toward((level.abs() > 0.25) & (wick > 0.5), -level),
        strength=excess(wick, 0.5, 0.9),
    ),
)
