"""Small worlds for the tests of `logic`: a recipe that trains in milliseconds, and candles with nothing, or something, to learn."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from engine_assets.logic.evaluate import Book
from engine_assets.logic.fit import TrainingFrame, training_frame
from engine_assets.logic.prepare import all_features, all_regimes
from engine_assets.logic.replay import Prices
from hamilton_client.core.bars import day_hashes
from hamilton_client.core.contracts import CostSnapshot, Regime, RiskPresetName
from hamilton_client.core.costs import bar_context
from hamilton_client.core.features import FeatureRecipe
from hamilton_client.core.layout import timeframe_minutes, timeframe_ms
from hamilton_client.core.policy import Policy
from hamilton_client.core.recipe import Recipe
from hamilton_client.core.regimes import REGIME_CODES, RegimeParams, RegimeRecipe, codes

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START = datetime(2023, 1, 3, tzinfo=UTC)
POLICY = Policy.model_validate(yaml.safe_load((Path(__file__).parents[2] / "config/policy.yaml").read_text()))
SPOT = POLICY.model_copy(update={"market": POLICY.market.model_copy(update={"instrument": "spot"})})
COSTS = CostSnapshot(
    symbol="BTCUSDT",
    maker_fee_bps=2.0,
    taker_fee_bps=4.0,
    spread_bps=1.0,
    spread_source="test",
    impact_factor=0.5,
    participation_rate=0.1,
    funding_bps_per_8h=1.0,
    volatility_daily_bps=300.0,
    volume_daily_usd=1e9,
    as_of={},
)
FREE = COSTS.model_copy(update={"taker_fee_bps": 0.0, "spread_bps": 0.0, "impact_factor": 0.0, "funding_bps_per_8h": 0.0})
REGIMES = RegimeParams(
    er_bars=12, vol_bars=8, vol_rank_bars=40, return_bars=8, z_bars=40, volume_bars=8, volume_ref_bars=40, restart_bars=24
)
SMALL = {
    "name": "small",
    "features": {"features": {"return": [1, 4, 12], "volatility": [8], "zscore": [12], "hour_sin": []}},
    "regimes": RegimeRecipe(by_timeframe={"1h": REGIMES}),
    "horizon_bars": {"1h": 4},
    "folds": {"1h": {"train_days": 20, "test_days": 5, "purge_days": 1}},
    "model": {"rounds": 10, "learning_rate": 0.2, "num_leaves": 7, "min_data_in_leaf": 20},
    "calibration": {"knots": 6, "min_effective_rows": 50},
}


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(SMALL | changes)


def features(**kinds) -> FeatureRecipe:
    return FeatureRecipe.model_validate({"features": kinds})


def candles_of(log_close: np.ndarray, seed: int = 0, timeframe: str = "1h", start: datetime = START, volume: float = 1e6) -> pl.DataFrame:
    """Candles around a log close: opens 1 bps off the previous close, highs and lows as far out as a Brownian path between the two goes.

    Short wicks would make every stop a gift: a bar that jumps over it would still fill at its price.
    """
    rng, rows = np.random.default_rng([seed, 1]), len(log_close)
    log_open = np.r_[log_close[:1], log_close[:-1]] + rng.normal(0, 1e-4, rows)
    middle, move, variance = (log_open + log_close) / 2, log_close - log_open, np.var(np.diff(log_close, prepend=log_close[:1]))
    up, down = (np.sqrt(move**2 - 2 * variance * np.log(rng.random(rows))) / 2 for _ in range(2))
    step = timedelta(minutes=timeframe_minutes(timeframe))
    return pl.DataFrame(
        {
            "ts": pl.Series([start + step * at for at in range(rows)], dtype=pl.Datetime("us", "UTC")),
            "open": np.exp(log_open),
            "high": np.exp(middle + up),
            "low": np.exp(middle - down),
            "close": np.exp(log_close),
            "volume": volume * rng.lognormal(0, 0.3, rows),
        }
    )


def noise(seed: int, days: int, start: datetime = START) -> pl.DataFrame:
    """A random walk of 60 bps hours: nothing to learn."""
    return candles_of(5 + np.cumsum(np.random.default_rng(seed).normal(0, 0.006, days * 24)), seed, start=start)


def drifting(seed: int, days: int, start: datetime = START) -> pl.DataFrame:
    """Drift of 30 bps an hour that changes sign about every two days, under 30 bps of noise: yesterday tells tomorrow."""
    rng = np.random.default_rng(seed)
    side = np.sign(rng.normal()) * np.cumprod(np.where(rng.random(days * 24) < 1 / 48, -1, 1))
    return candles_of(5 + np.cumsum(side * 0.003 + rng.normal(0, 0.003, days * 24)), seed, start=start)


def pegged(days: int, volume: float = 1e6) -> pl.DataFrame:
    """A price that never moves."""
    return (
        candles_of(np.zeros(days * 24))
        .with_columns(*(pl.lit(1.0).alias(name) for name in ("open", "high", "low", "close")))
        .with_columns(volume=pl.lit(volume))
    )


def regime_codes(candles: pl.DataFrame, by: Recipe, timeframe: str = "1h") -> np.ndarray:
    return codes(all_regimes(candles, day_hashes(candles), by, timeframe)["regime"])


def frame_of(candles: pl.DataFrame, by: Recipe, timeframe: str = "1h") -> TrainingFrame:
    built = all_features(candles, day_hashes(candles), by, timeframe)
    return training_frame(candles, built, regime_codes(candles, by, timeframe), by, timeframe)


def code(regime: Regime) -> int:
    return REGIME_CODES.index(regime)


def book_of(
    candles: pl.DataFrame, regime: Regime | np.ndarray = Regime.TREND, costs: CostSnapshot = COSTS, policy: Policy = POLICY
) -> Book:
    state = np.full(candles.height, code(regime), np.int8) if isinstance(regime, Regime) else regime
    context = bar_context(candles, state, base_minutes=60, volatility_bars=policy.exits.volatility_bars)
    return Book("BTCUSDT", Prices.of(candles, timeframe_ms("1h")), context, costs, policy, RiskPresetName.BALANCED)


def scaled(candles: pl.DataFrame, where: pl.Expr) -> pl.DataFrame:
    """Prices and volumes of some rows replaced by other ones: what must not be looked at, or must be."""
    wild = 1.5 + (pl.int_range(pl.len()) * 37 % 11).cast(pl.Float64)
    return candles.with_columns(pl.when(where).then(pl.col(name) * wild).otherwise(pl.col(name)) for name in candles.columns[1:])


def since_ms(at_ms: int) -> pl.Expr:
    return pl.col("ts").dt.epoch("ms") >= at_ms
