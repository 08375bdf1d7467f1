"""Every decision, kept: one fsynced line each on this machine, uploaded to the bucket as numbered parquet parts.

A part is planned on disk before it is put, so that a kill at any point repeats the same part instead of adding another one.
"""

import io
import json
import os
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import structlog
from pydantic import ValidationError

from hamilton_client.core import layout
from hamilton_client.core.contracts import DecisionEvent, Frozen, HuracanError
from hamilton_client.store import ObjectStore

TEXT = pl.String()
NUMBER = pl.Float64()
VOTE_SCHEMA = {
    "engine": TEXT,
    "direction": TEXT,
    "edge_bps_before_costs": NUMBER,
    "confidence_0_1": NUMBER,
    "horizon_bars": pl.Int64(),
    "horizon_minutes": NUMBER,
    "weight": NUMBER,
    "gated": TEXT,
    "metadata": TEXT,
}
DECISION_SCHEMA = {
    "decision_id": TEXT,
    "timestamp": pl.Datetime("us", "UTC"),
    "symbol": TEXT,
    "regime": TEXT,
    "action": TEXT,
    "size_usd": NUMBER,
    "consensus_score": NUMBER,
    "expected_edge_bps": NUMBER,
    "costs_bps": NUMBER,
    "net_edge_bps": NUMBER,
    "risk_preset": TEXT,
    "reason": TEXT,
    "engine_votes": pl.List(pl.Struct(VOTE_SCHEMA)),
    "metadata": TEXT,
    "schema_version": pl.Int64(),
}


class Part(Frozen):
    """One planned or finished upload: journal bytes `[start, end)` of a day as part `number`."""

    number: int
    start: int
    end: int
    done: bool = False


def decisions_frame(events: Iterable[DecisionEvent]) -> pl.DataFrame:
    """One row per event, votes as a list of structs, `metadata` as JSON text; DuckDB and polars query it as it is."""
    rows = [event.model_dump(mode="json") | {"timestamp": event.timestamp} for event in events]
    for row in rows:
        row["metadata"] = _json(row["metadata"])
        row["engine_votes"] = [vote | {"metadata": _json(vote["metadata"])} for vote in row["engine_votes"]]
    return pl.DataFrame(rows, schema=DECISION_SCHEMA)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


class Journal:
    """Decisions by UTC day below `root`: `YYYYMMDD.jsonl` and, beside it, which bytes went into which part. One writer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[date, set[str]] = {}

    def append(self, event: DecisionEvent) -> bool:
        """Write one event and fsync; False where the day already holds this decision, so that a repeated run adds nothing.

        Raises HuracanError where the folder cannot be written or holds a damaged line.
        """
        day = event.timestamp.astimezone(UTC).date()
        line = json.dumps(event.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        path = self._path(day)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            seen = self._seen.get(day) or self._recover(day)
            if event.decision_id in seen:
                return False
            with path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            raise HuracanError(
                f"{path}: the decision cannot be journalled ({fault.strerror}); free the disk or choose another --home"
            ) from fault
        seen.add(event.decision_id)
        return True

    def _recover(self, day: date) -> set[str]:
        """Cut off a line that an earlier kill tore, and learn which decisions the day holds."""
        path = self._path(day)
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            structlog.get_logger().warning("journal_torn_line_dropped", file=str(path), bytes=len(content) - whole)
            os.truncate(path, whole)
        self._seen[day] = {event.decision_id for event in _events(content, path)}
        return self._seen[day]

    def read(self, day: date) -> list[DecisionEvent]:
        """The events of a day in the order they were made; a torn last line is left out. Raises HuracanError on a damaged line."""
        path = self._path(day)
        return _events(path.read_bytes(), path) if path.exists() else []

    def upload(self, store: ObjectStore) -> list[str]:
        """Put what no part holds yet into `live_logs/decisions/`; returns the keys. Calling it again changes nothing."""
        days = [datetime.strptime(path.stem, "%Y%m%d").replace(tzinfo=UTC).date() for path in sorted(self.root.glob("*.jsonl"))]
        return [key for day in days for key in self._upload_day(store, day)]

    def _upload_day(self, store: ObjectStore, day: date) -> list[str]:
        path, parts = self._path(day), self._parts(day)
        start = parts[-1].end if parts else 0
        if path.stat().st_size == start and parts[-1].done:
            return []
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end > start:
            parts.append(Part(number=self._next_number(store, day, parts), start=start, end=end))
            self._plan(day, parts)
        keys = []
        for position, part in enumerate(parts):
            if not part.done:
                keys.append(self._put(store, day, _events(content[part.start : part.end], path), part.number))
                parts[position] = part.model_copy(update={"done": True})
                self._plan(day, parts)
        return keys

    def _put(self, store: ObjectStore, day: date, events: list[DecisionEvent], number: int) -> str:
        buffer = io.BytesIO()
        decisions_frame(events).write_parquet(buffer, compression="zstd")
        key = layout.live_decisions(day, number)
        store.put(key, buffer.getvalue())
        return key

    def _next_number(self, store: ObjectStore, day: date, parts: list[Part]) -> int:
        """Above every part in the bucket too: a lost journal must not overwrite what it once uploaded."""
        prefix = layout.live_decisions(day, 0).rpartition("/")[0] + "/"
        taken = [int(key.rpartition("/")[2].removesuffix(".parquet")) for key in store.list(prefix)]
        return max([part.number for part in parts] + taken, default=0) + 1

    def _path(self, day: date) -> Path:
        return self.root / f"{day:%Y%m%d}.jsonl"

    def _parts(self, day: date) -> list[Part]:
        file = self.root / f"{day:%Y%m%d}.parts"
        return [Part.model_validate_json(line) for line in file.read_text().splitlines()] if file.exists() else []

    def _plan(self, day: date, parts: list[Part]) -> None:
        file = self.root / f"{day:%Y%m%d}.parts"
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_text("".join(f"{part.model_dump_json()}\n" for part in parts))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)


def _events(content: bytes, path: Path) -> list[DecisionEvent]:
    """Parse whole lines; what follows the last newline was never finished."""
    events = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            events.append(DecisionEvent.from_bytes(line))
        except ValidationError as fault:
            raise HuracanError(
                f"{path}:{number}: is no decision ({fault.error_count()} faults); move the file away to start a new journal"
            ) from None
    return events
