"""The champion table decides; pointers, index and MLflow follow: rollback, and repair of whatever was lost or moved."""

import json

import pytest

from engine_assets.work.promoter import reconcile
from engine_resources.registry import CHAMPION, Registry
from hamilton_client.core import layout
from hamilton_client.core.contracts import HuracanError
from hamilton_client.pointer import read_index, read_pointer
from small_world import GOOD, SYNTHETIC, World, hamilton

pytestmark = pytest.mark.slow


@pytest.fixture
def world(finished, tmp_path) -> World:
    return finished.copy(tmp_path / "home")


def registry_of(world: World) -> Registry:
    settings = world.settings()
    return Registry(settings.mlflow_url, str(settings.home / "mlartifacts"))


def repaired(world: World) -> list[str]:
    return reconcile(world.night(), world.library(), registry_of(world))


def champion_sha(world: World, symbol: str) -> str:
    """Bundle of the version that MLflow calls champion."""
    registry = registry_of(world)
    return str(registry._client.get_model_version_by_alias(symbol, CHAMPION).tags["bundle_sha256"])


def test_a_rollback_is_a_new_generation_that_verifies_and_that_hamilton_uses(told, world):
    first, second = world.library().history(SYNTHETIC)
    done = told(world, "champions", "rollback", SYNTHETIC)
    assert done.code == 0, done.err
    assert "generation 3" in done.out
    row = world.library().champion(SYNTHETIC)
    assert (row.generation, row.bundle, row.sha256, row.previous) == (3, first.bundle, first.sha256, second.bundle)
    assert world.library().promotions(SYNTHETIC)[-1].kind == "rollback"
    assert world.pointers()[SYNTHETIC] == read_index(world.store).champions[SYNTHETIC] == row.pointer()
    assert champion_sha(world, SYNTHETIC) == first.sha256
    decision = json.loads(hamilton(world, "once", SYNTHETIC, "--json").stdout)["decisions"][0]
    assert (decision["metadata"]["generation"], decision["metadata"]["bundle"]) == (3, first.bundle)

    again = told(world, "nightly", "--coins", SYNTHETIC, "--resume")
    assert again.code == 0, again.err
    assert world.library().champion(SYNTHETIC) == row, "the same night run again does not undo a rollback"
    assert world.pointers()[SYNTHETIC] == row.pointer()
    assert champion_sha(world, SYNTHETIC) == first.sha256


def test_a_rollback_to_a_bundle_that_was_tampered_with_is_refused(told, world):
    first = world.library().history(SYNTHETIC)[0]
    model = next((world.bucket / first.bundle).glob("*/model.txt"))
    model.write_bytes(model.read_bytes().replace(b"leaf_value=", b"leaf_valuE=", 1))
    before = world.pointers()
    done = told(world, "champions", "rollback", SYNTHETIC)
    assert done.code == 1
    assert first.bundle in done.err
    assert "model.txt" in done.err
    assert world.pointers() == before
    assert world.library().champion(SYNTHETIC).generation == 2


def test_the_history_tells_every_move_with_its_reason(told, world):
    moves = json.loads(told(world, "champions", "history", SYNTHETIC, "--json").out)
    assert [(move["generation"], move["kind"]) for move in moves] == [(1, "refresh"), (2, "refresh")]
    assert "1h.TREND: champion" in moves[0]["reason"]


def test_nothing_to_repair_is_said(told, world):
    done = told(world, "reconcile")
    assert (done.code, done.out) == (0, "nothing to repair\n")


@pytest.mark.parametrize("damage", [None, b"", b"{", b"garbage \xff", b'{"symbol": "ETHUSDT"}'])
def test_a_lost_or_damaged_pointer_is_written_again(world, finished, damage):
    path = world.bucket / layout.champion_pointer("BTCUSDT")
    path.unlink() if damage is None else path.write_bytes(damage)
    told = repaired(world)
    assert any(line.startswith("BTCUSDT: pointer now generation 2") for line in told), told
    assert world.pointers() == finished.pointers()
    assert repaired(world) == []


def test_a_pointer_of_another_coin_is_not_followed(world, finished):
    eth = (world.bucket / layout.champion_pointer("ETHUSDT")).read_bytes()
    (world.bucket / layout.champion_pointer("BTCUSDT")).write_bytes(eth)
    assert repaired(world)
    assert world.pointers() == finished.pointers()


def test_a_pointer_that_was_set_back_is_brought_forward(world, finished):
    old = (world.bucket / layout.champion_history("BTCUSDT", 1)).read_bytes()
    (world.bucket / layout.champion_pointer("BTCUSDT")).write_bytes(old)
    assert repaired(world)
    assert world.pointers() == finished.pointers()


