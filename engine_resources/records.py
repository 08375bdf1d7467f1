"""What a night writes down while it happens: ledger lines, failure reports, heartbeats, and the versions it ran with."""

import platform
import shutil
import subprocess
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Self

import structlog
from pydantic import ValidationError

from hamilton_client.core import layout
from hamilton_client.core.contracts import FailureReport, Heartbeat, HuracanError, LedgerLine
from hamilton_client.store import ObjectStore

Clock = Callable[[], datetime]
READERS = 16
HEART_SECONDS = 30.0
PACKAGES = ("lightgbm", "polars", "numpy", "dagster", "ray", "mlflow")
RESUME = "run huracan nightly --resume: what was done is kept"
SUGGESTIONS: dict[str, tuple[str, ...]] = {  # by exception type, nearest base class first
    "ConnectionError": ("check the network and the endpoint's address", RESUME),
    "TimeoutError": ("raise training.timeout_seconds, or lower training.max_concurrent if the machine was overloaded", RESUME),
    "MemoryError": ("lower training.max_concurrent or training.num_workers", RESUME),
    "OutOfMemoryError": ("lower training.max_concurrent or training.num_workers", RESUME),
    "WorkerCrashedError": ("look for an out-of-memory kill in dmesg; if there is one, lower training.max_concurrent", RESUME),
    "NodeDiedError": ("a node of the cluster went away: bring it back", RESUME),
    "PermissionError": ("check the rights of the bucket key and of HURACAN_HOME",),
    "FileNotFoundError": ("an earlier stage left no file for this coin: huracan nightly --coins SYMBOL",),
    "NotFound": ("an earlier stage left no object for this coin: huracan nightly --coins SYMBOL",),
    "LightGBMError": ("look at the defects its raw partition counts: the candles may not be usable",),
    "Exception": ("the traceback names the line; huracan nightly --resume repeats only what failed",),
}
log = structlog.get_logger(__name__)


class Unit(NamedTuple):
    """What one task works on: a coin in a timeframe."""

    symbol: str
    timeframe: str


class Failure(NamedTuple):
    """Why a unit has no value; `traceback` is empty for a HuracanError, whose message already says what to do."""

    exception_type: str
    message: str
    traceback: str = ""
    suggestions: tuple[str, ...] = ()


class Environment(NamedTuple):
    """Versions of what computes, the commit of this code (`-dirty` where tracked files differ from it), and its release."""

    versions: dict[str, str]
    git_commit: str
    engine_version: str


def utc_now() -> datetime:
    """Wall clock, for logs and stamps only: what a night reads is pinned by as_of."""
    return datetime.now(UTC)


def failure_of(error: BaseException) -> Failure:
    """Describe an exception by its own type, message and traceback, and by what its reader may try."""
    if isinstance(error, HuracanError):
        return Failure(type(error).__name__, str(error))
    names = [kind.__name__ for kind in type(error).__mro__]
    advice = next((SUGGESTIONS[name] for name in names if name in SUGGESTIONS), ())
    return Failure(names[0], str(error), "".join(traceback.format_exception(error)), advice)


class NightRecords:
    """Writes one run's ledger lines and failure reports, each an object of its own, the moment it is known."""

    def __init__(self, store: ObjectStore, run_id: str, clock: Clock = utc_now) -> None:
        self.store = store
        self.run_id = run_id
        self._clock = clock

    def ledger(self, stage: str, unit: Unit, ok: bool, error: str | None = None, detail: dict[str, Any] | None = None) -> LedgerLine:
        """Write the line of one unit of one stage; a later attempt in the same run replaces it."""
        line = LedgerLine(
            run_id=self.run_id,
            stage=stage,
            symbol=unit.symbol,
            timeframe=unit.timeframe,
            ok=ok,
            error=error,
            detail=detail or {},
            at=self._clock(),
        )
        self.store.put(layout.ledger_line(self.run_id, stage, *unit), line.to_bytes())
        return line

    def failure(self, step: str, symbol: str | None, failure: Failure, last_files: Sequence[str] = ()) -> FailureReport:
        """Write a failure report: the run's own where `symbol` is None; else the coin's, and the run's if it is the first failure."""
        report = FailureReport(
            step=step,
            exception_type=failure.exception_type,
            message=failure.message,
            last_files_written=tuple(last_files),
            suggestions=failure.suggestions,
            symbol=symbol,
            traceback=failure.traceback,
        )
        body = report.to_bytes()
        if symbol is not None:
            self.store.put(layout.failure_report(self.run_id, symbol, step.replace("/", "-")), body)
        self.store.put(layout.failure_report(self.run_id), body, if_absent=symbol is not None)
        return report


