"""A night over good and bad coins: every bad one is a clean result of its own, and sinks nobody."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from bad_coins import BROKEN, NOT_SYMBOLS, ODD, bad_coins
from engine_assets.cli import choose_coins
from engine_assets.work.night import STAGES
from engine_assets.work.run import RESUMABLE
from small_world import ASSETS, CLOCK, REGIMES, SYNTHETIC, TIMEFRAMES, World, huracan, make_config, make_source, quickstart

pytestmark = pytest.mark.slow
FINE = ("BTCUSDT", *ODD)
RUN = "runs/run_20230701_020000"


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> tuple[World, subprocess.CompletedProcess[str]]:
    """One night over BTCUSDT, the synthetic coin's absence, and every bad coin."""
    folder = tmp_path_factory.mktemp("bad")
    source = make_source(folder / "source", {"BTCUSDT": quickstart("BTCUSDT")} | bad_coins(quickstart("ETHUSDT")))
    world = World(source, make_config(folder / "config"), folder / "home", {"HURACAN_VALIDATION__POOLED_MAX_ROWS": "20000"})
    return world, huracan(world, "nightly")


@pytest.fixture(scope="module")
def world(night) -> World:
    return night[0]


@pytest.fixture(scope="module")
def status(world) -> dict:
    done = huracan(world, "status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def units(symbols) -> set[str]:
    return {f"{symbol}|{timeframe}" for symbol in symbols for timeframe in TIMEFRAMES}


def test_the_command_says_that_something_failed_and_how_to_go_on(night):
    _, done = night
    assert done.returncode == 1
    assert "15 of 30 partitions failed; the others are done. Repeat these: huracan nightly --resume" in " ".join(done.stdout.split())


def test_status_accounts_for_every_segment_once(status):
    listed = [(row["symbol"], row["timeframe"], row["regime"]) for row in status["segments"]]
    expected = {(symbol, timeframe, regime) for symbol in (*FINE, *BROKEN) for timeframe in TIMEFRAMES for regime in REGIMES}
    assert len(listed) == len(set(listed)) == len(expected) == sum(status["counts"].values())
    assert set(listed) == expected


def test_a_broken_file_fails_its_own_coin_and_no_other(status):
    failed = {row["symbol"] for row in status["segments"] if row["state"] == "failed: raw"}
    assert failed == set(BROKEN)
    assert not any(row["state"].startswith("failed") for row in status["segments"] if row["symbol"] not in BROKEN)


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ("EMPTYUSDT", ["EMPTYUSDT.parquet", "is empty (0 bytes)"]),
        ("CUTUSDT", ["CUTUSDT.parquet", "no whole parquet file"]),
        ("TEXTUSDT", ["TEXTUSDT.parquet", "no whole parquet file"]),
        ("SCHEMAUSDT", ["SCHEMAUSDT.parquet", "lack the columns close", "open is String"]),
        ("ALLNANUSDT", ["ALLNANUSDT: no usable 1h candle", "null_price"]),
    ],
)
def test_the_reason_names_the_file_and_the_fault_in_every_stage(world, symbol, said):
    for name, line in world.ledger().items():
        if name.partition("/")[2].startswith(f"{symbol}."):
            assert not line["ok"]
            assert all(words in line["error"] for words in said), line["error"]
            assert line["error"].count("UpstreamMissing") <= 1, "told once, however far down"


def test_odd_candles_are_repaired_or_quarantined_and_counted(world):
    defects = {symbol: world.ledger()[f"raw/{symbol}.1h.json"]["detail"]["defects"] for symbol in ODD}
    bars = quickstart("ETHUSDT").height
    assert defects["MESSYUSDT"]["off_grid"] == 100
    assert defects["MESSYUSDT"]["duplicate"] == bars
    assert defects["MESSYUSDT"]["backward"] > 0
    assert defects["HOLEYUSDT"]["null_price"] == len(range(3, bars, 50))
    assert defects["HOLEYUSDT"]["zero_volume"] > bars // 8
    assert defects["PEGUSDT"]["flat"] == bars
    assert world.ledger()["raw/MESSYUSDT.1h.json"]["detail"]["bars"] == bars, "nothing but the copies and the late ones is gone"
    quarantine = pl.read_parquet(world.bucket / RUN / "parts/HOLEYUSDT/1h/quarantine.parquet")
    assert set(quarantine["reason"]) == {"null_price"}


def test_too_little_history_and_a_pegged_price_are_results_not_errors(status):
    for symbol in ("YOUNGUSDT", "PEGUSDT"):
        states = {row["state"] for row in status["segments"] if row["symbol"] == symbol}
        assert states == {"insufficient_data", "not_traded"}


