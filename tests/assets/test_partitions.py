"""Each test holds one statement of `engine_assets.partitions` about Dagster to what the installed Dagster does."""

import os
import warnings

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_assets import partitions as p
from engine_resources.pool import Unit
from hamilton_client.core.contracts import HuracanError

TIMEFRAMES = ("1h", "4h", "1d")
COINS = ("SOLUSDT", "BTCUSDT", "ETHUSDT", "ADAUSDT")  # order of addition, not of the alphabet
PARTS = p.make_partitions(TIMEFRAMES)
RAW, LAST = dg.AssetKey("raw"), dg.AssetKey("last")
REGIMES = {name: dg.AssetKey(["models", name]) for name in ("TREND", "RANGE", "PANIC", "ILLIQUID")}


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        found.add_dynamic_partitions(p.COIN, list(COINS))
        yield found


@pytest.fixture
def instance_on_disk():
    with dg.instance_for_test() as found:
        found.add_dynamic_partitions(p.COIN, list(COINS))
        yield found


def stage(**options):
    return dg.multi_asset(partitions_def=PARTS, backfill_policy=p.SINGLE_RUN, **options)


def tell(context, key, bad, log):
    for unit in p.units_of(context):
        if unit in bad or (unit, key) in bad:
            log.failed(unit, "planted", key)
        else:
            log.done(unit, key, rows=7)


def night(bad=frozenset(), seen=None, fail=True):
    """Raw (loses the `bad` units) → four regime models in one step → last, which fails the run where anything failed."""
    lost, seen = {}, {} if seen is None else seen

    @stage(specs=[dg.AssetSpec(RAW)])
    def raw(context: dg.AssetExecutionContext):
        seen["raw"] = p.units_of(context)
        with p.partition_log(context, RAW) as log:
            tell(context, RAW, bad, log)
        lost.update(log.failures)
        yield dg.MaterializeResult(asset_key=RAW, metadata=p.NO_IMPLICIT_EVENTS)

    @stage(specs=[dg.AssetSpec(key, deps=[RAW], skippable=True) for key in REGIMES.values()], can_subset=True)
    def models(context: dg.AssetExecutionContext):
        chosen = [key for key in REGIMES.values() if key in context.selected_asset_keys]
        seen.setdefault("models", []).append(chosen)
        with p.partition_log(context, chosen) as log:
            for key in chosen:
                tell(context, key, bad | set(lost), log)
        lost.update(log.failures)
        for key in chosen:
            yield dg.MaterializeResult(asset_key=key, metadata=p.NO_IMPLICIT_EVENTS)

    @stage(specs=[dg.AssetSpec(LAST, deps=list(REGIMES.values()))])
    def last(context: dg.AssetExecutionContext):
        seen["last"] = True
        with p.partition_log(context, LAST) as log:
            tell(context, LAST, set(lost), log)
        if lost and fail:
            raise dg.Failure(f"{len(lost)} units failed", allow_retries=False)
        yield dg.MaterializeResult(asset_key=LAST, metadata=p.NO_IMPLICIT_EVENTS)

    return [raw, models, last]


def run(instance, assets, tags=None, selection=None):
    tags = p.range_tags(COINS, TIMEFRAMES) if tags is None else tags
    return dg.materialize(assets, instance=instance, tags=tags, selection=selection, raise_on_error=False)


def statuses(instance, key):
    keys = PARTS.get_partition_keys(dynamic_partitions_store=instance)
    found = instance.get_status_by_partition(key, keys, PARTS) or {}
    return {p.unit_of(key): found[key].value if found.get(key) else None for key in keys}


def events(instance, result, kind):
    return [record.event_log_entry.dagster_event for record in instance.get_records_for_run(result.run_id, of_type=kind).records]


ALL = {Unit(coin, timeframe) for coin in COINS for timeframe in TIMEFRAMES}
BAD = Unit("ETHUSDT", "4h")


