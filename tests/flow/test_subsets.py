"""Part of a night, as a person would choose it on Dagster's page: one timeframe, one regime, one coin; the rest stays."""

import json
from collections.abc import Sequence

import dagster as dg
import pytest

from engine_assets.definitions import NIGHT_JOB, build_definitions
from engine_assets.partitions import AS_OF_TAG, COIN, range_tags
from engine_assets.work.night import STAGES
from engine_assets.work.train import read_part
from engine_resources.records import Unit
from small_world import CLOCK, GOOD, NIGHTS, SYNTHETIC, TIMEFRAMES, World

pytestmark = pytest.mark.slow


@pytest.fixture
def world(finished, tmp_path) -> World:
    return finished.copy(tmp_path / "home")


def launch(
    world: World,
    *,
    coins: Sequence[str] | None = None,
    timeframes: Sequence[str] | None = None,
    assets: Sequence[str] | None = None,
    as_of=CLOCK,
) -> dg.ExecuteInProcessResult:
    """Run the job as the page launches it: tags for the partitions, a selection of assets, no word from the command line."""
    settings = world.settings()
    job = build_definitions(settings, wait_for_lock=False).resolve_job_def(NIGHT_JOB)
    selection = None if assets is None else [dg.AssetKey(name.split("/")) for name in assets]
    with world.dagster() as instance:
        known = instance.get_dynamic_partitions(COIN)
        tags = range_tags(known, TIMEFRAMES, coins=coins, only=timeframes) | {AS_OF_TAG: as_of.isoformat()}
        return job.execute_in_process(
            instance=instance,
            tags=tags,
            asset_selection=selection,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )


def touched(world: World, before: dict) -> set[str]:
    """Units whose ledger lines were written again."""
    after = world.files("runs/run_20230701_020000/ledger/*/*.json")
    changed = {key.rpartition("/")[2].removesuffix(".json") for key in after if before.get(key, (0,))[0] != after[key][0]}
    return {unit for unit in changed if not unit.startswith("POOLED")}


def materialized(world: World, run_id: str) -> list[tuple[str, str]]:
    """Assets and partitions that a run shows as done."""
    with world.dagster() as instance:
        records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    events = [record.event_log_entry.dagster_event for record in records]
    return [(event.asset_key.to_user_string(), event.partition) for event in events]


def test_one_timeframe_alone_leaves_the_champions_of_the_others(world, finished):
    before = world.files("runs/run_20230701_020000/ledger/*/*.json")
    assert launch(world, timeframes=["4h"]).success
    assert touched(world, before) == {f"{symbol}.4h" for symbol in GOOD}
    for symbol, pointer in finished.pointers().items():
        kept = {key: entry for key, entry in pointer.segments.items() if not key.startswith("4h.")}
        now = {key: entry for key, entry in world.pointers()[symbol].segments.items() if not key.startswith("4h.")}
        assert now == kept
        assert set(world.pointers()[symbol].segments) == set(pointer.segments)
    assert {state for found in world.partition_states().values() for state in found.values()} == {"MATERIALIZED"}


def test_one_timeframe_alone_changes_no_generation_where_it_finds_the_same(world, finished):
    assert launch(world, timeframes=["1h"]).success
    assert world.pointers() == finished.pointers()
    assert world.library().champions() == finished.library().champions()


def test_one_regime_of_one_coin_materializes_that_asset_alone(world, finished):
    before = world.files("runs/run_20230701_020000/ledger/*/*.json")
    result = launch(world, coins=[SYNTHETIC], timeframes=["1h"], assets=["models/TREND"])
    assert result.success
    assert materialized(world, result.run_id) == [("models/TREND", f"{SYNTHETIC}|1h")]
    assert touched(world, before) == {f"{SYNTHETIC}.1h"}
    assert world.pointers() == finished.pointers()
    unit = Unit(SYNTHETIC, "1h")
    assert read_part(unit, world.night()).segments == read_part(unit, finished.night()).segments
    manifest = json.loads((world.bucket / "runs/run_20230701_020000/manifest.json").read_bytes())
    assert set(manifest["symbols_trained"]) == set(GOOD), "the manifest still speaks of the whole night"


def test_one_coin_alone_leaves_the_others(world, finished):
    before = world.files("runs/run_20230701_020000/ledger/*/*.json")
    assert launch(world, coins=["ETHUSDT"]).success
    assert touched(world, before) == {f"ETHUSDT.{timeframe}" for timeframe in TIMEFRAMES}
    assert world.pointers() == finished.pointers()


def test_champions_can_be_judged_again_without_training(world, finished):
    assert launch(world, assets=["champions"]).success
    assert world.pointers() == finished.pointers()


def test_a_stage_without_the_one_before_it_fails_with_the_next_step(world):
    """A night that never ran: its models cannot be judged."""
    result = launch(world, coins=["BTCUSDT"], assets=["models/TREND"], as_of=NIGHTS[0].replace(day=29))
    assert not result.success
    lines = world.ledger(NIGHTS[0].replace(day=29))
    assert {line["stage"] for line in lines.values()} == {STAGES[STAGES.index("models")]}
    for line in lines.values():
        assert "stage folds has not run" in line["error"]
        assert "materialize it first" in line["error"]


def test_a_first_night_of_one_timeframe_makes_a_champion_that_the_others_join(good, tmp_path, finished):
    """1h first, the others after: together they are what one whole night would have been."""
    world = World(good.source, good.config, tmp_path / "home")
    world.home.mkdir()
    (world.home / "dagster").mkdir()
    (world.home / "dagster/dagster.yaml").write_bytes((finished.home / "dagster/dagster.yaml").read_bytes())
    with world.dagster() as instance:
        instance.add_dynamic_partitions(COIN, list(GOOD))
    assert launch(world, timeframes=["1h"], as_of=NIGHTS[0]).success
    alone = world.pointers()[SYNTHETIC]
    assert {key.partition(".")[0] for key in alone.segments} == {"1h"}
    assert alone.segments["1h.TREND"].state == "champion"
    assert launch(world, timeframes=["4h", "1d"], as_of=NIGHTS[0]).success
    for symbol, both in world.pointers().items():
        whole = finished.library().history(symbol)[0].pointer()
        assert (both.sha256, both.segments) == (whole.sha256, whole.segments)
        assert both.generation == 2
