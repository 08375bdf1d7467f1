"""The run manifest and the daily summary: what a night read, made and decided."""

from typing import Any

from engine_assets.work.night import STAGES, Night
from engine_assets.work.run import NightRun
from engine_assets.work.train import UnitPart, costs_of, read_part
from engine_resources.records import Unit, environment, read_ledger, utc_now
from hamilton_client.core import layout
from hamilton_client.core.contracts import CostSnapshot, FailureReport, LedgerLine, RunManifest, canonical_json, content_hash


def write_manifest(run: NightRun, dagster_run_id: str) -> RunManifest:
    """Write `manifest.json` and the day's summary from the ledger and the parts of this run."""
    night = run.night
    lines = read_ledger(night.store, night.run_id)
    units = sorted({Unit(line.symbol, line.timeframe) for line in lines if line.stage == "models" and line.ok})
    symbols = sorted({unit.symbol for unit in units})
    parts = {unit: part for unit in units if (part := read_part(unit, night)) is not None}
    around = environment()
    manifest = RunManifest(
        run_id=night.run_id,
        as_of=night.as_of,
        utc_started=run.started,
        utc_finished=utc_now(),
        engine_version=around.engine_version,
        git_commit=around.git_commit,
        symbols_trained=tuple(symbols),
        artifacts_map={symbol: layout.bundle(symbol, night.as_of) for symbol in symbols},
        metrics_map=_metrics(parts),
        costs_map=_costs(symbols, night),
        feature_recipe_hash_map=dict.fromkeys(symbols, night.recipe.features.hash),
        inputs={symbol: _inputs(symbol, night) for symbol in symbols},
        lineages={night.recipe.name: night.recipe.hash},
        config=_config(night, dagster_run_id),
        versions=around.versions,
        seeds={"lightgbm": night.recipe.model.seed},
        market=night.policy.market,
        failures=tuple(_failure(line) for line in _first_failures(lines)),
    )
    night.store.put(layout.manifest(night.run_id), manifest.to_bytes())
    night.store.put(layout.daily_summary(night.as_of.date()), canonical_json(_summary(manifest, run, parts)))
    return manifest


def _metrics(parts: dict[Unit, UnitPart]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for unit, part in parts.items():
        for regime, segment in part.segments.items():
            if segment.metrics is not None:
                chosen = segment.metrics.model_dump(
                    mode="json", include={"sharpe", "net_bps", "hit_rate", "sample_size", "max_drawdown_pct"}
                )
                found.setdefault(unit.symbol, {})[layout.segment(unit.timeframe, regime)] = chosen
    return found


def _costs(symbols: list[str], night: Night) -> dict[str, CostSnapshot]:
    return {symbol: costs_of(symbol, night.recent(symbol), night) for symbol in symbols}


def _inputs(symbol: str, night: Night) -> dict[str, str]:
    """Where the day hashes lie, and their own hash: 400 coins of day hashes would not fit one object."""
    days = night.days(symbol)
    return {"object": layout.inputs(night.run_id, symbol), "sha256": content_hash(days), "first_day": min(days), "last_day": max(days)}


def _config(night: Night, dagster_run_id: str) -> dict[str, Any]:
    secret = {"database_url", "mlflow_url", "home", "ray_address"}
    return night.settings.model_dump(mode="json", exclude=secret) | {"dagster_run_id": dagster_run_id}


def _first_failures(lines: list[LedgerLine]) -> list[LedgerLine]:
    """One line per failed unit: that of the stage where it failed, not of those that could only follow."""
    order = {stage: place for place, stage in enumerate(STAGES)}
    failed = sorted((line for line in lines if not line.ok), key=lambda line: -order.get(line.stage, -1))
    first = {(line.symbol, line.timeframe): line for line in failed}
    return [first[unit] for unit in sorted(first)]


def _failure(line: LedgerLine) -> FailureReport:
    kind, _, message = (line.error or "").partition(": ")
    step = f"{line.stage} {line.timeframe}"
    return FailureReport(
        step=step, exception_type=kind, message=message, last_files_written=(), suggestions=(), symbol=line.symbol, traceback=""
    )


def _summary(manifest: RunManifest, run: NightRun, parts: dict[Unit, UnitPart]) -> dict[str, Any]:
    """`summaries/daily/DATE.json`: synthetic coins are left out of every total."""
    night = run.night
    rows = [row for row in run.library.champions().values() if not row.synthetic]
    states: dict[str, int] = {}
    for row in rows:
        for pointer in row.segments.values():
            states[pointer.state] = states.get(pointer.state, 0) + 1
    scored = [
        segment.metrics
        for unit, part in parts.items()
        if not night.source.is_synthetic(unit.symbol)
        for segment in part.segments.values()
        if segment.metrics is not None and segment.metrics.net_bps is not None
    ]
    trades = sum(metrics.sample_size for metrics in scored)
    net = sum((metrics.net_bps or 0.0) * metrics.sample_size for metrics in scored)
    hits = sum((metrics.hit_rate or 0.0) * metrics.sample_size for metrics in scored)
    return {
        "date": f"{night.as_of:%Y-%m-%d}",
        "run_id": manifest.run_id,
        "evidence": night.evidence,
        "market": night.policy.market.proxy_note,
        "top_contributors": _top(parts, night),
        "hit_rate": hits / trades if trades else None,
        "net_edge_bps": net / trades if trades else None,
        "trades_counted": trades,
        "segments_by_state": states,
        "champions_changed": [row.symbol for row in rows if row.as_of == night.as_of and any(p.model_id for p in row.segments.values())],
        "failures": [f"{report.symbol} {report.step}: {report.message}" for report in manifest.failures],
    }


def _top(parts: dict[Unit, UnitPart], night: Night) -> list[dict[str, Any]]:
    rows = [
        {"segment": f"{unit.symbol}.{layout.segment(unit.timeframe, regime)}", "net_pnl_pct": segment.metrics.net_pnl_pct}
        for unit, part in parts.items()
        if not night.source.is_synthetic(unit.symbol)
        for regime, segment in part.segments.items()
        if segment.metrics is not None
    ]
    return sorted(rows, key=lambda row: -float(str(row["net_pnl_pct"])))[:5]
