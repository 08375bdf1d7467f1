"""Consensus of many engines: votes that repeat each other share one say, engines without a record have none (stats.md §8)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from hamilton_client.core.contracts import FloatArray, IntArray, Record, Regime
from hamilton_client.core.policy import Policy
from hamilton_client.core.votes import Votes

Matrix = tuple[tuple[float, ...], ...]
BoolArray = NDArray[np.bool_]

EVIDENCE_OUTCOMES = 40  # before that many resolved outcomes a reliability is shrunk towards a coin flip
LEADERBOARD_ALPHA = 0.1  # weight of the newest outcome in an engine's recent net edge
DUPLICATE = 1e-9  # similarities this close to 1 count as exact duplicates
NEVER_MS = int(np.iinfo(np.int64).max)
DAY_MS = 86_400_000


class Combiner(Record):
    """What is known about the engines: reliability (hit rate in [0, 1]), vote correlation (m, m), soft weight per regime.

    `correlation` is shrunk already, over `rows` bars. Raises pydantic.ValidationError where it is not (m, m) within [-1, 1].
    """

    engines: tuple[str, ...]
    reliability: dict[str, float]
    outcomes: dict[str, int]
    correlation: Matrix
    rows: int
    as_of: str
    soft_weights: dict[str, dict[str, float]]

    @model_validator(mode="after")
    def _square(self) -> Self:
        m = len(self.engines)
        if len(self.correlation) != m or any(len(row) != m or not all(abs(r) <= 1 for r in row) for row in self.correlation):
            raise ValueError(f"correlation of {m} engines must be {m} × {m} within [-1, 1]")
        return self

    def correlation_of(self, engines: tuple[str, ...]) -> Matrix:
        """Correlation in the order of `engines`; one that is not on record is independent of all others."""
        if engines == self.engines:
            return self.correlation
        at = {engine: i for i, engine in enumerate(self.engines)}
        return tuple(
            tuple(1.0 if a == b else self.correlation[at[a]][at[b]] if a in at and b in at else 0.0 for b in engines) for a in engines
        )

    def strength(self, engines: tuple[str, ...]) -> FloatArray:
        """Gain × soft weight, (regimes, m) in [0, 1]; 0 for engines without a record."""
        gains = gain(np.array([self.reliability.get(engine, 0.5) for engine in engines]))
        soft = [[self.soft_weights.get(regime, {}).get(engine, 1.0) for engine in engines] for regime in Regime]
        return np.array(soft).reshape(len(Regime), len(engines)) * gains


def solo(engine: str) -> Combiner:
    """The combiner under which `engine` alone decides: the P&L of one segment."""
    return Combiner(engines=(engine,), reliability={engine: 1.0}, outcomes={}, correlation=((1.0,),), rows=0, as_of="", soft_weights={})


def gain(reliability: FloatArray) -> FloatArray:
    """Say of an engine by its hit rate, any shape: 0 at or below a coin flip, 1 at certainty."""
    return np.clip((reliability - 0.5) / 0.5, 0.0, 1.0)


def similarity(correlation: FloatArray, tau: float) -> FloatArray:
    """κ = clip((R - τ) / (1 - τ), 0, 1) with a unit diagonal, (m, m): negative correlation is never penalised."""
    kappa = np.where(correlation >= 1.0, 1.0, np.clip((correlation - tau) / max(1.0 - tau, DUPLICATE), 0.0, 1.0))
    np.fill_diagonal(kappa, 1.0)
    return kappa


def independence_weights(correlation: FloatArray, tau: float) -> FloatArray:
    """How far each of m voters is an opinion of its own, (m,) ≥ 0; the sum is the effective number of engines (stats.md §8).

    u = U⁻¹1 where U, the bottleneck (single-linkage) closure of κ, is ultrametric. Exact duplicates split one weight equally.
    """
    closure = similarity(correlation, tau)
    for j in range(len(closure)):
        np.maximum(closure, np.minimum.outer(closure[:, j], closure[j]), out=closure)
    if not closure.size:
        return np.zeros(0)
    first_copy = np.argmax(closure >= 1.0 - DUPLICATE, axis=1)
    distinct, member, copies = np.unique(first_copy, return_inverse=True, return_counts=True)
    weights = np.linalg.solve(closure[np.ix_(distinct, distinct)], np.ones(len(distinct)))
    return np.maximum(weights, 0.0)[member] / copies[member]


@lru_cache(maxsize=1024)
def _entangled(correlation: Matrix, tau: float) -> IntArray:
    """Engines that are similar to any other: every other voter's independence weight is 1 whoever votes."""
    return np.flatnonzero((similarity(np.array(correlation), tau) > 0).sum(axis=1) > 1)