class TestOneNight:
    def test_a_failed_unit_is_red_alone(self, instance):
        assert not run(instance, night({BAD})).success
        for key in (RAW, *REGIMES.values(), LAST):
            assert statuses(instance, key) == {unit: "FAILED" if unit == BAD else "MATERIALIZED" for unit in ALL}
            assert p.failed_units(instance, key, PARTS) == [BAD]

    def test_the_same_in_a_database_on_disk(self, instance_on_disk):
        assert not run(instance_on_disk, night({BAD})).success
        assert p.failed_units(instance_on_disk, LAST, PARTS) == [BAD]
        assert set(statuses(instance_on_disk, RAW).values()) == {"MATERIALIZED", "FAILED"}

    def test_events_are_explicit_only(self, instance):
        result = run(instance, night({BAD}))
        made = events(instance, result, dg.DagsterEventType.ASSET_MATERIALIZATION)
        assert len(made) == 6 * (len(ALL) - 1)
        assert {event.partition for event in made} == {str(p.partition_key(unit)) for unit in ALL - {BAD}}
        planned = events(instance, result, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
        assert [event.partition for event in planned] == [str(p.partition_key(BAD))] * 6
        assert not events(instance, result, dg.DagsterEventType.ASSET_OBSERVATION)

    def test_without_the_metadata_dagster_would_say_it_is_all_there(self, instance):
        """The planted fault: an output without NO_IMPLICIT_EVENTS, in a run without the tag, paints the failed unit green."""

        @stage(specs=[dg.AssetSpec(RAW)])
        def raw(context: dg.AssetExecutionContext):
            yield dg.MaterializeResult(asset_key=RAW)

        tags = {name: value for name, value in p.range_tags(COINS, TIMEFRAMES).items() if name != p.DEFER_TAG}
        run(instance, [raw], tags)
        assert set(statuses(instance, RAW).values()) == {"MATERIALIZED"}

    def test_suppressed_outputs_let_the_next_stage_run(self, instance):
        seen = {}
        assert run(instance, night(seen=seen)).success
        assert seen["last"]
        assert set(seen["raw"]) == ALL

    def test_a_run_from_the_web_page_which_lacks_our_tag_tells_the_same(self, instance):
        tags = {name: value for name, value in p.range_tags(COINS, TIMEFRAMES).items() if name != p.DEFER_TAG}
        result = run(instance, night({BAD}), tags)
        assert len(events(instance, result, dg.DagsterEventType.ASSET_MATERIALIZATION)) == 6 * (len(ALL) - 1)
        assert p.failed_units(instance, LAST, PARTS) == [BAD]

    def test_the_defer_tag_spares_planned_events(self, instance):
        assert not events(instance, run(instance, night()), dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
        untagged = {name: value for name, value in p.range_tags(COINS, TIMEFRAMES).items() if name != p.DEFER_TAG}
        assert events(instance, run(instance, night(), untagged), dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)

    def test_red_needs_a_failed_run(self, instance):
        """Why the last stage raises: a run that ends well shows what failed as merely missing."""
        assert run(instance, night({BAD}, fail=False)).success
        assert statuses(instance, RAW)[BAD] is None


class TestSeveralNights:
    def test_red_after_green_and_green_after_red(self, instance):
        run(instance, night())
        assert set(statuses(instance, LAST).values()) == {"MATERIALIZED"}
        run(instance, night({BAD}))
        assert statuses(instance, LAST)[BAD] == statuses(instance, RAW)[BAD] == "FAILED"
        run(instance, night())
        assert set(statuses(instance, LAST).values()) == set(statuses(instance, RAW).values()) == {"MATERIALIZED"}

    def test_rerunning_what_failed_touches_nothing_else(self, instance):
        run(instance, night({BAD}))
        seen = {}
        tags = p.range_tags(COINS, TIMEFRAMES, coins=[BAD.symbol], only=[BAD.timeframe])
        result = run(instance, night(seen=seen), tags)
        assert seen["raw"] == [BAD]
        assert len(events(instance, result, dg.DagsterEventType.ASSET_MATERIALIZATION)) == 6
        assert p.failed_units(instance, LAST, PARTS) == []

    def test_a_coin_added_later_is_neither_red_nor_green(self, instance):
        run(instance, night())
        instance.add_dynamic_partitions(p.COIN, ["XRPUSDT"])
        assert statuses(instance, RAW)[Unit("XRPUSDT", "1h")] is None


class TestRegimes:
    def test_one_step_four_truths(self, instance):
        seen = {}
        run(instance, night({(BAD, REGIMES["PANIC"])}, seen))
        assert seen["models"] == [list(REGIMES.values())]
        assert {name: p.failed_units(instance, key, PARTS) for name, key in REGIMES.items()} == {
            "TREND": [],
            "RANGE": [],
            "PANIC": [BAD],
            "ILLIQUID": [],
        }

    def test_a_regime_alone_can_be_selected(self, instance):
        seen = {}
        assert run(instance, night(seen=seen), selection=[REGIMES["RANGE"]]).success
        assert seen == {"models": [[REGIMES["RANGE"]]]}
        assert set(statuses(instance, REGIMES["TREND"]).values()) == {None}

    def test_several_keys_must_be_told_apart(self):
        log = p.PartitionLog(None, list(REGIMES.values()))
        with pytest.raises(ValueError, match="too many values"):
            log.done(BAD)


class TestBatches:
    def test_done_is_stored_in_batches_and_the_rest_on_the_way_out(self, instance, monkeypatch):
        monkeypatch.setattr(p, "BATCH_EVENTS", 5)
        sizes = []
        storage = type(instance.event_log_storage)
        whole = storage.store_event_batch
        monkeypatch.setattr(storage, "store_event_batch", lambda self, found: (sizes.append(len(found)), whole(self, found))[1])
        run(instance, night(), selection=[RAW])
        assert sizes == [5, 5, 2]
        assert set(statuses(instance, RAW).values()) == {"MATERIALIZED"}

    def test_an_exception_in_the_stage_keeps_what_was_done(self, instance):
        @stage(specs=[dg.AssetSpec(RAW)])
        def raw(context: dg.AssetExecutionContext):
            with p.partition_log(context, RAW) as log:
                log.done(BAD)
                raise KeyboardInterrupt

        assert not run(instance, [raw]).success
        assert statuses(instance, RAW)[BAD] == "MATERIALIZED"

    def test_a_slow_trickle_is_stored_after_three_seconds(self, instance, monkeypatch):
        clock = iter(range(0, 10_000, 2))
        monkeypatch.setattr(p.time, "monotonic", lambda: float(next(clock)))
        counts = []

        @stage(specs=[dg.AssetSpec(RAW)])
        def raw(context: dg.AssetExecutionContext):
            with p.partition_log(context, RAW) as log:
                for unit in p.units_of(context)[:3]:
                    log.done(unit)
                    counts.append(len(context.instance.get_materialized_partitions(RAW)))
            yield dg.MaterializeResult(asset_key=RAW, metadata=p.NO_IMPLICIT_EVENTS)

        run(instance, [raw])
        assert counts == [0, 2, 2]

    def test_the_batch_size_is_set_in_this_process(self):
        assert int(os.environ["DAGSTER_EVENT_BATCH_SIZE"]) >= p.BATCH_EVENTS

    def test_metadata_arrives(self, instance):
        run(instance, night(), selection=[RAW])
        event = instance.get_latest_materialization_event(RAW)
        assert event.asset_materialization.metadata["rows"].value == 7
        assert event.dagster_event.partition == f"{COINS[-1]}|{TIMEFRAMES[-1]}"


class TestKeysAndTags:
    @given(st.from_regex(r"[A-Z0-9]{2,20}", fullmatch=True), st.sampled_from(TIMEFRAMES))
    def test_a_key_round_trips(self, symbol, timeframe):
        assert p.unit_of(p.partition_key(Unit(symbol, timeframe))) == (symbol, timeframe)
        assert str(p.partition_key(Unit(symbol, timeframe))) == f"{symbol}|{timeframe}"

    def test_no_tag_names_a_choice_that_is_the_whole_range(self):
        assert p.range_tags(COINS, TIMEFRAMES) == {
            "dagster/asset_partition_range_start": "SOLUSDT|1h",
            "dagster/asset_partition_range_end": "ADAUSDT|1d",
            "dagster/defer_asset_events": "true",
        }

    @pytest.mark.parametrize(
        ("coins", "only"),
        [(["SOLUSDT", "ADAUSDT"], ["1d", "1h"]), (["BTCUSDT", "ETHUSDT"], ["4h"]), (["ADAUSDT"], None), (None, ["1h", "1d"]), (None, None)],
    )
    def test_any_choice_is_one_run_over_exactly_it(self, instance, coins, only):
        seen = {}
        run(instance, night(seen=seen), p.range_tags(COINS, TIMEFRAMES, coins=coins, only=only), [RAW])
        assert set(seen["raw"]) == {Unit(coin, timeframe) for coin in coins or COINS for timeframe in only or TIMEFRAMES}
        assert len(seen["raw"]) == len(set(seen["raw"]))

    @pytest.mark.parametrize(("names", "coins"), [(COINS, ["DOGEUSDT"]), (COINS, []), ((), None)])
    def test_an_empty_or_unknown_choice_is_refused(self, names, coins):
        with pytest.raises(HuracanError, match="no such partition"):
            p.range_tags(names, TIMEFRAMES, coins=coins)

    def test_beta_warnings_are_filtered_here(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", category=dg.BetaWarning)
            dg.BackfillPolicy.single_run()
            p.make_partitions(TIMEFRAMES)
        assert not caught
