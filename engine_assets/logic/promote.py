"""Verdicts on segments: pure functions from metrics to states, and from verdicts to the next champion bundle."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine_assets.logic.stats import benjamini_hochberg
from hamilton_client.core.contracts import NEVER_TRADED, Frozen, HuracanError, Regime, SegmentMetrics, SegmentPointer
from hamilton_client.core.policy import Fraction, NonNegative

CHAMPION = "champion"
NOT_TRADED = "not_traded"
INSUFFICIENT = "insufficient_data"
FDR_GATE = "fdr"


class Gates(Frozen):
    """What a segment must reach on out-of-sample days; bounds are inclusive and checked in this order."""

    min_windows: Annotated[int, Field(ge=1)] = 5
    min_effective_sample: NonNegative = 100.0
    min_sample_size: Annotated[int, Field(ge=1)] = 100
    min_sharpe: float = 1.0
    min_hit_rate: Fraction = 0.5
    max_drawdown_pct: NonNegative = 15.0
    min_net_pnl_pct: float = 1.0
    min_psr: Fraction = 0.95
    min_dsr: Fraction = 0.95


EVIDENCE_GATES = ("min_windows", "min_effective_sample", "min_sample_size")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a segment: `promote` the candidate, `keep` what is there, `stop` the champion; and the candidate's state."""

    action: Literal["promote", "keep", "stop"]
    state: str
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which bundle a segment's model comes from, and the pointer it gets; `none` carries no model."""

    source: Literal["challenger", "champion", "none"]
    pointer: SegmentPointer


def failed_gates(metrics: SegmentMetrics | None, gates: Gates, q_value: float | None, fdr_q: float | None) -> tuple[str, ...]:
    """Every failed gate, in the order of `Gates`, `fdr` last; an undefined metric or q-value fails.

    No metrics fail the evidence gates. `q_value` is Benjamini-Hochberg adjusted; `fdr_q` None means that no cohort is tested.
    """
    if metrics is None:
        return EVIDENCE_GATES
    failed = tuple(gate for gate in Gates.model_fields if not _passes(metrics, gate, getattr(gates, gate)))
    if fdr_q is not None and (q_value is None or not q_value <= fdr_q):
        failed += (FDR_GATE,)
    return failed


def segment_state(metrics: SegmentMetrics | None, regime: Regime, gates: Gates, q_value: float | None, fdr_q: float | None) -> str:
    """State of a candidate: `not_traded` (ILLIQUID, UNKNOWN), `insufficient_data` (no metrics, or an evidence gate fails),
    `rejected: <first failed gate>`, or `champion`. Arguments as in `failed_gates`.
    """
    return _state(regime, failed_gates(metrics, gates, q_value, fdr_q))


def segments_frame(segments: Iterable[tuple[str, str, Regime, SegmentMetrics | None]]) -> pl.DataFrame:
    """Cohort of (symbol, timeframe, regime, metrics) as a frame: those columns, then the fields of `SegmentMetrics` (null = none)."""
    rows = [
        {"symbol": symbol, "timeframe": timeframe, "regime": regime.value}
        | ({} if metrics is None else metrics.model_dump(include=_FIELDS))
        for symbol, timeframe, regime, metrics in segments
    ]
    return pl.DataFrame(rows, schema=_COHORT_SCHEMA)


def first_champions(segments: pl.DataFrame, gates: Gates, fdr_q: float) -> pl.DataFrame:
    """Judge segments that have no champion yet, as one cohort (a `segments_frame`; row order is kept).

    Adds `q_value` (Benjamini-Hochberg over the one-sided p-values of the tested segments, null elsewhere), `cohort_size` (m, how
    many were tested), `state` and `failed` (all failed gates). Tested are traded regimes that pass the evidence gates and have a
    p-value: performance does not decide who enters the cohort, so the false-discovery rate holds.
    """
    cohort = [(Regime(row["regime"]), _metrics(row)) for row in segments.iter_rows(named=True)]
    q_values = benjamini_hochberg([_tested_p(regime, metrics, gates) for regime, metrics in cohort])
    failed = [failed_gates(metrics, gates, q, fdr_q) for (_, metrics), q in zip(cohort, q_values.tolist(), strict=True)]
    states = [_state(regime, gate_names) for (regime, _), gate_names in zip(cohort, failed, strict=True)]
    return segments.with_columns(
        pl.Series("q_value", q_values).fill_nan(None),
        pl.lit(int(np.isfinite(q_values).sum())).alias("cohort_size"),
        pl.Series("state", states, dtype=pl.String),
        pl.Series("failed", [list(gate_names) for gate_names in failed], dtype=pl.List(pl.String)),
    )


