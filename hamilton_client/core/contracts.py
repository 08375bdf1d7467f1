"""Frozen records and enumerations that cross the bucket: one place for every name that two programs share."""

import hashlib
import json
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
SignArray = NDArray[np.int8]


class HuracanError(Exception):
    """A fault the user can act on: the message says what was wrong, where, and what to do next."""


class Regime(StrEnum):
    """Market state of one closed bar; `UNKNOWN` until the windows are full."""

    TREND = "TREND"
    RANGE = "RANGE"
    PANIC = "PANIC"
    ILLIQUID = "ILLIQUID"
    UNKNOWN = "UNKNOWN"


TRAINED_REGIMES = (Regime.TREND, Regime.RANGE, Regime.PANIC, Regime.ILLIQUID)
NEVER_TRADED = frozenset({Regime.ILLIQUID, Regime.UNKNOWN})


class Direction(StrEnum):
    """What an engine says."""

    BUY = "buy"
    SELL = "sell"
    WAIT = "wait"


class Action(StrEnum):
    """What a decision does."""

    BUY = "buy"
    SELL = "sell"
    HOLD = "hold"


class RiskPresetName(StrEnum):
    """Named sets of risk limits."""

    CONSERVATIVE = "conservative"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


def canonical_json(value: Any) -> bytes:
    """Serialise JSON-able data to the one byte string that hashes are taken over: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_hash(value: Any) -> str:
    """Return the sha256 hex digest of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


class Frozen(BaseModel):
    """Immutable value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def hash(self) -> str:
        """Content hash over every field."""
        return content_hash(self.model_dump(mode="json"))


class Record(Frozen):
    """A `Frozen` that is stored: refuses unknown fields on write, tolerates them on read."""

    schema_version: int = 1

    def to_bytes(self) -> bytes:
        """Serialise as indented, key-sorted JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Parse JSON, ignoring fields of newer writers. Raises pydantic.ValidationError on anything else."""
        return cls.model_validate_json(body, extra="ignore")


class Market(Frozen):
    """What is traded (`venue`, `instrument`) and whose candles stand in for its prices."""

    venue: str = "binance"
    instrument: Literal["usdm_perp", "spot"] = "usdm_perp"
    candles: Literal["usdm_perp", "spot"] = "spot"

    @property
    def proxy_note(self) -> str:
        """The sentence every table carries when candles of another market stand in; empty otherwise."""
        if self.candles == self.instrument:
            return ""
        return f"prices: {self.venue} {self.candles} candles stand in for {self.instrument}"


class EngineVote(Frozen):
    """One engine's say in one decision; `gated` is the reason it was silenced, or None."""

    engine: str
    direction: Direction
    edge_bps_before_costs: float
    confidence_0_1: float
    horizon_bars: int
    horizon_minutes: float
    weight: float
    gated: str | None = None
    metadata: dict[str, Any] = {}


class DecisionEvent(Record):
    """One decision for one coin, logged whether taken or not."""

    decision_id: str
    timestamp: AwareDatetime
    symbol: str
    regime: Regime
    engine_votes: tuple[EngineVote, ...]
    consensus_score: float
    action: Action
    size_usd: float
    expected_edge_bps: float
    costs_bps: float
    net_edge_bps: float
    risk_preset: RiskPresetName
    reason: str
    metadata: dict[str, Any] = {}


class SegmentPointer(Frozen):
    """The model of one timeframe × regime inside a champion bundle, and its state."""

    model_id: str | None
    promoted_at: AwareDatetime | None
    state: str
    lineage: str | None = None
    probation_until: AwareDatetime | None = None


class ChampionPointer(Record):
    """`champion/{symbol}/latest.json`: which bundle Hamilton may use, and how to verify it."""

    symbol: str
    generation: int
    bucket_path: str
    size: int
    sha256: str
    model_id: str
    segments: dict[str, SegmentPointer]
    as_of: AwareDatetime
    promoted_at: AwareDatetime
    previous: str | None = None
    synthetic: bool = False


