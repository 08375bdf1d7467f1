"""shadow: what every published version would have traded on the newest complete day, point in time."""

from collections.abc import Iterator

import dagster as dg

from engine_assets.partitions import MODEL_KEYS, SINGLE_RUN
from engine_assets.session import Session

KEY = dg.AssetKey("shadow")


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The stage as an asset over coin × timeframe."""
    spec = dg.AssetSpec(KEY, deps=MODEL_KEYS, group_name="shadow", description=__doc__, partitions_def=partitions)

    @dg.multi_asset(name="shadow", specs=[spec], partitions_def=partitions, backfill_policy=SINGLE_RUN)
    def shadow(context: dg.AssetExecutionContext, night: dg.ResourceParam[Session]) -> Iterator[dg.MaterializeResult[None]]:
        yield from night.stage(context, "shadow", [KEY])

    return shadow
