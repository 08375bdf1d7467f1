"""Rules that follow a move."""

import polars as pl

from hamilton_client.core.contracts import Regime
from hamilton_client.core.engines.base import excess, rule, toward

gap, score, path = pl.col("sma_gap_24_72"), pl.col("trend_score_48"), pl.col("efficiency_ratio_48")
noise = pl.col("volatility_72") * 24**0.5
pace, thrust = pl.col("rsi_14") - 50, pl.col("return_12")

ENGINES = (
    rule(
        "trend_v1",
        "moving-average crossover with a band, 24 over 72 bars: Brock, Lakonishok, LeBaron 1992",
        regimes={Regime.TREND},
        horizon_bars=24,
        direction=toward(gap.abs() > 0.25 * noise, gap),
        strength=excess(gap / noise, 0.25, 1.5),
    ),
    rule(
        "trend_v2",
        "time-series momentum scaled by volatility: Moskowitz, Ooi, Pedersen 2012; taken on an efficient path: Kaufman 1995",
        regimes={Regime.TREND},
        horizon_bars=24,
        direction=toward((score.abs() > 1) & (path > 0.2), score),
        strength=excess(score, 1, 3),
    ),
    rule(
        "momentum",
        "relative strength index beyond 60/40 in the direction of the 12-bar return: Wilder 1978",
        regimes={Regime.TREND, Regime.RANGE},
        horizon_bars=8,
        direction=toward((pace.abs() > 10) & (pace * thrust > 0), pace),
        strength=excess(pace, 10, 40),
    ),
)
