"""From candles to everything a decision looks at. Parity rests on this one function: backtest, shadow and live call it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hamilton_client.core.bars import derive
from hamilton_client.core.contracts import NEVER_TRADED, Calibration, FloatArray, IntArray, Regime, SignArray
from hamilton_client.core.costs import BarContext, bar_context, context_warmup_bars
from hamilton_client.core.engines import ENGINES, RULE_WARMUP_BARS, learned_votes, rule_votes
from hamilton_client.core.features import FeatureRecipe, build
from hamilton_client.core.layout import segment, timeframe_minutes, timeframe_ms
from hamilton_client.core.policy import Policy
from hamilton_client.core.regimes import REGIME_CODES, RegimeRecipe, classify, codes
from hamilton_client.core.votes import Votes

Scorer = Callable[[str, FloatArray, SignArray], FloatArray]
"""(timeframe, features (n × F), regime codes (n,)) → raw scores (n,), NaN where the row's segment has no model."""

UNKNOWN = REGIME_CODES.index(Regime.UNKNOWN)
SILENT = [code for code, regime in enumerate(REGIME_CODES) if regime in NEVER_TRADED]


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What one timeframe's models say, one row per bar (n,): the bar's own `regime` code, raw `score`, gross `edge_bps` of a long
    entry and `probability` that the price rises; NaN where nothing is said.
    """

    close_ms: IntArray
    regime: SignArray
    score: FloatArray
    edge_bps: FloatArray
    probability: FloatArray

    def as_of(self, instants_ms: IntArray, timeframe: str) -> Self:
        """The bar `bar_in_force` at each instant (k,); UNKNOWN and NaN where there is none."""
        at = bar_in_force(instants_ms, self.close_ms, timeframe)

        def pick(values: NDArray[Any], nothing: float) -> NDArray[Any]:
            return np.append(values, values.dtype.type(nothing))[at]

        return type(self)(
            pick(self.close_ms, 0),
            pick(self.regime, UNKNOWN),
            pick(self.score, np.nan),
            pick(self.edge_bps, np.nan),
            pick(self.probability, np.nan),
        )

    def take(self, rows: slice | IntArray | NDArray[np.bool_]) -> Self:
        """Some of the rows."""
        return type(self)(self.close_ms[rows], self.regime[rows], self.score[rows], self.edge_bps[rows], self.probability[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """Votes of every engine and context of n base bars; `learned` holds, per timeframe, the higher bars in force on each of them."""

    votes: Votes
    bars: BarContext
    learned: Mapping[str, Learned]

    def __len__(self) -> int:
        return len(self.bars)

    @property
    def learned_available(self) -> NDArray[np.bool_]:
        """Bars (n,) on which some learned champion has an opinion, which may be to wait."""
        known = [np.isfinite(rows.probability) for rows in self.learned.values()]
        return np.any(known, axis=0) if known else np.zeros(len(self), np.bool_)

    def take(self, rows: slice | IntArray | NDArray[np.bool_]) -> Self:
        """Signals of some bars, by slice, indices or mask."""
        learned = {timeframe: part.take(rows) for timeframe, part in self.learned.items()}
        return type(self)(self.votes.take(rows), self.bars.take(rows), learned)


NOTHING = Learned(np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0), np.empty(0), np.empty(0))


def bar_in_force(instants_ms: IntArray, close_ms: IntArray, timeframe: str) -> IntArray:
    """Row (k,) of the newest bar of `timeframe` closed at each instant, -1 where none was or its successor is overdue."""
    at = np.searchsorted(close_ms, instants_ms, side="right") - 1
    due_ms = np.append(close_ms, 0)[at] + timeframe_ms(timeframe)
    return np.where((at >= 0) & (instants_ms < due_ms), at, -1)


def learned_rows(
    candles: pl.DataFrame,
    timeframe: str,
    *,
    recipe: FeatureRecipe,
    regimes: RegimeRecipe,
    score: Scorer,
    calibrations: Mapping[str, Calibration],
    tail: int | None = None,
) -> Learned:
    """Score the last `tail` (all) bars of one timeframe's closed candles, each by the model of its own regime, and calibrate.

    ILLIQUID and UNKNOWN bars keep their score but get no edge: those segments never trade.
    """
    first = 0 if tail is None else max(0, candles.height - tail)
    state = codes(classify(candles, regimes.by_timeframe[timeframe], timeframe))[first:]
    rows = build(candles, recipe).slice(first).select(recipe.names).fill_null(np.nan)
    scores = score(timeframe, np.ascontiguousarray(rows.to_numpy(), dtype=np.float64), state)
    edge, probability = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    for code, regime in enumerate(REGIME_CODES):
        table = calibrations.get(segment(timeframe, regime))
        if table is not None and regime not in NEVER_TRADED:
            inside = state == code
            edge[inside], probability[inside] = table.edge_bps(scores[inside]), table.probability(scores[inside])
    return Learned(_close_ms(candles, timeframe)[first:], state, scores, edge, probability)


def _close_ms(candles: pl.DataFrame, timeframe: str) -> IntArray:
    return candles["ts"].dt.epoch("ms").to_numpy().astype(np.int64) + timeframe_ms(timeframe)


def signals(
    base_candles: pl.DataFrame,
    *,
    policy: Policy,
    recipe: FeatureRecipe,
    regimes: RegimeRecipe,
    score: Scorer | Mapping[str, Learned],
    calibrations: Mapping[str, Calibration],
    horizons: Mapping[str, int],
    reliability: Mapping[str, float],
    tail: int | None = None,
) -> Signals:
    """Votes of all engines and context on the last `tail` (all) of n closed base bars; a row depends only on bars closed by then.

    `score` computes raw scores, or holds finished (out-of-fold, already calibrated) rows per timeframe; `horizons` maps timeframe →
    label horizon in its own bars; `calibrations` maps `1h.TREND` → knot tables. The last row equals that of any longer history
    (1e-9) once `covers` holds. Raises HuracanError where a timeframe cannot be made of the base.
    """
    base = policy.base_timeframe
    minutes = timeframe_minutes(base)
    if not isinstance(score, Mapping):
        scored = partial(learned_rows, recipe=recipe, regimes=regimes, score=score, calibrations=calibrations)
        bars_of = {timeframe: _series(base_candles, base, timeframe) for timeframe in regimes.by_timeframe}
        score = {name: scored(frame, name, tail=_covering(tail, minutes, name)) for name, frame in bars_of.items()}
    rows = slice(None) if tail is None else slice(max(0, base_candles.height - tail), None)
    state = codes(classify(base_candles, regimes.by_timeframe[base], base))
    bars = bar_context(base_candles, state, base_minutes=minutes, volatility_bars=policy.exits.volatility_bars).take(rows)
    votes, learned = [rule_votes(base_candles, reliability).take(rows)], {}
    for engine in ENGINES.values():
        timeframe = engine.timeframe
        if timeframe is None:
            continue
        said = learned[timeframe] = score.get(timeframe, NOTHING).as_of(bars.close_ms, timeframe)
        known = timeframe in horizons
        horizon = horizons[timeframe] * timeframe_minutes(timeframe) // minutes if known else engine.horizon_bars
        mute = np.isin(said.regime, SILENT)
        votes.append(learned_votes(engine.name, np.where(mute, np.nan, said.probability), np.where(mute, np.nan, said.edge_bps), horizon))
    return Signals(Votes.concat(*votes), bars, learned)


def _covering(tail: int | None, base_minutes: int, timeframe: str) -> int | None:
    """Closed bars of `timeframe` that the last `tail` base bars can look at."""
    return None if tail is None else tail * base_minutes // timeframe_minutes(timeframe) + 2


def _series(base_candles: pl.DataFrame, base: str, timeframe: str) -> pl.DataFrame:
    return base_candles if timeframe == base else derive(base_candles, base, timeframe)


def required_bars(policy: Policy, recipe: FeatureRecipe, regimes: RegimeRecipe) -> dict[str, int]:
    """Closed bars of each timeframe, the newest included, that the newest row of `signals` may depend on."""
    base = policy.base_timeframe
    needed = {timeframe: max(recipe.warmup_bars, params.warmup_bars) for timeframe, params in regimes.by_timeframe.items()}
    return needed | {base: max(needed[base], RULE_WARMUP_BARS, context_warmup_bars(timeframe_minutes(base), policy.exits.volatility_bars))}


def required_base_bars(policy: Policy, recipe: FeatureRecipe, regimes: RegimeRecipe) -> int:
    """Base bars of a gapless tail whose last row equals that of the whole history; where there are gaps, see `covers`."""
    base = timeframe_minutes(policy.base_timeframe)
    ratios = {timeframe: timeframe_minutes(timeframe) // base for timeframe in regimes.by_timeframe}
    return max((count + 2) * ratios[timeframe] for timeframe, count in required_bars(policy, recipe, regimes).items())


def covers(base_candles: pl.DataFrame, policy: Policy, recipe: FeatureRecipe, regimes: RegimeRecipe) -> bool:
    """Say whether this tail, gaps and all, is long enough for its last row to equal that of the whole history."""
    needed = required_bars(policy, recipe, regimes)
    return all(_series(base_candles, policy.base_timeframe, timeframe).height >= count for timeframe, count in needed.items())
