"""What a person sees of a night: one line per coin, reasons counted, what was reused. Synthetic coins are shown, never totalled."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine_assets.work.night import STAGES, Night
from engine_assets.work.train import UnitPart, read_part
from engine_resources.library import Library
from engine_resources.records import Unit, read_ledger
from hamilton_client.core import layout
from hamilton_client.core.contracts import TRAINED_REGIMES, LedgerLine, Regime, SegmentMetrics


class SegmentRow(NamedTuple):
    """One segment as `huracan status` lists it; metrics are out of sample and net of costs, None where there are
    none; `baselines` as in `SegmentMetrics`.
    """

    symbol: str
    timeframe: str
    regime: str
    state: str
    model_id: str | None
    synthetic: bool
    trades: int | None
    net_bps: float | None
    sharpe: float | None
    baselines: dict[str, float | None]


class CoinRow(NamedTuple):
    """One coin of a night; trades, net_bps and sharpe are those of its best segment by Sharpe."""

    symbol: str
    windows: int
    trades: int
    net_bps: float | None
    sharpe: float | None
    best_segment: str
    verdict: str
    synthetic: bool


def segment_rows(night: Night, library: Library) -> list[SegmentRow]:
    """Every segment of every coin this run worked on: coins × timeframes × regimes, nothing left out."""
    lines = read_ledger(night.store, night.run_id)
    units = sorted({Unit(line.symbol, line.timeframe) for line in lines if line.stage == STAGES[0]})
    failures = _failures(lines)
    champions = library.champions()
    rows = []
    for unit in units:
        part = read_part(unit, night)
        pointer = champions.get(unit.symbol)
        for regime in TRAINED_REGIMES:
            key = layout.segment(unit.timeframe, regime)
            entry = pointer.segments.get(key) if pointer else None
            state = failures.get(unit) or (entry.state if entry else "failed: champions")
            found = _metrics(part, regime)
            rows.append(
                SegmentRow(
                    symbol=unit.symbol,
                    timeframe=unit.timeframe,
                    regime=regime.value,
                    state=state,
                    model_id=entry.model_id if entry else None,
                    synthetic=night.source.is_synthetic(unit.symbol),
                    trades=found.sample_size if found else None,
                    net_bps=found.net_bps if found else None,
                    sharpe=found.sharpe if found else None,
                    baselines=found.baselines if found else {},
                )
            )
    return rows


def coin_rows(segments: Sequence[SegmentRow], night: Night) -> list[CoinRow]:
    """One row per coin, real coins first."""
    rows = []
    for symbol in sorted({row.symbol for row in segments}):
        mine = [row for row in segments if row.symbol == symbol]
        parts = [read_part(Unit(symbol, timeframe), night) for timeframe in sorted({row.timeframe for row in mine})]
        scored = [row for row in mine if row.sharpe is not None]
        best = max(scored, key=lambda row: row.sharpe or 0.0, default=None)
        champions = [f"{row.timeframe}.{row.regime}" for row in mine if row.state == "champion"]
        failed = sorted({row.state for row in mine if row.state.startswith("failed")})
        rows.append(
            CoinRow(
                symbol=symbol,
                windows=sum(part.windows for part in parts if part),
                trades=best.trades or 0 if best else 0,
                net_bps=best.net_bps if best else None,
                sharpe=best.sharpe if best else None,
                best_segment=f"{best.timeframe}.{best.regime}" if best else "none",
                verdict=_verdict(champions, failed, best),
                synthetic=mine[0].synthetic,
            )
        )
    return sorted(rows, key=lambda row: (row.synthetic, row.symbol))


def _verdict(champions: Sequence[str], failed: Sequence[str], best: SegmentRow | None) -> str:
    if champions:
        return f"champion: {', '.join(champions)}"
    return failed[0] if failed else f"rules only ({best.state if best else 'insufficient_data'})"


def state_counts(segments: Sequence[SegmentRow]) -> dict[str, int]:
    """How many segments are in which state, most frequent first."""
    return dict(Counter(row.state for row in segments).most_common())


def reuse(night: Night) -> dict[str, Any]:
    """Windows fitted and reused, and chunks computed and reused, in this run."""
    lines = [line for line in read_ledger(night.store, night.run_id) if line.ok]
    models = [line.detail for line in lines if line.stage == "models"]
    chunks = [line.detail for line in lines if line.stage in ("features", "regimes")]
    return {
        "windows_fitted": sum(detail.get("fitted", 0) for detail in models),
        "windows_reused": sum(detail.get("reused", 0) for detail in models),
        "chunks_computed": sum(detail.get("computed", 0) for detail in chunks),
        "chunks_reused": sum(detail.get("reused", 0) for detail in chunks),
        "shadow_days": sum(line.detail.get("days", 0) for line in lines if line.stage == "shadow"),
    }


def _failures(lines: Sequence[LedgerLine]) -> dict[Unit, str]:
    """The earliest stage a unit failed in."""
    failures: dict[Unit, str] = {}
    for stage in reversed(STAGES):
        failures |= {Unit(line.symbol, line.timeframe): f"failed: {stage}" for line in lines if line.stage == stage and not line.ok}
    return failures


def _metrics(part: UnitPart | None, regime: Regime) -> SegmentMetrics | None:
    return part.segments[regime].metrics if part else None