@lru_cache(maxsize=65_536)
def _weights_of(correlation: Matrix, tau: float, mask: int) -> FloatArray:
    """Independence weights of the entangled engines (k,) when those in the bit `mask` vote."""
    entangled = _entangled(correlation, tau)
    voting = (mask >> np.arange(len(entangled))) & 1 == 1
    weights = np.zeros(len(entangled))
    chosen = entangled[voting]
    weights[voting] = independence_weights(np.array(correlation)[np.ix_(chosen, chosen)], tau)
    return weights


def _independence(present: BoolArray, correlation: Matrix, tau: float) -> FloatArray:
    """Independence weights (n, m) of the voters `present` (n, m); rows with the same entangled voters are solved once."""
    weights = present.astype(np.float64)
    entangled = _entangled(correlation, tau)
    if len(entangled):
        bits = present[:, entangled] @ (1 << np.arange(len(entangled), dtype=np.int64))
        masks, row = np.unique(bits, return_inverse=True)
        weights[:, entangled] = np.array([_weights_of(correlation, tau, mask) for mask in masks.tolist()]).reshape(-1, len(entangled))[row]
    return weights


def row_sum(values: FloatArray) -> FloatArray:
    """Sum (n, m) over engines from left to right: a row's bits never depend on the rows around it, as those of `sum` may."""
    return np.cumsum(values, axis=1)[:, -1] if values.shape[1] else np.zeros(len(values))


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """`part / whole`, 0 where the whole is 0; shapes broadcast."""
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """One opinion per row: `score` (n,) in [-1, 1], `agreement` (n,) in [0, 1], `effective` (n,) engines, `weights` (n, m) shares of 1."""

    score: FloatArray
    agreement: FloatArray
    effective: FloatArray
    weights: FloatArray


def consensus(
    direction: NDArray[np.int8],
    confidence: FloatArray,
    strength: FloatArray,
    correlation: Matrix,
    tau: float,
    *,
    present: BoolArray | None = None,
) -> Consensus:
    """Combine votes (n, m) into one opinion per row (stats.md §8): w = u · strength, S = Σ w v c / Σ w.

    `strength` (m,) or (n, m) is gain × soft weight. `present` marks who votes: by default whoever does not wait, because a wait is
    an abstention; an explicit mask counts a direction of 0 as a vote to hold. The effective number leaves out engines without a say.
    """
    voters = direction != 0 if present is None else present
    independence = _independence(voters, correlation, tau)
    weights = independence * strength
    total = row_sum(weights)
    signed = weights * direction
    score = np.clip(ratio(row_sum(np.where(signed != 0, signed * confidence, 0.0)), total), -1.0, 1.0)
    winning = row_sum(np.where(direction * np.sign(score)[:, None] > 0, weights, 0.0))
    agreement = ratio(winning, row_sum(np.where(direction != 0, weights, 0.0)))
    effective = row_sum(np.where(weights > 0, independence, 0.0))
    return Consensus(score, agreement, effective, ratio(weights, total[:, None]))


class Outcomes(NamedTuple):
    """What became of each vote: `gross_bps` (n, m), NaN without a vote or an end; `resolved_ms` (n, m), when that was known."""

    gross_bps: FloatArray
    resolved_ms: IntArray


