"""Rules that act when a boundary gives way."""

import polars as pl

from hamilton_client.core.contracts import Regime
from hamilton_client.core.engines.base import excess, rule

beyond = pl.col("channel_break_48")

ENGINES = (
    rule(
        "breakout",
        "close beyond the high or low of the 48 bars before: Donchian's channel breakout",
        regimes={Regime.TREND, Regime.RANGE},
        horizon_bars=12,
        direction=beyond.sign(),
        strength=excess(beyond / pl.col("atr_24"), 0, 2),
    ),
)
