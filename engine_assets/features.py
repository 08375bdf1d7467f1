"""features: the recipe's causal features in yearly chunks, extended by what is new."""

from collections.abc import Iterator

import dagster as dg

from engine_assets.partitions import SINGLE_RUN
from engine_assets.session import Session

KEY = dg.AssetKey("features")


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The stage as an asset over coin × timeframe."""
    spec = dg.AssetSpec(KEY, deps=["raw"], group_name="features", description=__doc__, partitions_def=partitions)

    @dg.multi_asset(name="features", specs=[spec], partitions_def=partitions, backfill_policy=SINGLE_RUN)
    def features(context: dg.AssetExecutionContext, night: dg.ResourceParam[Session]) -> Iterator[dg.MaterializeResult[None]]:
        yield from night.stage(context, "features", [KEY])

    return features