def outcomes(votes: Votes, open_: FloatArray, close: FloatArray, close_ms: IntArray) -> Outcomes:
    """Gross log return in bps of each vote, in its direction: in at the open of bar i+1, out at the close of bar i+h (stats.md §5).

    `open_`, `close` (n,) are prices, `close_ms` (n,) the instants the bars close. Bars that do not exist yet leave NaN and `NEVER_MS`.
    """
    n, m = votes.direction.shape
    gross, resolved = np.full((n, m), np.nan), np.full((n, m), NEVER_MS, np.int64)
    for j, horizon in enumerate(votes.horizon_bars.tolist()):
        ends = max(n - horizon, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = 1e4 * np.log(close[horizon:] / open_[1 : ends + 1])
        gross[:ends, j] = np.where(votes.direction[:ends, j] != 0, moved * votes.direction[:ends, j], np.nan)
        resolved[:ends, j] = close_ms[horizon:]
    return Outcomes(gross, resolved)


def reliability_ema(hits: FloatArray, decay: float) -> float:
    """Hit rate that forgets: r ← decay · r + (1 - decay) · hit over `hits` (k,) of 0 and 1 in time order, from a coin flip."""
    value = 0.5
    for hit in hits.tolist():
        value = decay * value + (1.0 - decay) * hit
    return value


def _stepped(rows: IntArray, horizon: int) -> IntArray:
    """The rows that remain when each next trade starts only after the last one ended."""
    kept, free = [], -1
    for row in rows.tolist():
        if row >= free:
            kept.append(row)
            free = row + horizon
    return np.array(kept, dtype=np.int64)


def vote_correlation(direction: NDArray[np.int8], shrinkage_rows: float) -> FloatArray:
    """Uncentred correlation of votes (n, m) with waits as 0, (m, m), shrunk towards none: λ = s / (s + n).

    Uncentred, because two engines that always say buy repeat each other; 0 for an engine that never voted.
    """
    signs = direction.astype(np.float64)
    product = signs.T @ signs
    length = np.sqrt(np.diag(product))
    correlation = np.clip(ratio(product, np.outer(length, length)), -1.0, 1.0) * len(signs) / (shrinkage_rows + len(signs))
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _evidence(outcome_count: int) -> float:
    return min(1.0, outcome_count / EVIDENCE_OUTCOMES)


def _soft_weight(gross_bps: FloatArray, cost_bps: FloatArray) -> float:
    """1 + (recent net edge ÷ typical move), shrunk and held in [0, 1]: an engine that earns its costs keeps its full weight."""
    typical, net = float(np.abs(gross_bps).mean()), 0.0
    for value in (gross_bps - cost_bps).tolist():
        net += LEADERBOARD_ALPHA * (value - net)
    return min(1.0, max(0.0, 1.0 + _evidence(len(gross_bps)) * net / typical))


def seed(
    votes: Votes,
    gross_bps: FloatArray,
    resolved_ms: IntArray,
    as_of_ms: int,
    policy: Policy,
    *,
    regime_codes: NDArray[np.int8] | None = None,
    cost_bps: float | FloatArray = 0.0,
) -> Combiner:
    """Combiner from what was known at `as_of_ms`: hit rates over resolved, non-overlapping outcomes and vote correlation.

    `gross_bps`, `resolved_ms` (n, m) as from `outcomes` (only the sign of a hit matters; 0 and NaN are no outcome). Pass votes that
    were gated (`decide.silence`), or votes that never count would teach. With `regime_codes` (n,) the weekly leaderboard weighs
    each engine in each regime by its recent net edge after `cost_bps` (scalar or (n, m)), refreshed every `leaderboard_refresh_days`.
    """
    resolved = (votes.direction != 0) & np.isfinite(gross_bps) & (gross_bps != 0) & (resolved_ms <= as_of_ms)
    reliability, counts = {}, {}
    for j, engine in enumerate(votes.engines):
        picked = _stepped(np.flatnonzero(resolved[:, j]), int(votes.horizon_bars[j]))
        hits = (gross_bps[picked, j] > 0).astype(np.float64)
        counts[engine] = len(hits)
        reliability[engine] = 0.5 + (reliability_ema(hits, policy.consensus.reliability_decay) - 0.5) * _evidence(len(hits))
    known = votes.direction[(resolved_ms <= as_of_ms).any(axis=1)]
    correlation = vote_correlation(known, policy.consensus.correlation_shrinkage_rows)
    refresh_ms = policy.regime_gates.leaderboard_refresh_days * DAY_MS
    on_board = resolved & (resolved_ms <= as_of_ms - as_of_ms % refresh_ms)
    return Combiner(
        engines=votes.engines,
        reliability=reliability,
        outcomes=counts,
        correlation=tuple(tuple(row) for row in correlation.tolist()),
        rows=len(known),
        as_of=datetime.fromtimestamp(as_of_ms / 1000, UTC).isoformat(),
        soft_weights={} if regime_codes is None else _leaderboard(votes, gross_bps, on_board, regime_codes, cost_bps),
    )


def _leaderboard(
    votes: Votes, gross_bps: FloatArray, on_board: BoolArray, regime_codes: NDArray[np.int8], cost_bps: float | FloatArray
) -> dict[str, dict[str, float]]:
    """Soft weight per regime and engine, where there is any outcome."""
    costs = np.broadcast_to(np.asarray(cost_bps, dtype=np.float64), gross_bps.shape)
    board: dict[str, dict[str, float]] = {}
    for code, regime in enumerate(Regime):
        for j, engine in enumerate(votes.engines):
            picked = _stepped(np.flatnonzero(on_board[:, j] & (regime_codes == code)), int(votes.horizon_bars[j]))
            if len(picked):
                board.setdefault(regime.value, {})[engine] = _soft_weight(gross_bps[picked, j], costs[picked, j])
    return board
