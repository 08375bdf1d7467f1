"""Two nights in a row over good coins: what the second reuses, what it adds, and that doing it again changes nothing."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from engine_assets.logic.splits import windows
from engine_assets.work.shadow import SHADOW_SCHEMA
from engine_resources.registry import Registry
from hamilton_client.core.contracts import TRAINED_REGIMES
from hamilton_client.core.engines import ENGINES
from small_world import CLOCK, FIRST_DAY, GEOMETRY, GOOD, NIGHTS, REGIMES, SYNTHETIC, TIMEFRAMES, World, hamilton, huracan

pytestmark = pytest.mark.slow
UNITS = [(symbol, timeframe) for symbol in GOOD for timeframe in TIMEFRAMES]


@pytest.fixture(scope="module")
def said(finished) -> dict:
    """What `huracan nightly --nights 2 --json` said."""
    return json.loads((finished.home.parent / "nights.json").read_bytes())


@pytest.fixture(scope="module")
def again(finished, tmp_path_factory) -> World:
    """The finished world after its second night was run once more, from the beginning."""
    world = finished.copy(tmp_path_factory.mktemp("again") / "home")
    done = huracan(world, "nightly", "--json")
    assert done.returncode == 0, done.stderr
    return world


def ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def closed_windows(timeframe: str) -> int:
    """Test windows that end between the two nights."""
    first, second = (windows(ms(FIRST_DAY), ms(night), **GEOMETRY[timeframe], anchor=0) for night in NIGHTS)
    return len(second) - len(first)


def detail(world: World, stage: str, symbol: str, timeframe: str, night: datetime) -> dict:
    line = world.ledger(night)[f"{stage}/{symbol}.{timeframe}.json"]
    assert line["ok"], line["error"]
    return line["detail"]


def test_the_world_has_a_window_that_closes_and_windows_that_do_not():
    assert {timeframe: closed_windows(timeframe) for timeframe in TIMEFRAMES} == {"1h": 0, "4h": 1, "1d": 0}


@pytest.mark.parametrize("unit", UNITS, ids="|".join)
def test_the_second_night_fits_the_windows_that_closed_and_reuses_all_others(finished, unit):
    first, second = (detail(finished, "models", *unit, night) for night in NIGHTS)
    assert first["fitted"] == first["windows"] > 0
    assert second["fitted"] == closed_windows(unit[1])
    assert second["reused"] == first["windows"]
    assert second["windows"] == first["windows"] + second["fitted"]


def test_the_second_night_adds_a_day_of_candles_and_computes_one_year_of_chunks(finished):
    for symbol, timeframe in UNITS:
        bars = detail(finished, "raw", symbol, timeframe, CLOCK)["new_bars"]
        assert bars == {"1h": 22, "4h": 6, "1d": 1}[timeframe], "the first night saw two hours of this day"
        for stage in ("features", "regimes"):
            chunks = detail(finished, stage, symbol, timeframe, CLOCK)
            assert (chunks["computed"], chunks["reused"]) == (1, chunks["chunks"] - 1)


def test_every_segment_has_one_shadow_row_for_the_one_day_that_had_versions(finished):
    files = list(finished.bucket.glob("shadow/**/*.parquet"))
    assert {path.name for path in files} == {"20230630.parquet"}
    assert len(files) == len(UNITS)
    rows = pl.concat([pl.read_parquet(path).with_columns(symbol=pl.lit(path.parts[-3])) for path in files])
    assert rows.drop("symbol").schema == pl.Schema(SHADOW_SCHEMA)
    assert not rows.select("symbol", "model_id").is_duplicated().any()
    assert rows["model_id"].str.ends_with("_v1_20230630_020000").all(), "judged is the version of the night before"
    assert set(rows["evidence"]) == {"point_in_time"}
    trading = rows.filter(symbol=SYNTHETIC)["trades"].sum()
    assert trading > 0, "the synthetic coin's models trade every day"
    summed = sum(detail(finished, "shadow", *unit, CLOCK).get("net_bps", 0.0) for unit in UNITS)
    assert summed == pytest.approx(rows["net_bps"].sum())


def test_the_champion_generation_grows_by_one_per_night(finished):
    assert {symbol: pointer.generation for symbol, pointer in finished.pointers().items()} == dict.fromkeys(GOOD, 2)
    for symbol in GOOD:
        moves = finished.library().promotions(symbol)
        assert [move.generation for move in moves] == [1, 2]
        assert [move.from_model_id for move in moves] == [None, moves[0].to_model_id]
        assert [row.as_of for row in finished.library().history(symbol)] == list(NIGHTS)


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_two_nights_again_run_nothing(told, finished, tmp_path, more):
    world = finished.copy(tmp_path / "home")
    before = world.files("**/*")
    done = told(world, "nightly", "--nights", "2", *more)
    assert done.code == 0
    assert "every night asked for was complete already" in done.out
    assert world.files("**/*") == before
    with world.dagster() as instance:
        assert instance.get_runs_count() == 2


def test_the_same_night_again_changes_no_generation_and_no_bundle(finished, again):
    assert again.pointers() == finished.pointers()
    for symbol in GOOD:
        assert again.library().history(symbol) == finished.library().history(symbol)
        assert again.library().promotions(symbol) == finished.library().promotions(symbol)
        assert again.library().models(symbol) == finished.library().models(symbol)
    for pattern in ("models/**/*", "challengers/**/*", "champion/**/*", "candles/**/*"):
        assert contents(again, pattern) == contents(finished, pattern)


def test_the_same_night_again_rewrites_neither_shadow_nor_folds(finished, again):
    for pattern in ("shadow/**/*", "folds/**/*", "features/**/*", "regimes/**/*"):
        assert again.files(pattern).keys() == finished.files(pattern).keys()
        assert all(again.files(pattern)[key][1] == body for key, (_, body) in finished.files(pattern).items()), pattern
    lines = [line for name, line in again.ledger().items() if name.startswith("models/")]
    assert sum(line["detail"]["fitted"] for line in lines) == 0
    assert all(line["detail"]["days"] == 0 for name, line in again.ledger().items() if name.startswith("shadow/"))


def test_the_same_night_again_registers_no_version_twice(finished, again):
    assert aliases(again) == aliases(finished)


def test_an_old_night_run_again_ends_well_and_promotes_nothing(told, finished, tmp_path):
    world = finished.copy(tmp_path / "home")
    done = told(world, "nightly", "--as-of", "2023-06-30T02:00Z", "--coins", f"BTCUSDT,{SYNTHETIC}")
    assert done.code == 0, done.out
    assert "an old night never promotes" in detail(world, "champions", SYNTHETIC, "1h", NIGHTS[0])["note"]
    assert contents(world, "champion/**/*") == contents(finished, "champion/**/*")
    assert contents(world, "models/**/*") == contents(finished, "models/**/*")
    assert contents(world, "shadow/**/*") == contents(finished, "shadow/**/*")
    assert world.library().champions() == finished.library().champions()
    assert aliases(world) == aliases(finished)


def test_status_lists_every_segment_and_counts_them(told, finished, said):
    shown = json.loads(told(finished, "status", "--json").out)
    keys = {(row["symbol"], row["timeframe"], row["regime"]) for row in shown["segments"]}
    assert keys == {(*unit, regime) for unit in UNITS for regime in REGIMES}
    assert len(shown["segments"]) == sum(shown["counts"].values()) == len(keys)
    assert shown["counts"] == said["counts"]
    assert shown["reuse"]["windows_fitted"] == sum(closed_windows(timeframe) for _, timeframe in UNITS)
    assert {row["synthetic"] for row in shown["segments"] if row["symbol"] == SYNTHETIC} == {True}


def test_the_synthetic_coin_becomes_champion_on_probation_and_no_total_counts_it(finished, said):
    coins = {row["symbol"]: row for row in said["coins"]}
    assert coins[SYNTHETIC]["verdict"].startswith("champion: ")
    pointer = finished.pointers()[SYNTHETIC]
    held = {key: entry for key, entry in pointer.segments.items() if entry.state == "champion"}
    assert {"1h.TREND", "1h.RANGE"} <= set(held)
    assert all(entry.probation_until == datetime(2023, 7, 14, 2, tzinfo=UTC) for entry in held.values()), "14 days from the first night"
    summary = json.loads((finished.bucket / "summaries/daily/2023-07-01.json").read_bytes())
    assert SYNTHETIC not in summary["champions_changed"]
    assert not any(SYNTHETIC in row["segment"] for row in summary["top_contributors"])
    assert sum(summary["segments_by_state"].values()) == (len(GOOD) - 1) * len(TIMEFRAMES) * len(TRAINED_REGIMES)


def test_hamilton_trades_the_synthetic_coin_and_explains_the_real_one(finished, tmp_path):
    done = hamilton(finished.copy(tmp_path / "home"), "once", SYNTHETIC, "BTCUSDT", "--json")
    assert done.returncode == 0, done.stderr
    made_up, real = json.loads(done.stdout)["decisions"]
    assert made_up["action"] in ("buy", "sell")
    assert made_up["size_usd"] > 0
    assert made_up["metadata"]["synthetic"]
    assert {vote["engine"] for vote in real["engine_votes"]} == set(ENGINES)
    assert real["regime"] in REGIMES
    assert set(real["metadata"]["costs"]) == {"fees_bps", "spread_bps", "impact_bps", "funding_bps", "safety_margin_bps"}
    margin = real["metadata"]["costs"]["safety_margin_bps"]
    assert real["net_edge_bps"] == pytest.approx(real["expected_edge_bps"] - real["costs_bps"] - margin)
    assert real["reason"]


def test_hamilton_finds_every_champion_sound(finished, tmp_path):
    done = hamilton(finished.copy(tmp_path / "home"), "check", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["symbol"]: row["generation"] for row in json.loads(done.stdout)["sound"]} == dict.fromkeys(GOOD, 2)


def contents(world: World, pattern: str) -> dict[str, bytes]:
    return {key: body for key, (_, body) in world.files(pattern).items()}


def aliases(world: World) -> dict[str, dict[str, str]]:
    settings = world.settings()
    return Registry(settings.mlflow_url, str(settings.home / "mlartifacts")).aliases()
