"""The voters that are models: the champion of one timeframe each."""

from hamilton_client.core.contracts import NEVER_TRADED, Regime
from hamilton_client.core.engines.base import Engine

TRADED = frozenset(Regime) - NEVER_TRADED
SOURCE = "LightGBM (Ke et al. 2017) of the segment in force, calibrated out of fold"

ENGINES = tuple(
    Engine(f"learned_{timeframe}", "learned", TRADED, horizon_bars, SOURCE, timeframe=timeframe)
    for timeframe, horizon_bars in (("1h", 4), ("4h", 12), ("1d", 48))
)
