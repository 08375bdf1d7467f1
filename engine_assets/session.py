"""One Dagster run as a session of the night: opens lock, pool, tables and registry, and turns stage events into partition events."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import structlog

from engine_assets.partitions import AS_OF_TAG, NO_IMPLICIT_EVENTS, PartitionLog, partition_log, units_of
from engine_assets.work.manifest import write_manifest
from engine_assets.work.night import STAGES, Night
from engine_assets.work.run import NightRun, StageEvent
from engine_resources.library import Library
from engine_resources.lock import night_lock
from engine_resources.pool import PoolSettings, open_pool
from engine_resources.records import Heart, failure_of
from engine_resources.registry import Registry
from engine_resources.settings import Settings
from hamilton_client.core.contracts import HuracanError, canonical_json

RESUME_TAG = "huracan/resume"
LAUNCHED_BY_TAG = "huracan/launched_by"
PID_TAG = "huracan/pid"
LOCK_POLL_SECONDS = 5.0
REPEAT = "Lineage → Materialize all → All, All → Backfill only failed and missing partitions"
STAT_START = 19  # field `starttime` of /proc/PID/stat, counted behind the program's name
Listener = Callable[[str, int, StageEvent | None], None]
log = structlog.get_logger(__name__)


def scheduled_as_of(now: datetime) -> datetime:
    """The newest 02:00 UTC tick at or before `now`."""
    tick = now.astimezone(UTC).replace(hour=2, minute=0, second=0, microsecond=0)
    return tick if tick <= now else tick - timedelta(days=1)


def process_mark(pid: int | str) -> str:
    """`pid.start` of a process, in the kernel's ticks since boot; just `pid` where there is none. A number alone is soon another process's:
    in a restarted container the next night has the pid of the dead one.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return str(pid)
    return f"{pid}.{fields[STAT_START]}" if fields[0] != "Z" else str(pid)


class Session:
    """What stage assets ask for as `night`; one per Dagster run."""

    def __init__(self, run: NightRun, listener: Listener | None) -> None:
        self.run = run
        self._listener = listener

    def stage(self, context: dg.AssetExecutionContext, name: str, keys: Sequence[dg.AssetKey]) -> Iterator[dg.MaterializeResult[None]]:
        """Run one stage over this run's partitions; its failed units fail the run at the last selected stage.

        What stops the night is recorded here: Dagster closes the session without telling it why.
        """
        try:
            yield from self._stage(context, name, keys)
        except (dg.Failure, GeneratorExit):
            raise
        except BaseException as error:
            self.run.stopped(name, error)
            raise

    def _stage(self, context: dg.AssetExecutionContext, name: str, keys: Sequence[dg.AssetKey]) -> Iterator[dg.MaterializeResult[None]]:
        selected = [key for key in keys if key in context.selected_asset_keys]
        units = units_of(context)
        with partition_log(context, selected) as partitions:
            self._tell(name, len(units), None)
            for event in self.run.stage(name, units):
                _show(partitions, selected, event)
                self._tell(name, len(units), event)
        for key in selected:
            yield dg.MaterializeResult(asset_key=key, metadata=dict(NO_IMPLICIT_EVENTS))
        if _is_last(context, name):
            self._finish(context, partitions)

    def _tell(self, name: str, total: int, event: StageEvent | None) -> None:
        if self._listener is not None:
            self._listener(name, total, event)

    def _finish(self, context: dg.AssetExecutionContext, partitions: PartitionLog) -> None:
        write_manifest(self.run, context.run.run_id)
        if partitions.failures:
            rows = [dg.TableRecord({"partition": "|".join(unit), "error": error}) for unit, error in partitions.failures.items()]
            raise dg.Failure(
                f"{len(rows)} of {len(units_of(context))} partitions failed; the others are done. Repeat these: huracan nightly --resume",
                metadata={"repeat on these pages": REPEAT, "failed": dg.MetadataValue.table(rows)},
                allow_retries=False,
            )


