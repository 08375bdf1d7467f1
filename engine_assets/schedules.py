"""When a night runs: every day at 02:00 UTC, over every coin that is known at the tick."""

from collections.abc import Callable, Sequence
from datetime import datetime

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from engine_assets.partitions import AS_OF_TAG, COIN, range_tags

NIGHTLY_CRON = "0 2 * * *"


def build(job: UnresolvedAssetJobDefinition, timeframes: Sequence[str], as_of: Callable[[datetime], datetime]) -> dg.ScheduleDefinition:
    """The 02:00 UTC schedule of `job`. `as_of` maps the tick to the instant the night stands for: a bundled source has its own clock."""

    @dg.schedule(
        job=job,
        cron_schedule=NIGHTLY_CRON,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        name="nightly",
        description="The night of the newest tick, over every coin that has a partition then.",
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        coins = context.instance.get_dynamic_partitions(COIN)
        if not coins:
            return dg.SkipReason("no coins are known yet; run huracan nightly once, or add them on the partitions page")
        tick = context.scheduled_execution_time
        instant = as_of(tick)
        tags = range_tags(coins, timeframes) | {AS_OF_TAG: instant.isoformat()}
        return dg.RunRequest(run_key=tick.isoformat(), tags=tags)

    return nightly
