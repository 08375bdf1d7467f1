"""Coin × timeframe partitions and their explicit events. The one module that knows Dagster's private names.

Dagster's own events say one thing for a whole range: a run over 400 coins would paint all of them green, or all red. So stages
suppress those and log one event per partition, in batches (0.95 CPU-ms each on PostgreSQL instead of 26). `tests/assets/test_partitions.py`
holds each private name to what it does today.
"""

import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEventBatchMetadata

from engine_resources.pool import Unit
from hamilton_client.core.contracts import TRAINED_REGIMES, HuracanError

os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")  # at 0, its default, Dagster stores the events of a batch one by one

COIN = "coin"
TIMEFRAME = "timeframe"
AS_OF_TAG = "huracan/as_of"
COINS_TAG = "huracan/coins"
TIMEFRAMES_TAG = "huracan/timeframes"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
DEFER_TAG = "dagster/defer_asset_events"  # no planned and no implicit events from runs that we launch
NO_IMPLICIT_EVENTS: Mapping[str, Any] = {
    "__source_asset_observation__": True
}  # the same for one output, in runs launched from the web page
BATCH_EVENTS = 250
BATCH_SECONDS = 3.0

warnings.filterwarnings("ignore", category=dg.BetaWarning)  # backfill policies and multi-partitions, used everywhere
MODEL_KEYS = [dg.AssetKey(["models", regime.value]) for regime in TRAINED_REGIMES]
coin_partitions = dg.DynamicPartitionsDefinition(name=COIN)
SINGLE_RUN = dg.BackfillPolicy.single_run()