def _show(partitions: PartitionLog, keys: Sequence[dg.AssetKey], event: StageEvent) -> None:
    """One event per partition and key that tells the truth about it."""
    for key in keys:
        if event.error is not None:
            partitions.failed(event.unit, event.error, key)
        else:
            others = {other.path[-1] for other in keys if other != key}  # models/TREND does not show what became of RANGE
            shown = {name: value for name, value in event.detail.items() if value is not None and name not in others}
            partitions.done(event.unit, key, **{name: _metadata(value) for name, value in shown.items()})


def _metadata(value: object) -> object:
    return canonical_json(value).decode() if isinstance(value, dict | list | tuple) else value


def _is_last(context: dg.AssetExecutionContext, name: str) -> bool:
    chosen = context.run.asset_selection
    names = {key.path[0] for key in chosen} if chosen else set(STAGES)
    return not any(later in names for later in STAGES[STAGES.index(name) + 1 :])


def session_resource(settings: Settings, listener: Listener | None = None, *, wait_for_lock: bool = True) -> dg.ResourceDefinition:
    """The resource `night`: everything is opened when a run begins and closed when it ends, however it ends."""

    @contextmanager
    def open_session(context: dg.InitResourceContext) -> Iterator[Session]:
        tags = context.run.tags if context.run else {}
        if context.run is not None and context.instance is not None:
            context.instance.add_run_tags(context.run.run_id, {PID_TAG: process_mark(os.getpid())})
        with open_run(settings, tags.get(AS_OF_TAG), resume=RESUME_TAG in tags, wait=wait_for_lock) as run:
            if context.run is not None and context.instance is not None:
                context.instance.add_run_tags(context.run.run_id, {AS_OF_TAG: run.as_of.isoformat()})
            yield Session(run, listener)

    return dg.ResourceDefinition(resource_fn=dg.resource(open_session).resource_fn)


@contextmanager
def open_run(settings: Settings, as_of: str | None, *, resume: bool = False, wait: bool = False) -> Iterator[NightRun]:
    """Open one night: lock, heartbeat, pool, tables, registry. Raises HuracanError while another night runs, unless told to wait."""
    probe = Night(settings, datetime.now(UTC))
    night = Night(settings, datetime.fromisoformat(as_of) if as_of else scheduled_as_of(probe.source.now()))
    with ExitStack() as stack:
        _lock(stack, night, wait)
        library = Library(settings.database_url)
        stack.callback(library.close)
        library.migrate()
        registry = Registry(settings.mlflow_url, str(settings.home / "mlartifacts"))
        registry.close_abandoned()
        heart = stack.enter_context(Heart(night.store, night.run_id, seconds=settings.engine.heartbeat_seconds))
        pool = stack.enter_context(open_pool(pool_settings(settings)))
        run = NightRun(night, pool, library, registry, heart, resume=resume)
        try:
            yield run
        except Exception as error:
            if not isinstance(error, dg.Failure):
                run.records.failure("night", None, failure_of(error))
            raise


def _lock(stack: ExitStack, night: Night, wait: bool) -> None:
    night.settings.home.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            stack.enter_context(night_lock(night.settings.home, night.run_id))
            return
        except HuracanError as held:
            if not wait:
                raise
            log.info("waiting_for_the_night_lock", reason=str(held))
            time.sleep(LOCK_POLL_SECONDS)


def pool_settings(settings: Settings) -> PoolSettings:
    """The pool's part of the settings."""
    training = settings.training
    return PoolSettings(
        backend=training.backend,
        mode=training.mode,
        max_concurrent=training.max_concurrent,
        retry_attempts=training.retry_attempts,
        timeout_seconds=training.timeout_seconds,
        num_workers=training.num_workers,
        address=settings.ray_address,
        gpus_per_worker=training.gpus_per_worker,
        coins_per_gpu=training.coins_per_gpu,
        gpu_min_rows=training.gpu_min_rows,
    )
