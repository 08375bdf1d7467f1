"""Run nights in this process through Dagster: the same job that the schedule launches, with a listener for a progress bar."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import dagster as dg

from engine_assets.definitions import NIGHT_JOB, build_definitions
from engine_assets.partitions import AS_OF_TAG, COIN, coins_of, range_tags
from engine_assets.session import LAUNCHED_BY_TAG, PID_TAG, RESUME_TAG, Listener, process_mark
from engine_assets.work.run import StageEvent
from engine_resources.lock import night_lock
from engine_resources.settings import REPOSITORY, Settings
from hamilton_client.core import layout
from hamilton_client.core.contracts import HuracanError

IN_PROGRESS = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass
class NightResult:
    """How a night went: `seconds` of wall time per stage, in order."""

    as_of: datetime
    ok: bool
    dagster_run_id: str
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def dagster_instance(settings: Settings) -> dg.DagsterInstance:
    """The Dagster instance under the home, configured by the repository's `dagster.yaml`."""
    folder = dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(folder)
    return dg.DagsterInstance.get()


def dagster_home(settings: Settings) -> Path:
    """Make the instance folder and put the current `dagster.yaml` there."""
    folder = settings.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(REPOSITORY / "dagster.yaml", folder / "dagster.yaml")
    return folder


def run_night(
    settings: Settings, instance: dg.DagsterInstance, coins: Sequence[str], as_of: datetime, *, resume: bool, listener: Listener | None
) -> NightResult:
    """Run one night over `coins` now, in this process. Raises HuracanError where it could not begin, as while another night runs."""
    with night_lock(settings.home, layout.run_id(as_of)):  # a night that must wait leaves no trace, not even a failed run in Dagster
        instance.add_dynamic_partitions(COIN, list(coins))
    report_dead_runs(instance)
    known = instance.get_dynamic_partitions(COIN)
    tags = range_tags(known, settings.timeframes.train, coins=coins)
    tags |= {AS_OF_TAG: as_of.isoformat(), LAUNCHED_BY_TAG: "cli", PID_TAG: process_mark(os.getpid())}
    tags |= {RESUME_TAG: "true"} if resume else {}
    clock = _StageClock(listener)
    job = build_definitions(settings, clock, wait_for_lock=False).resolve_job_def(NIGHT_JOB)
    result = job.execute_in_process(
        instance=instance, tags=tags, raise_on_error=False, run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    )
    error = None if result.success else _first_error(result)
    if error and error.endswith(dg.DagsterExecutionInterruptedError.__name__):
        raise KeyboardInterrupt
    if error and not any(event.event_type == dg.DagsterEventType.STEP_START for event in result.all_events):
        raise HuracanError(error)
    return NightResult(as_of, result.success, result.run_id, error, clock.done())


def coins_of_last_run(instance: dg.DagsterInstance, as_of: datetime) -> list[str]:
    """Coins of the newest run of the night `as_of`, whoever launched it; none where no run is known."""
    runs = instance.get_runs(dg.RunsFilter(job_name=NIGHT_JOB, tags={AS_OF_TAG: as_of.isoformat()}), limit=1)
    known = instance.get_dynamic_partitions(COIN)
    return coins_of(runs[0].tags, known) if runs else []


def report_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Report runs whose process is gone as failed: Dagster's default launcher never notices, and a dead run would block its queue."""
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        mark = run.tags.get(PID_TAG)
        if mark is not None and process_mark(mark.partition(".")[0]) != mark:
            instance.report_run_failed(run, message=f"its process {mark} is gone; huracan nightly --resume goes on where it stopped")
            dead.append(run.run_id)
    return dead


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_failure and event.event_specific_data is not None:
            error = getattr(event.event_specific_data, "error", None)
            if error is not None:
                cause = error.cause or error
                return str(cause.message).split(f"{cause.cls_name}: ", 1)[-1].strip()
    return "the run failed before its first stage"


class _StageClock:
    """Passes events on and keeps the wall time of each stage."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    def __call__(self, name: str, total: int, event: StageEvent | None) -> None:
        if self._current is None or self._current[0] != name:
            self.done()
            self._current = (name, time.monotonic())
        if self._listener is not None:
            self._listener(name, total, event)

    def done(self) -> dict[str, float]:
        """Close the running stage."""
        if self._current is not None:
            name, since = self._current
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - since
            self._current = None
        return {name: round(seconds, 1) for name, seconds in self._seconds.items()}