def read_ledger(store: ObjectStore, run_id: str, stage: str | None = None) -> list[LedgerLine]:
    """Every line of a run, or of one of its stages, in key order. Raises HuracanError for a line that cannot be read."""
    everything = layout.ledger_line(run_id, "*", "ANY", "").partition("*")[0]
    keys = store.list(f"{everything}{stage}/" if stage else everything)
    with ThreadPoolExecutor(READERS) as readers:
        lines = list(readers.map(lambda key: _ledger_line(store, key), keys))
    return [line for line in lines if stage in (None, line.stage)]


def _ledger_line(store: ObjectStore, key: str) -> LedgerLine:
    try:
        return LedgerLine.from_bytes(store.get(key))
    except ValidationError as error:
        raise HuracanError(
            f"ledger line {key} in {store.url} is no ledger line ({error.error_count()} faults). Delete it: its unit then runs again"
        ) from error


class Heart:
    """Background thread that rewrites `heartbeats/engine.json` every `seconds` and at each change of phase.

    It never raises into the night: a bucket that refuses a beat is logged. Leaving the context writes a last beat, whose phase is
    `finished`, or `failed` with the error that ended the night; who has said `failed` before has the last word.
    """

    def __init__(self, store: ObjectStore, run_id: str, clock: Clock = utc_now, seconds: float = HEART_SECONDS) -> None:
        self._store, self._clock, self._seconds = store, clock, seconds
        self._state: dict[str, Any] = {"phase": "starting", "current_symbol": None, "progress": 0.0, "last_error": None, "run_id": run_id}
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True, name="heart")

    def update(
        self, phase: str | None = None, *, symbol: str | None = None, progress: float | None = None, error: str | None = None
    ) -> None:
        """Note where the night is; what is left out stays, except that a new phase starts without symbol and at progress 0."""
        changed = phase is not None and phase != self._state["phase"]
        state = dict(self._state, phase=phase, current_symbol=None, progress=0.0) if changed else dict(self._state)
        news = {"current_symbol": symbol, "progress": None if progress is None else min(1.0, max(0.0, progress)), "last_error": error}
        self._state = state | {name: value for name, value in news.items() if value is not None}
        if changed:
            self._wake.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None and self._state["phase"] != "failed":
            self.update("finished", progress=1.0)
        elif error is not None:
            self.update("failed", error=f"{type(error).__name__}: {error}")
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=self._seconds)

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            self._wake.clear()
            self._beat()
            if stopping:
                return
            self._wake.wait(self._seconds)

    def _beat(self) -> None:
        try:
            self._store.put(layout.ENGINE_HEARTBEAT, Heartbeat(**self._state, at=self._clock()).to_bytes())
        except Exception as error:
            log.warning("heartbeat not written", error=str(error))


def environment() -> Environment:
    """Say what this process runs with, as the run manifest records it."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return Environment(versions, _git_commit(Path(__file__).resolve().parent.parent), _version("huracan"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git_commit(root: Path) -> str:
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():  # without the second test an installed copy would report the repository around its venv
        return "unknown"
    told = subprocess.run(  # noqa: S603  (fixed arguments, absolute program)
        [git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"