def make_partitions(timeframes: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """The one partitions definition of every asset: coins known to the instance × `timeframes`."""
    return dg.MultiPartitionsDefinition({COIN: coin_partitions, TIMEFRAME: dg.StaticPartitionsDefinition(list(timeframes))})


def partition_key(unit: Unit) -> dg.MultiPartitionKey:
    """`BTCUSDT|1h`."""
    return dg.MultiPartitionKey({COIN: unit.symbol, TIMEFRAME: unit.timeframe})


def unit_of(key: str) -> Unit:
    """Inverse of `partition_key`."""
    symbol, timeframe = key.split("|")
    return Unit(symbol, timeframe)


def range_tags(
    symbols: Sequence[str], timeframes: Sequence[str], *, coins: Sequence[str] | None = None, only: Sequence[str] | None = None
) -> dict[str, str]:
    """Tags of one run over every partition, or over chosen `coins` and timeframes (`only`).

    `symbols` and `timeframes` are all that exist, in Dagster's order (order of addition). Dagster runs a covering range; where that
    holds more than was chosen, a tag names the choice and `units_of` intersects. Raises HuracanError for a choice that is empty or unknown.
    """
    first_coin, last_coin, exact_coins = _cover(symbols, coins)
    first_timeframe, last_timeframe, exact_timeframes = _cover(timeframes, only)
    tags = {RANGE_START_TAG: f"{first_coin}|{first_timeframe}", RANGE_END_TAG: f"{last_coin}|{last_timeframe}", DEFER_TAG: "true"}
    if exact_coins:
        tags[COINS_TAG] = ",".join(exact_coins)
    if exact_timeframes:
        tags[TIMEFRAMES_TAG] = ",".join(exact_timeframes)
    return tags


def coins_of(tags: Mapping[str, str], symbols: Sequence[str]) -> list[str]:
    """Coins that a run with these `range_tags` was for; `symbols` are all that exist, in Dagster's order."""
    chosen = list(filter(None, tags.get(COINS_TAG, "").split(",")))
    ends = [unit_of(tags[tag]).symbol for tag in (RANGE_START_TAG, RANGE_END_TAG) if tag in tags]
    if chosen or len(ends) < 2 or not set(ends) <= set(symbols):
        return chosen
    return list(symbols[symbols.index(ends[0]) : symbols.index(ends[1]) + 1])


def _cover(names: Sequence[str], chosen: Sequence[str] | None) -> tuple[str, str, list[str]]:
    """First and last of the covering range, and the choice itself where the range holds more."""
    wanted = set(names if chosen is None else chosen)
    if not wanted or not wanted <= set(names):
        unknown = ", ".join(sorted(wanted - set(names))) or "nothing was chosen"
        raise HuracanError(f"no such partition: {unknown}. Known: {', '.join(names) or 'none; huracan nightly adds coins'}")
    places = [place for place, name in enumerate(names) if name in wanted]
    return names[places[0]], names[places[-1]], [names[place] for place in places] if places[-1] - places[0] >= len(places) else []


def units_of(context: dg.AssetExecutionContext) -> list[Unit]:
    """Units of this run: its partitions, less those that its tags did not choose."""
    coins, timeframes = (set(filter(None, context.run.tags.get(tag, "").split(","))) for tag in (COINS_TAG, TIMEFRAMES_TAG))
    units = [unit_of(key) for key in context.partition_keys]
    return [unit for unit in units if (not coins or unit.symbol in coins) and (not timeframes or unit.timeframe in timeframes)]


def failed_units(instance: dg.DagsterInstance, asset_key: dg.AssetKey, partitions: dg.MultiPartitionsDefinition) -> list[Unit]:
    """Units whose partition of `asset_key` the web page shows as failed."""
    keys = partitions.get_partition_keys(dynamic_partitions_store=instance)
    status = instance.get_status_by_partition(asset_key, keys, partitions) or {}
    return [unit_of(key) for key in keys if status.get(key) == dg.AssetPartitionStatus.FAILED]


class PartitionLog:
    """Events per partition, as units end. A stage that failed somewhere ends its run with `dg.Failure`: only then do they show red."""

    def __init__(self, context: dg.AssetExecutionContext, keys: Sequence[dg.AssetKey]) -> None:
        self._context, self._keys = context, tuple(keys)
        self._waiting: list[dg.AssetMaterialization] = []
        self._flushed_at = time.monotonic()
        self.failures: dict[Unit, str] = {}

    def done(self, unit: Unit, key: dg.AssetKey | None = None, **metadata: Any) -> None:
        """Show the unit's partition of `key` (needed where the log has several) as materialized, with `metadata`."""
        self._waiting.append(dg.AssetMaterialization(self._key(key), partition=partition_key(unit), metadata=metadata))
        if len(self._waiting) >= BATCH_EVENTS or time.monotonic() - self._flushed_at >= BATCH_SECONDS:
            self.flush()

    def failed(self, unit: Unit, error: str, key: dg.AssetKey | None = None) -> None:
        """Show the unit's partition of `key` (default: all of the log's) as failed once this run has failed, and keep `error`.

        Dagster paints red what was planned and not materialized by a failed run.
        """
        self.failures[unit] = error
        step = self._context.get_step_execution_context().step.key
        for asset_key in (key,) if key else self._keys:
            planned = AssetMaterializationPlannedData(asset_key, partition=partition_key(unit), partitions_subset=None)
            event = dg.DagsterEvent.build_asset_materialization_planned_event(self._context.job_name, step, planned)
            self._context.instance.report_dagster_event(event, self._context.run.run_id)
        self._context.log.warning(f"{partition_key(unit)} failed: {error}")

    def flush(self) -> None:
        """Store what waits, as one batch."""
        batch, self._waiting, self._flushed_at = self._waiting, [], time.monotonic()
        name, step = uuid.uuid4().hex, self._context.get_step_execution_context()
        for place, materialization in enumerate(batch, start=1):
            dg.DagsterEvent.asset_materialization(step, materialization, DagsterEventBatchMetadata(name, is_end=place == len(batch)))

    def _key(self, key: dg.AssetKey | None) -> dg.AssetKey:
        if key is not None:
            return key
        (only,) = self._keys
        return only


@contextmanager
def partition_log(context: dg.AssetExecutionContext, key: dg.AssetKey | Sequence[dg.AssetKey]) -> Iterator[PartitionLog]:
    """Open a log for the partitions of one asset or of several; what waits is stored on the way out, also after an exception."""
    log = PartitionLog(context, [key] if isinstance(key, dg.AssetKey) else key)
    try:
        yield log
    finally:
        log.flush()
