"""Wiring only: the one place where Dagster, settings and stages meet."""

from datetime import datetime

import dagster as dg

from engine_assets import champions, features, folds, models, raw, regimes, schedules, shadow
from engine_assets.partitions import make_partitions
from engine_assets.session import REPEAT, Listener, scheduled_as_of, session_resource
from engine_resources.market import BundledSource
from engine_resources.settings import Settings, load_settings
from hamilton_client.telemetry import setup_logging

NIGHT_JOB = "night"
NIGHT_DESCRIPTION = f"""One night over chosen coins and timeframes, in one run: from candles to champion pointers.

A coin that fails is red on its own partition and keeps no other from its champion; the run then ends as failed, and its last event
lists what failed and why. To repeat only that: *{REPEAT}*.
"""


def build_definitions(settings: Settings, listener: Listener | None = None, *, wait_for_lock: bool = True) -> dg.Definitions:
    """The seven stages, the job over all of them and its schedule. `listener` hears every stage event (a progress bar)."""
    timeframes = settings.timeframes.train
    partitions = make_partitions(timeframes)
    assets = [stage.build(partitions) for stage in (raw, features, regimes, folds, models, shadow, champions)]
    job = dg.define_asset_job(NIGHT_JOB, selection="*", executor_def=dg.in_process_executor, description=NIGHT_DESCRIPTION)
    source = BundledSource(settings.source_path)

    def as_of(tick: datetime) -> datetime:
        return min(tick, scheduled_as_of(source.now()))

    return dg.Definitions(
        assets=assets,
        jobs=[job],
        schedules=[schedules.build(job, timeframes, as_of)],
        resources={"night": session_resource(settings, listener, wait_for_lock=wait_for_lock)},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What `workspace.yaml` loads."""
    setup_logging()
    return build_definitions(load_settings())
