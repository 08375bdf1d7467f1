"""Votes → one decision per closed bar. Stateless, and each row on its own: backtest, shadow and live run exactly this."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamilton_client.core.combine import Combiner, Consensus, consensus, ratio, row_sum
from hamilton_client.core.contracts import (
    NEVER_TRADED,
    Action,
    CostSnapshot,
    DecisionEvent,
    Direction,
    EngineVote,
    FloatArray,
    IntArray,
    Regime,
    RiskPresetName,
    SignArray,
    content_hash,
)
from hamilton_client.core.costs import BarContext, max_order_usd, round_trip_costs
from hamilton_client.core.engines import ENGINES
from hamilton_client.core.policy import Policy
from hamilton_client.core.risk import SIZE_LIMITS, Admission, preset_of, size, stop_distance_bps
from hamilton_client.core.votes import Votes

TOLERANCE = 1e-9  # every limit is inclusive, whatever the last bit of a sum says
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

GATES = ("open", "disabled_in_regime", "regime_not_supported", "regime_never_traded", "no_reliability")
REASONS = (
    "trade",
    "never_traded_regime",
    "no_learned_champion",
    "no_votes",
    "below_threshold",
    "low_agreement",
    "no_quorum",
    "below_min_confidence",
    "missing_cost_input",
    "no_size",
    "below_min_edge",
)
ACTIONS = {1: Action.BUY, -1: Action.SELL, 0: Action.HOLD}
DIRECTIONS = {1: Direction.BUY, -1: Direction.SELL, 0: Direction.WAIT}


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """Decisions on n bars. Arrays are (n,), `weights` and `gates` (n, m).

    `action` is -1, 0 or 1; `closes_only` marks a sell on spot; `reason` indexes REASONS, `gates` GATES, `size_limit` SIZE_LIMITS.
    Edge, costs, stop and horizon are those of the side the score leans to, also where the action is hold; `size_usd` is 0 there.
    """

    action: SignArray
    score: FloatArray
    agreement: FloatArray
    effective: FloatArray
    expected_edge_bps: FloatArray
    costs_bps: FloatArray
    net_edge_bps: FloatArray
    size_usd: FloatArray
    size_limit: NDArray[np.int8]
    stop_bps: FloatArray
    horizon_bars: IntArray
    reason: NDArray[np.int8]
    closes_only: NDArray[np.bool_]
    weights: FloatArray
    gates: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.action)


def engine_regimes() -> dict[str, frozenset[Regime]]:
    """The regimes each engine of the table declares."""
    return {name: engine.regimes for name, engine in ENGINES.items()}


def hard_gates(engines: tuple[str, ...], policy: Policy, regimes_of: Mapping[str, frozenset[Regime]]) -> NDArray[np.int8]:
    """Gate code of each engine in each regime, (regimes, m), in the order of `Regime`.

    The policy's lists decide first, then the regimes an engine declares (one without a declaration votes everywhere).
    """
    table = np.zeros((len(Regime), len(engines)), dtype=np.int8)
    if not policy.regime_gates.enabled:
        return table
    for row, regime in zip(table, Regime, strict=True):
        if regime in NEVER_TRADED:
            row[:] = GATES.index("regime_never_traded")
            continue
        gate = policy.regime_gates.of(regime)
        for j, engine in enumerate(engines):
            if engine in gate.disabled_engines:
                row[j] = GATES.index("disabled_in_regime")
            elif engine not in gate.enabled_engines and regime not in regimes_of.get(engine, frozenset(Regime)):
                row[j] = GATES.index("regime_not_supported")
    return table


def silence(votes: Votes, regime: NDArray[np.int8], policy: Policy, regimes_of: Mapping[str, frozenset[Regime]] | None = None) -> Votes:
    """Votes with those turned to waits that a hard gate silences; `regime` (n,) codes. What `combine.seed` should learn from."""
    gates = hard_gates(votes.engines, policy, engine_regimes() if regimes_of is None else regimes_of)[regime]
    direction = np.where(gates == 0, votes.direction, 0).astype(np.int8)
    return Votes(votes.engines, direction, votes.confidence, votes.edge_bps, votes.horizon_bars)


def decide(
    votes: Votes,
    bars: BarContext,
    *,
    policy: Policy,
    combiner: Combiner,
    costs: CostSnapshot,
    preset: RiskPresetName,
    regimes_of: Mapping[str, frozenset[Regime]] | None = None,
    learned_available: NDArray[np.bool_] | None = None,
) -> Decisions:
    """Decide n bars from the votes of m engines (design.md §4; consensus: stats.md §8; costs: stats.md §6).

    `learned_available` (n,) says where any learned champion could vote: elsewhere the action is hold, votes and score are still shown.
    `regimes_of` defaults to the engine table. A row's result never depends on other rows. Raises HuracanError for an unknown preset.
    """
    declared = engine_regimes() if regimes_of is None else regimes_of
    gates, direction, opinion = _hear(votes, bars.regime, policy, combiner, declared)
    side = np.sign(opinion.score).astype(np.int8)
    edge, horizon = _edge_and_horizon(votes, direction, opinion.weights, side)
    stop = stop_distance_bps(bars.sigma_bps, horizon, policy.exits.stop_sigmas)
    sizing = size(stop, max_order_usd(bars.bar_volume_usd, costs.participation_rate), policy, preset)
    paid = round_trip_costs(sizing.size_usd, horizon, side, bars, costs, policy)
    net = edge - paid.total_bps - paid.safety_margin_bps
    learned = np.ones(len(bars), dtype=np.bool_) if learned_available is None else learned_available
    quorum = 1.0 if len(combiner.engines) == 1 else policy.consensus.quorum
    reason = _reasons(opinion, bars.regime, learned, quorum, policy, preset, sizing.size_usd, net)
    action = np.where(reason == 0, side, 0).astype(np.int8)
    return Decisions(
        action=action,
        score=opinion.score,
        agreement=opinion.agreement,
        effective=opinion.effective,
        expected_edge_bps=edge,
        costs_bps=paid.total_bps,
        net_edge_bps=net,
        size_usd=np.where(action != 0, sizing.size_usd, 0.0),
        size_limit=sizing.limit,
        stop_bps=stop,
        horizon_bars=horizon,
        reason=reason,
        closes_only=(action < 0) & (policy.market.instrument == "spot"),
        weights=opinion.weights,
        gates=gates,
    )


def _hear(
    votes: Votes, regime: NDArray[np.int8], policy: Policy, combiner: Combiner, regimes_of: Mapping[str, frozenset[Regime]]
) -> tuple[NDArray[np.int8], SignArray, Consensus]:
    """Gate codes (n, m), the votes that pass the hard gates (n, m), and their consensus."""
    gates = hard_gates(votes.engines, policy, regimes_of)[regime]
    direction = np.where(gates == 0, votes.direction, 0).astype(np.int8)
    strength = combiner.strength(votes.engines)[regime]
    gates = np.where((gates == 0) & (strength <= 0), GATES.index("no_reliability"), gates).astype(np.int8)
    tau = policy.consensus.correlation_penalty_threshold
    return gates, direction, consensus(direction, votes.confidence, strength, combiner.correlation_of(votes.engines), tau)


def _edge_and_horizon(votes: Votes, direction: SignArray, weights: FloatArray, side: SignArray) -> tuple[FloatArray, IntArray]:
    """Weighted mean edge of all voters towards `side` (dissent counts against it), and horizon of those who won (≥ 1), both (n,)."""
    toward = direction * side[:, None]
    heard = weights * toward
    edge = row_sum(np.where(heard != 0, heard * votes.edge_bps, 0.0))
    winners = np.where(toward > 0, weights, 0.0)
    horizon = ratio(row_sum(winners * votes.horizon_bars), row_sum(winners))
    return edge, np.maximum(np.rint(horizon), 1).astype(np.int64)


def _reasons(
    opinion: Consensus,
    regime: NDArray[np.int8],
    learned: NDArray[np.bool_],
    quorum: float,
    policy: Policy,
    preset: RiskPresetName,
    size_usd: FloatArray,
    net_edge_bps: FloatArray,
) -> NDArray[np.int8]:
    """Code of the first check a row fails (n,), 0 where it passes all. Each check says when to trade, so that NaN never does."""
    thresholds = policy.consensus.adaptive_thresholds
    threshold = np.array([thresholds.get(each, 1.0) for each in Regime])[regime]
    traded = np.array([each not in NEVER_TRADED for each in Regime])[regime]
    conviction = np.abs(opinion.score) + TOLERANCE
    passed = np.stack(
        [
            traded,
            learned,
            row_sum(opinion.weights) > 0,
            (conviction >= threshold) & (opinion.score != 0),
            opinion.agreement + TOLERANCE >= policy.consensus.min_agreement_threshold,
            opinion.effective + TOLERANCE >= quorum,
            conviction >= preset_of(policy, preset).min_confidence,
            np.isfinite(size_usd) & np.isfinite(net_edge_bps),
            size_usd > 0,
            net_edge_bps + TOLERANCE >= policy.cost_model.min_edge_after_cost_bps,
        ]
    )
    return np.where(passed.all(axis=0), 0, 1 + np.argmin(passed, axis=0)).astype(np.int8)


def to_event(
    decisions: Decisions,
    votes: Votes,
    bars: BarContext,
    row: int,
    *,
    symbol: str,
    preset: RiskPresetName,
    metadata: Mapping[str, Any],
    admission: Admission | None = None,
) -> DecisionEvent:
    """The record of one row, silent engines included, each with the gate that silenced it.

    `decision_id` follows from symbol, bar and `metadata["generation"]` alone, so that the same decision made twice is one. An
    `admission` replaces the size; one that leaves nothing turns the action into hold. Figures that could not be known are 0 and
    listed under `missing` in the metadata.
    """
    close_ms = int(bars.close_ms[row])
    cut_by = None if admission is None else admission.reason
    refused = admission is not None and admission.size_usd <= 0 and decisions.action[row] != 0
    figures = {name: float(getattr(decisions, name)[row]) for name in ("expected_edge_bps", "costs_bps", "net_edge_bps", "stop_bps")}
    missing = [name for name, value in figures.items() if not math.isfinite(value)]
    known = figures | dict.fromkeys(missing, 0.0)
    notes = {
        "agreement": float(decisions.agreement[row]),
        "effective_engines": float(decisions.effective[row]),
        "stop_bps": known.pop("stop_bps"),
        "horizon_bars": int(decisions.horizon_bars[row]),
        "closes_only": bool(decisions.closes_only[row]),
        "limit": cut_by or SIZE_LIMITS[decisions.size_limit[row]],
    }
    return DecisionEvent(
        decision_id=content_hash([symbol, close_ms, metadata.get("generation")])[:32],
        timestamp=EPOCH + timedelta(milliseconds=close_ms),
        symbol=symbol,
        regime=list(Regime)[bars.regime[row]],
        engine_votes=_engine_votes(decisions, votes, bars.base_minutes, row),
        consensus_score=float(decisions.score[row]),
        action=Action.HOLD if refused else ACTIONS[int(decisions.action[row])],
        size_usd=float(decisions.size_usd[row]) if admission is None else admission.size_usd,
        risk_preset=preset,
        reason=cut_by if refused and cut_by else REASONS[decisions.reason[row]],
        metadata=dict(metadata) | notes | ({"missing": missing} if missing else {}),
        **known,
    )


def _engine_votes(decisions: Decisions, votes: Votes, base_minutes: int, row: int) -> tuple[EngineVote, ...]:
    """Every engine's say in one row."""
    columns = zip(
        votes.engines,
        votes.direction[row].tolist(),
        np.nan_to_num(votes.edge_bps[row]).tolist(),
        np.nan_to_num(votes.confidence[row]).tolist(),
        votes.horizon_bars.tolist(),
        decisions.weights[row].tolist(),
        decisions.gates[row].tolist(),
        strict=True,
    )
    return tuple(
        EngineVote(
            engine=engine,
            direction=DIRECTIONS[direction],
            edge_bps_before_costs=edge,
            confidence_0_1=confidence,
            horizon_bars=horizon,
            horizon_minutes=float(horizon * base_minutes),
            weight=weight,
            gated=GATES[gate] if gate else None,
        )
        for engine, direction, edge, confidence, horizon, weight, gate in columns
    )
