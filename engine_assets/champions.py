"""champions: verdicts over the night's cohort, bundles, and the champion pointers."""

from collections.abc import Iterator

import dagster as dg

from engine_assets.partitions import SINGLE_RUN
from engine_assets.session import Session

KEY = dg.AssetKey("champions")


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The stage as an asset over coin × timeframe."""
    spec = dg.AssetSpec(KEY, deps=["shadow"], group_name="champions", description=__doc__, partitions_def=partitions)

    @dg.multi_asset(name="champions", specs=[spec], partitions_def=partitions, backfill_policy=SINGLE_RUN)
    def champions(context: dg.AssetExecutionContext, night: dg.ResourceParam[Session]) -> Iterator[dg.MaterializeResult[None]]:
        yield from night.stage(context, "champions", [KEY])

    return champions