@pytest.mark.parametrize("damage", [None, b"", b'{"champions": {}}'])
def test_a_lost_or_stale_index_is_written_again(world, damage):
    path = world.bucket / layout.CHAMPION_INDEX
    path.unlink() if damage is None else path.write_bytes(damage)
    assert repaired(world) == [f"index now names {len(GOOD)} champions"]
    assert read_index(world.store).champions == world.pointers()


def test_a_moved_alias_is_brought_back(world):
    sha = champion_sha(world, SYNTHETIC)
    registry_of(world)._client.set_registered_model_alias(SYNTHETIC, CHAMPION, "1")
    assert champion_sha(world, SYNTHETIC) != sha
    assert repaired(world) == [f"{SYNTHETIC}: MLflow alias champion moved"]
    assert champion_sha(world, SYNTHETIC) == sha


def test_versions_that_mlflow_lost_are_registered_again(told, world):
    """Also what a kill between the table and MLflow leaves."""
    sha = world.library().champion(SYNTHETIC).sha256
    for path in world.home.glob("mlflow.db*"):
        path.unlink()
    done = told(world, "reconcile")
    assert done.code == 0, done.err
    assert f"{SYNTHETIC}: models/{SYNTHETIC}/20230701_020000Z registered with MLflow again" in done.out
    assert champion_sha(world, SYNTHETIC) == sha
    assert told(world, "reconcile").out == "nothing to repair\n"


def test_a_coin_that_cannot_be_repaired_is_said_and_stops_no_other(told, world, finished):
    """The champion bundle is damaged and MLflow does not know it: nothing can bring it back."""
    row = world.library().champion(SYNTHETIC)
    next((world.bucket / row.bundle).glob("*/model.txt")).write_bytes(b"tree")
    for path in world.home.glob("mlflow.db*"):
        path.unlink()
    for symbol in GOOD:
        (world.bucket / layout.champion_pointer(symbol)).unlink()
    (world.bucket / layout.CHAMPION_INDEX).unlink()
    done = told(world, "reconcile")
    assert done.code == 1
    assert f"{SYNTHETIC}: bundle {row.bundle} is refused" in done.err
    assert {symbol: read_pointer(world.store, symbol) for symbol in GOOD} == finished.pointers()
    assert read_index(world.store).champions == finished.pointers()


def test_a_generation_that_means_another_bundle_in_the_bucket_is_lifted(world, finished):
    """The table came back from a backup and promoted on: its generation 2 is not the one that clients have seen."""
    seen = world.pointers()[SYNTHETIC].model_copy(update={"sha256": "0" * 64})
    for key in (layout.champion_pointer(SYNTHETIC), layout.champion_history(SYNTHETIC, 2)):
        (world.bucket / key).write_bytes(seen.to_bytes())
    told = repaired(world)
    assert any("now generation 3" in line for line in told), told
    assert world.pointers()[SYNTHETIC].sha256 == finished.pointers()[SYNTHETIC].sha256
    assert world.pointers()[SYNTHETIC].generation == 3
    assert repaired(world) == []


def test_a_table_from_a_backup_is_lifted_above_what_clients_have_seen(world, finished):
    """The table of the night before, the bucket of today: no client would accept generation 1 again."""
    ahead = world.pointers()[SYNTHETIC].model_copy(update={"generation": 9})
    (world.bucket / layout.champion_pointer(SYNTHETIC)).write_bytes(ahead.to_bytes())
    told = repaired(world)
    assert any("table was behind the bucket, now generation 10" in line for line in told), told
    row = world.library().champion(SYNTHETIC)
    assert row.generation == world.pointers()[SYNTHETIC].generation == 10
    assert row.sha256 == finished.library().champion(SYNTHETIC).sha256
    assert world.library().promotions(SYNTHETIC)[-1].kind == "restore"


def test_a_damaged_bundle_never_reaches_lightgbm(world):
    pointer = world.pointers()[SYNTHETIC]
    model = next((world.bucket / pointer.bucket_path).glob("*/model.txt"))
    model.write_bytes(model.read_bytes()[:1000])
    done = hamilton(world, "check")
    assert done.returncode == 1
    assert f"refused: {SYNTHETIC}" in done.stderr
    assert "model.txt" in done.stderr
    assert done.stdout.count("sound") == len(GOOD) - 1
    with pytest.raises(HuracanError, match=r"model\.txt"):
        world.pointers()