def test_a_mended_series_trains_like_any_other(world):
    for timeframe in TIMEFRAMES:
        detail = world.ledger()[f"models/MESSYUSDT.{timeframe}.json"]["detail"]
        assert detail["windows"] == world.ledger()[f"models/BTCUSDT.{timeframe}.json"]["detail"]["windows"] > 4


def test_a_hostile_file_name_is_left_out_and_said(night):
    world, done = night
    for name in NOT_SYMBOLS:
        assert name in done.stderr
        assert not [path for path in world.bucket.rglob("*") if name in path.name]
    assert not list(world.source.parent.rglob("pwned"))


def test_dagster_shows_the_failed_partitions_red_and_all_others_green(world):
    states = world.partition_states()
    assert len(states) == len(ASSETS)
    for asset, found in states.items():
        assert {key for key, state in found.items() if state == "FAILED"} == units(BROKEN), asset
        assert {key for key, state in found.items() if state == "MATERIALIZED"} == units(FINE), asset


def test_the_ledger_has_a_line_per_stage_and_unit(world):
    lines = {(line["stage"], f"{line['symbol']}|{line['timeframe']}"): line["ok"] for line in world.ledger().values()}
    pooled = {("pooled", f"POOLED|{timeframe}") for timeframe in TIMEFRAMES}
    assert set(lines) - pooled == {(stage, unit) for stage in STAGES for unit in units((*FINE, *BROKEN))}
    assert {unit for (stage, unit), ok in lines.items() if not ok} == units(BROKEN)


def test_manifest_and_summary_tell_each_failure_once(world):
    manifest = json.loads((world.bucket / RUN / "manifest.json").read_bytes())
    assert {f"{failure['symbol']}|{failure['step'].split()[1]}" for failure in manifest["failures"]} == units(BROKEN)
    assert len(manifest["failures"]) == len(units(BROKEN))
    assert set(manifest["symbols_trained"]) == set(FINE)
    assert set(manifest["inputs"]) == set(FINE)
    assert SYNTHETIC not in manifest["symbols_trained"]
    summary = json.loads((world.bucket / f"summaries/daily/{CLOCK:%Y-%m-%d}.json").read_bytes())
    assert len(summary["failures"]) == len(units(BROKEN))
    assert summary["segments_by_state"] == {"insufficient_data": 45, "not_traded": 15}
    trades = [metrics["sample_size"] for coin in manifest["metrics_map"].values() for metrics in coin.values()]
    assert summary["trades_counted"] == sum(trades)


def test_failure_reports_name_step_coin_and_exception(world):
    report = json.loads((world.bucket / RUN / "failure_report.json").read_bytes())
    assert report["symbol"] in BROKEN
    assert report["step"] == "raw.1h"
    assert report["exception_type"] == "HuracanError"
    of_coins = {path.name.partition(".")[0] for path in (world.bucket / RUN / "failures").iterdir()}
    assert of_coins == set(BROKEN)


def test_the_heartbeat_ends_finished_with_the_last_error(world):
    beat = json.loads((world.bucket / "heartbeats/engine.json").read_bytes())
    assert (beat["phase"], beat["progress"], beat["run_id"]) == ("finished", 1.0, "run_20230701_020000")
    assert any(symbol in beat["last_error"] for symbol in BROKEN)


def test_every_usable_coin_has_a_champion_and_no_broken_one_has(world):
    assert set(world.pointers()) == set(FINE)
    assert set(world.library().champions()) == set(FINE)


def test_the_most_traded_coins_can_be_chosen_although_some_cannot_be_read(world):
    chosen = choose_coins("top3", world.night())
    assert chosen[0] == "BTCUSDT"
    assert not set(chosen) & {*BROKEN, "YOUNGUSDT"}


def test_after_the_repair_resume_runs_the_failed_coin_and_no_other(told, world, tmp_path):
    source = Path(shutil.copytree(world.source, tmp_path / "source"))
    mended = replace(world.copy(tmp_path / "home"), source=source)
    before = mended.files(f"{RUN}/ledger/*/*.json")
    quickstart("SOLUSDT").write_parquet(source / "candles/1h/EMPTYUSDT.parquet")
    done = told(mended, "nightly", "--resume", "--json")
    assert done.code == 1, "four coins are broken still"
    for asset, found in mended.partition_states().items():
        assert {key for key, state in found.items() if state == "MATERIALIZED"} == units((*FINE, "EMPTYUSDT")), asset
        assert {key for key, state in found.items() if state == "FAILED"} == units(set(BROKEN) - {"EMPTYUSDT"}), asset
    after = mended.files(f"{RUN}/ledger/*/*.json")
    again = {key.split("/")[-1].partition(".")[0] for key in before if after[key] != before[key] and key.split("/")[-2] in RESUMABLE}
    assert again == set(BROKEN)
    assert mended.library().champion("EMPTYUSDT").generation == mended.pointers()["EMPTYUSDT"].generation == 1
    assert not json.loads(done.out)["ok"]
