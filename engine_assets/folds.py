"""folds: purged walk-forward windows on a grid pinned to the epoch, and which of them are fitted already."""

from collections.abc import Iterator

import dagster as dg

from engine_assets.partitions import SINGLE_RUN
from engine_assets.session import Session

KEY = dg.AssetKey("folds")


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The stage as an asset over coin × timeframe."""
    spec = dg.AssetSpec(KEY, deps=["regimes"], group_name="folds", description=__doc__, partitions_def=partitions)

    @dg.multi_asset(name="folds", specs=[spec], partitions_def=partitions, backfill_policy=SINGLE_RUN)
    def folds(context: dg.AssetExecutionContext, night: dg.ResourceParam[Session]) -> Iterator[dg.MaterializeResult[None]]:
        yield from night.stage(context, "folds", [KEY])

    return folds
