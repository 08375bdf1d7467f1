"""Rules for hard markets: outsized bars, rising volatility, volume climaxes."""

import polars as pl

from hamilton_client.core.contracts import Regime
from hamilton_client.core.engines.base import excess, rule, toward

jump = pl.col("return_1") / pl.col("volatility_72")
expansion, drift = pl.col("volatility_ratio_8_72"), pl.col("trend_score_8")
climax, move = pl.col("volume_zscore_24"), pl.col("trend_score_4")

ENGINES = (
    rule(
        "scalping",
        "reversal of a bar beyond two standard deviations: short-term reversal, Lehmann 1990, Jegadeesh 1990",
        regimes={Regime.PANIC, Regime.RANGE},
        horizon_bars=2,
        direction=toward(jump.abs() > 2, -jump),
        strength=excess(jump, 2, 6),
    ),
    rule(
        "volatility",
        "8-bar move while volatility expands over its 72-bar level: volatility breakout, Crabel 1990",
        regimes={Regime.PANIC, Regime.TREND},
        horizon_bars=6,
        direction=toward((expansion > 0.25) & (drift.abs() > 0.75), drift),
        strength=excess(expansion, 0.25, 1.25),
    ),
    rule(
        "liquidity",
        "reversal of a 4-bar move on a volume climax: volume-price reversals, Campbell, Grossman, Wang 1993",
        regimes={Regime.PANIC, Regime.RANGE},
        horizon_bars=4,
        direction=toward((climax > 2) & (move.abs() > 0.75), -move),
        strength=excess(climax, 2, 4),
    ),
)