class ChampionIndex(Record):
    """`champion/index.json`: the union of all pointers, for one conditional GET per poll."""

    champions: dict[str, ChampionPointer]


class SegmentMetrics(Record):
    """`metrics.json` of one segment: out-of-sample, net of costs; None where undefined.

    `sharpe` is annualised on 365 days from daily net P&L including zero days; `net_bps`, `cost_bps`, `gross_bps`
    are means per trade; `sample_size` counts trades; `window` is the first and last test day (ISO dates).
    """

    sharpe: float | None
    hit_rate: float | None
    max_drawdown_pct: float
    net_pnl_pct: float
    net_bps: float | None
    cost_bps: float | None
    gross_bps: float | None
    edge_after_cost_bps: float | None
    sample_size: int
    effective_sample: float
    windows: int
    window: tuple[str, str] | None
    psr: float | None
    dsr: float | None
    p_value: float | None = None
    promoted: bool = False
    baselines: dict[str, float | None] = {}


class CalibrationTable(Frozen):
    """Monotone knots: raw score → value, linear between knots, flat outside."""

    scores: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, score: FloatArray) -> FloatArray:
        """Interpolate `score` (any shape); NaN stays NaN."""
        return np.where(np.isnan(score), np.nan, np.interp(score, self.scores, self.values))


class Calibration(Record):
    """`calibration.json`: score → gross edge of a long entry in bps, and → probability that the price rises."""

    edge_bps: CalibrationTable
    probability: CalibrationTable
    rows: int


class CostSnapshot(Record):
    """`costs.json`: everything a round trip costs, each figure with its date and source.

    `impact_factor` is Y and `participation_rate` the cap on order size ÷ volume of the execution window (one base bar).
    """

    symbol: str
    maker_fee_bps: float
    taker_fee_bps: float
    spread_bps: float
    spread_source: str
    impact_factor: float
    participation_rate: float
    funding_bps_per_8h: float
    volatility_daily_bps: float
    volume_daily_usd: float
    as_of: dict[str, str]


class Heartbeat(Record):
    """`heartbeats/engine.json`, rewritten every 30 s while the engine runs."""

    phase: str
    current_symbol: str | None
    progress: float
    last_error: str | None
    run_id: str
    at: AwareDatetime


class FailureReport(Record):
    """`runs/{run_id}/failure_report.json` and one per failed coin."""

    step: str
    exception_type: str
    message: str
    last_files_written: tuple[str, ...]
    suggestions: tuple[str, ...]
    symbol: str | None
    traceback: str


class RunManifest(Record):
    """`runs/{run_id}/manifest.json`: what a night read, made, and with which versions."""

    run_id: str
    as_of: AwareDatetime
    utc_started: AwareDatetime
    utc_finished: AwareDatetime | None
    engine_version: str
    git_commit: str
    symbols_trained: tuple[str, ...]
    artifacts_map: dict[str, str]
    metrics_map: dict[str, dict[str, Any]]
    costs_map: dict[str, CostSnapshot]
    feature_recipe_hash_map: dict[str, str]
    inputs: dict[str, dict[str, str]]
    lineages: dict[str, str]
    config: dict[str, Any]
    versions: dict[str, str]
    seeds: dict[str, int]
    market: Market
    failures: tuple[FailureReport, ...]


class LedgerLine(Record):
    """`runs/{run_id}/ledger/{stage}/{symbol}.{timeframe}.json`: one unit of one stage, as it happened."""

    run_id: str
    stage: str
    symbol: str
    timeframe: str
    ok: bool
    error: str | None
    detail: dict[str, Any]
    at: AwareDatetime


def utc_iso(ts: datetime) -> str:
    """Format an instant for people: `2023-07-01 02:00 UTC`."""
    return ts.strftime("%Y-%m-%d %H:%M UTC")