def first_verdict(state: str, failed: Iterable[str] = ()) -> Verdict:
    """Verdict on one row of `first_champions`."""
    return Verdict("promote" if state == CHAMPION else "keep", state, tuple(failed))


def refresh_verdict(metrics: SegmentMetrics | None, regime: Regime, gates: Gates, *, stop: str | None = None) -> Verdict:
    """Judge newer data under the champion's own recipe: no superiority test, no new trial.

    The refresh replaces the old version while all gates hold; otherwise the old one stays, until a stop rule fires: `stop` names
    it, and the segment loses its champion whatever the refresh scores.
    """
    if stop is not None:
        return Verdict("stop", f"rejected: {stop}", (stop,))
    failed = failed_gates(metrics, gates, None, None)
    return first_verdict(_state(regime, failed), failed)


def compose(old: Mapping[str, SegmentPointer], new: Mapping[str, SegmentPointer], verdicts: Mapping[str, Verdict]) -> dict[str, Choice]:
    """Put the next champion bundle together, segment (`1h.TREND`) by segment.

    A promoted segment comes from `new`; a segment with a champion stays unless it is promoted over or stopped; one without keeps no
    model and takes the verdict's state. Segments without a verdict did not run (only one timeframe did) and stay as they are.
    Raises HuracanError for a candidate without verdict and for a promotion without a champion pointer in `new`.
    """
    if unjudged := sorted(new.keys() - verdicts.keys()):
        raise HuracanError(f"candidates without a verdict: {', '.join(unjudged)}; judge every segment that was trained")
    return {key: _choose(key, old.get(key), new.get(key), verdicts.get(key)) for key in sorted(old.keys() | verdicts.keys())}


_FIELDS = set(SegmentMetrics.model_fields) - {"schema_version", "promoted", "baselines"}
_INTEGERS = {"sample_size", "windows"}
_COHORT_SCHEMA: dict[str, Any] = {"symbol": pl.String, "timeframe": pl.String, "regime": pl.String} | {
    field: pl.List(pl.String) if field == "window" else pl.Int64 if field in _INTEGERS else pl.Float64
    for field in SegmentMetrics.model_fields
    if field in _FIELDS
}


def _passes(metrics: SegmentMetrics, gate: str, bound: float) -> bool:
    value = getattr(metrics, gate if gate.startswith("max_") else gate.removeprefix("min_"))
    if value is None:
        return False
    return bool(value <= bound if gate.startswith("max_") else value >= bound)


def _state(regime: Regime, failed: tuple[str, ...]) -> str:
    if regime in NEVER_TRADED:
        return NOT_TRADED
    if any(gate in EVIDENCE_GATES for gate in failed):
        return INSUFFICIENT
    return f"rejected: {failed[0]}" if failed else CHAMPION


def _tested_p(regime: Regime, metrics: SegmentMetrics | None, gates: Gates) -> float:
    """The p-value that enters the cohort, or NaN."""
    if regime in NEVER_TRADED or metrics is None or metrics.p_value is None:
        return float("nan")
    short = any(gate in EVIDENCE_GATES for gate in failed_gates(metrics, gates, None, None))
    return float("nan") if short else metrics.p_value


def _metrics(row: Mapping[str, Any]) -> SegmentMetrics | None:
    return None if row["sample_size"] is None else SegmentMetrics.model_validate({field: row[field] for field in _FIELDS})


def _choose(key: str, old: SegmentPointer | None, new: SegmentPointer | None, verdict: Verdict | None) -> Choice:
    holds = old is not None and old.model_id is not None
    if old is not None and (verdict is None or (holds and verdict.action == "keep")):
        return Choice("champion" if holds else "none", old)
    assert verdict is not None
    if verdict.action != "promote":
        return Choice("none", SegmentPointer(model_id=None, promoted_at=None, state=verdict.state))
    if new is None or new.model_id is None or new.state != CHAMPION:
        raise HuracanError(f"{key} is to be promoted, but its candidate names no champion model: {new}")
    return Choice("challenger", new)
