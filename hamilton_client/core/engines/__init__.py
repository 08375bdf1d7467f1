"""The voters: one table, and their votes as arrays."""

import math
from collections.abc import Mapping

import numpy as np
import polars as pl

from hamilton_client.core.contracts import FloatArray
from hamilton_client.core.engines import breakout, learned, reversion, stress, trend
from hamilton_client.core.engines.base import Engine
from hamilton_client.core.features import FeatureRecipe, build
from hamilton_client.core.votes import Votes

__all__ = ["ENGINES", "RULES", "RULE_RECIPE", "RULE_WARMUP_BARS", "Engine", "learned_votes", "rule_votes"]

ENGINES: dict[str, Engine] = {engine.name: engine for family in (trend, breakout, reversion, stress, learned) for engine in family.ENGINES}
RULES: tuple[Engine, ...] = tuple(engine for engine in ENGINES.values() if engine.kind == "rule")
SIGMA = "volatility_72"
RULE_RECIPE = FeatureRecipe.of({SIGMA}.union(*(engine.inputs for engine in RULES)))
RULE_WARMUP_BARS = RULE_RECIPE.warmup_bars


def _expressions() -> list[pl.Expr]:
    """Per rule a column of confidence with the vote's sign: ±(0.5 + 0.5 · strength), 0 where it waits or is not warm."""
    signed = []
    for engine in RULES:
        assert engine.direction is not None
        assert engine.strength is not None
        vote = pl.when(pl.col(SIGMA) > 0).then(engine.direction) * (0.5 + 0.5 * engine.strength.fill_null(0).clip(0, 1))
        signed.append(vote.fill_null(0).cast(pl.Float64).alias(engine.name))
    return signed


SIGNED_CONFIDENCE = _expressions()


def rule_votes(candles: pl.DataFrame, reliability: Mapping[str, float]) -> Votes:
    """Let every rule vote on every bar of one base-timeframe series: votes (n bars, m rules), in the order of `RULES`.

    Edge is what a rule of that reliability r earns gross on a random walk: (2r - 1) · E|return over its horizon|, at least 0, with
    E|return| = sqrt(2/π) · σ of one bar · sqrt(horizon). A rule without a reliability has 0.5: no edge. Votes of a bar depend on the
    last `RULE_WARMUP_BARS` bars only.
    """
    features = build(candles, RULE_RECIPE)
    signed = features.select(SIGNED_CONFIDENCE).to_numpy()
    direction = np.sign(signed).astype(np.int8)
    horizon_bars = np.array([engine.horizon_bars for engine in RULES], dtype=np.int64)
    gain = np.array([max(2 * reliability.get(engine.name, 0.5) - 1, 0.0) for engine in RULES])
    sigma = np.nan_to_num(features[SIGMA].to_numpy())
    move_bps = 1e4 * math.sqrt(2 / math.pi) * np.outer(sigma, np.sqrt(horizon_bars))
    edge_bps = np.where(direction == 0, 0.0, gain * move_bps)
    return Votes(tuple(engine.name for engine in RULES), direction, np.abs(signed), edge_bps, horizon_bars)


def learned_votes(engine_name: str, probability: FloatArray, edge_bps: FloatArray, horizon_base_bars: int) -> Votes:
    """Turn a model's calibrated outputs (n,) into votes (n, 1).

    `probability` is that the price rises, `edge_bps` the gross edge of a long entry. Buy where both say up, sell where both say
    down, else (and where either is NaN) no vote. Confidence max(p, 1 - p), edge |edge|; both 0 without a vote. Raises KeyError for an
    engine that is not in the table.
    """
    engine = ENGINES[engine_name]
    side = np.sign(edge_bps)
    votes = (side == np.sign(probability - 0.5)) & (side != 0)
    direction = np.where(votes, side, 0).astype(np.int8)
    confidence = np.where(votes, np.maximum(probability, 1 - probability), 0.0)
    edge = np.where(votes, np.abs(edge_bps), 0.0)
    horizon_bars = np.array([horizon_base_bars], dtype=np.int64)
    return Votes((engine.name,), direction[:, None], confidence[:, None], edge[:, None], horizon_bars)
