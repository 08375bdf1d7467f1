"""regimes: one of TREND, RANGE, PANIC, ILLIQUID (or UNKNOWN) per closed bar."""

from collections.abc import Iterator

import dagster as dg

from engine_assets.partitions import SINGLE_RUN
from engine_assets.session import Session

KEY = dg.AssetKey("regimes")


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The stage as an asset over coin × timeframe."""
    spec = dg.AssetSpec(KEY, deps=["features"], group_name="regimes", description=__doc__, partitions_def=partitions)

    @dg.multi_asset(name="regimes", specs=[spec], partitions_def=partitions, backfill_policy=SINGLE_RUN)
    def regimes(context: dg.AssetExecutionContext, night: dg.ResourceParam[Session]) -> Iterator[dg.MaterializeResult[None]]:
        yield from night.stage(context, "regimes", [KEY])

    return regimes
