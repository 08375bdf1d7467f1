"""models: one LightGBM per regime, scored out of sample; a series' four regimes are one step, so that its data is binned once."""

from collections.abc import Iterator

import dagster as dg

from engine_assets.partitions import MODEL_KEYS, SINGLE_RUN
from engine_assets.session import Session


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The stage as four assets over coin × timeframe, each selectable."""
    specs = [dg.AssetSpec(key, deps=["folds"], group_name="models", description=__doc__, partitions_def=partitions) for key in MODEL_KEYS]

    @dg.multi_asset(name="models", specs=specs, partitions_def=partitions, backfill_policy=SINGLE_RUN, can_subset=True)
    def models(context: dg.AssetExecutionContext, night: dg.ResourceParam[Session]) -> Iterator[dg.MaterializeResult[None]]:
        yield from night.stage(context, "models", MODEL_KEYS)

    return models
