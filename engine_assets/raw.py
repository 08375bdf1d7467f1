"""raw: candles from the source, checked, stored, and resampled from the stored base."""

from collections.abc import Iterator

import dagster as dg

from engine_assets.partitions import SINGLE_RUN
from engine_assets.session import Session

KEY = dg.AssetKey("raw")


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The stage as an asset over coin × timeframe."""
    spec = dg.AssetSpec(KEY, group_name="raw", description=__doc__, partitions_def=partitions)

    @dg.multi_asset(name="raw", specs=[spec], partitions_def=partitions, backfill_policy=SINGLE_RUN)
    def raw(context: dg.AssetExecutionContext, night: dg.ResourceParam[Session]) -> Iterator[dg.MaterializeResult[None]]:
        yield from night.stage(context, "raw", [KEY])

    return raw
