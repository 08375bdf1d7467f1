"""How the command line shows a night: progress, tables, JSON."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine_assets import report
from engine_assets.launch import NightResult
from engine_assets.session import Listener
from engine_assets.work.night import Night
from engine_assets.work.run import StageEvent
from engine_resources.library import Library
from hamilton_client.core.contracts import utc_iso

LOOK = """look at it:
  {bin}huracan ui                            Dagster on port 3000, MLflow on port 5000
  {bin}huracan status                        every segment and its state
  {bin}hamilton once SYNTHETICUSDT BTCUSDT   one decision per coin, with every vote"""
BASELINES = (("buy_and_hold_sharpe", 2), ("random_percentile", 2), ("pooled_net_bps", 1))
LEFT = ("coin", "best segment", "verdict")
out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)


@contextmanager
def progress(instant: datetime, *, quiet: bool) -> Iterator[Listener]:
    """A bar per stage on stderr, so that stdout stays for results."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        progress.console.print(f"night of {utc_iso(instant)}")
        bars: dict[str, Any] = {}

        def listen(name: str, total: int, event: StageEvent | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total, last="")
            if event is not None:
                progress.update(
                    bars[name], advance=1, last=f"{event.unit.symbol} {event.unit.timeframe}" + (" failed" if event.error else "")
                )

        yield listen


def head(night: Night) -> dict[str, Any]:
    """What every document says of its night."""
    return {"run_id": night.run_id, "as_of": night.as_of.isoformat(), "market": night.policy.market.proxy_note, "evidence": night.evidence}


def night_json(night: Night, library: Library, results: list[NightResult]) -> dict[str, Any]:
    """The night as one JSON document."""
    rows = report.segment_rows(night, library)
    return head(night) | {
        "ok": all(result.ok for result in results),
        "coins": [row._asdict() for row in report.coin_rows(rows, night)],
        "counts": report.state_counts(rows),
        "reuse": report.reuse(night),
        "seconds": {utc_iso(result.as_of): result.seconds for result in results},
        "failures": sorted({f"{row.symbol}|{row.timeframe}: {row.state}" for row in rows if row.state.startswith("failed")}),
    }


def print_night(night: Night, library: Library, results: list[NightResult], every: bool) -> None:
    """A line per coin, counts of reasons, time per stage, what was reused, and where to look next."""
    rows = report.segment_rows(night, library)
    if every:
        print_segments(rows)
    table = Table(
        title=f"night of {utc_iso(night.as_of)}",
        caption=f"{night.policy.market.proxy_note}; best segment by Sharpe, out of sample, net of costs",
    )
    for name in ("coin", "windows", "best segment", "trades", "net bps", "Sharpe", "verdict"):
        table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    for row in report.coin_rows(rows, night):
        name = f"{row.symbol} (SYNTHETIC, not in totals)" if row.synthetic else row.symbol
        table.add_row(
            name, str(row.windows), row.best_segment, str(row.trades), _number(row.net_bps, 1), _number(row.sharpe, 2), row.verdict
        )
    out.print(table)
    print_counts(rows)
    for result in results:
        stages = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
        out.print(f"{utc_iso(result.as_of)}: {stages}  total {sum(result.seconds.values()):.1f} s")
        if result.error:
            out.print(f"  {result.error}")
    if not results:
        out.print("every night asked for was complete already: nothing was run again")
    used = report.reuse(night)
    out.print(f"last night: {used['windows_fitted']} windows fitted, {used['windows_reused']} reused")
    out.print(f"            {used['chunks_computed']} feature and regime chunks computed, {used['chunks_reused']} reused")
    out.print(f"            {used['shadow_days']} shadow days added")
    out.print(LOOK.format(bin=_bin()))


def _bin() -> str:
    """What to put before our commands so that the line can be pasted."""
    if shutil.which("huracan"):
        return ""
    folder = Path(sys.argv[0]).absolute().parent
    return f"{folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}/"


def print_segments(rows: Sequence[report.SegmentRow]) -> None:
    """Every segment with its state."""
    headings = ("coin", "segment", "state", "trades", "net bps", "Sharpe", "hold Sharpe", "random pct", "pooled bps", "model")
    table = Table(*headings, title="segments; baselines: buy and hold, percentile among random entries, pooled all-coins model")
    for row in rows:
        name = f"{row.symbol} (SYNTHETIC)" if row.synthetic else row.symbol
        trades = "" if row.trades is None else str(row.trades)
        figures = (_number(row.net_bps, 1), _number(row.sharpe, 2), *(_number(row.baselines.get(key), digits) for key, digits in BASELINES))
        table.add_row(name, f"{row.timeframe}.{row.regime}", row.state, trades, *figures, row.model_id or "")
    out.print(table)


def print_counts(rows: Sequence[report.SegmentRow]) -> None:
    """Counts of states over real coins."""
    real = [row for row in rows if not row.synthetic]
    counts = ", ".join(f"{count} {state}" for state, count in report.state_counts(real).items())
    out.print(f"{len(real)} segments of {len({row.symbol for row in real})} real coins: {counts}")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
