"""What a user can get wrong on the command line: refused with a reason, a place and a next step, and without harm."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from small_world import NIGHTS, TIMEFRAMES, World, hamilton, huracan, start

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh(good, tmp_path) -> World:
    """The good world with a home that does not exist yet."""
    return replace(good, home=tmp_path / "home")


def test_an_unknown_coin_is_refused_with_the_nearest_name(fresh):
    done = huracan(fresh, "nightly", "--coins", "BTCUSD")
    assert done.returncode == 1
    assert "no candles of BTCUSD" in done.stderr
    assert "nearest: BTCUSDT" in done.stderr
    assert list(fresh.home.iterdir()) == [], "nothing was begun"


@pytest.mark.parametrize("symbol", ["../../x", "BTC/USDT", "btcusdt", "BTCUSDT;DROP TABLE champion", "A", "B" * 21, "BTCUSDT\n"])
def test_a_hostile_symbol_is_refused_before_it_reaches_a_path(told, fresh, symbol):
    for arguments in (("nightly", "--coins", f"ETHUSDT,{symbol} X"), ("champions", "rollback", symbol), ("champions", "show", symbol)):
        done = told(fresh, *arguments)
        assert done.code == 1
        assert done.err.startswith("huracan: symbol ")
        assert "is refused" in done.err
    assert list(fresh.home.parent.rglob("*")) in ([fresh.home], []), "not a file was made"


def test_a_lower_case_symbol_is_answered_with_the_right_one(told, fresh):
    assert "did you mean BTCUSDT?" in told(fresh, "nightly", "--coins", "btcusdt").err
    assert "did you mean BTCUSDT?" in told(fresh, "nightly", "--coins", "BTC/USDT").err


def test_hamilton_refuses_the_same_symbols_and_decides_for_the_others(finished, tmp_path):
    done = hamilton(finished.copy(tmp_path / "home"), "once", "../../x", "BTCUSDT", "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert [event["symbol"] for event in said["decisions"]] == ["BTCUSDT"]
    assert [entry["symbol"] for entry in said["refused"]] == ["../../x"]


def test_a_misspelt_configuration_key_is_named_with_file_line_and_the_nearest_key(told, fresh, tmp_path):
    folder = tmp_path / "config"
    folder.mkdir()
    for path in fresh.config.iterdir():
        (folder / path.name).write_text(path.read_text())
    text = (folder / "engine.yaml").read_text().replace("min_sharpe:", "min_sharp:")
    (folder / "engine.yaml").write_text(text)
    line = 1 + [row.strip().partition(":")[0] for row in text.splitlines()].index("min_sharp")
    done = told(replace(fresh, config=folder), "nightly")
    assert done.code == 1
    assert f"engine.yaml:{line}" in done.err
    assert "min_sharp" in done.err
    assert "did you mean 'min_sharpe'" in done.err


def test_a_misspelt_variable_is_named(told, fresh):
    done = told(replace(fresh, environ={"HURACAN_TRAINING__BACKENT": "threads"}), "nightly")
    assert done.code == 1
    assert "HURACAN_TRAINING__BACKENT" in done.err
    assert "did you mean 'backend'" in done.err


@pytest.mark.parametrize(
    "arguments",
    [("nope",), ("nightly", "--mode", "fast"), ("nightly", "--as-of", "yesterday"), ("nightly", "--nights", "0"), ("champions", "show")],
)
def test_wrong_usage_ends_with_code_2(told, fresh, arguments):
    done = told(fresh, *arguments)
    assert done.code == 2
    assert done.err.startswith("Usage: ")
    assert "Error: " in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nightly", "--coins", ""), "chooses no coin"),
        (("nightly", "--coins", "top0"), "chooses no coin"),
        (("nightly", "--as-of", "2031-01-01T02:00Z"), "has not come yet"),
        (("nightly", "--resume", "run_20310101_020000"), "has not come yet"),
        (("nightly", "--resume", "yesterday"), "is no run id"),
        (("status",), "no night has run"),
        (("champions", "show", "BTCUSDT"), "has no champion yet"),
        (("champions", "rollback", "BTCUSDT"), "no earlier champion"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(told, fresh, arguments, said):
    done = told(fresh, *arguments)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("huracan: ")
    assert said in done.err


@pytest.mark.parametrize("below", ["", "below"])
@pytest.mark.parametrize("arguments", [("nightly",), ("status",), ("reconcile",), ("champions", "show", "BTCUSDT")])
def test_a_home_that_cannot_be_written_is_said(told, fresh, tmp_path, arguments, below):
    (tmp_path / "file").write_text("in the way")
    home = tmp_path / "file" / below
    done = told(replace(fresh, home=home), *arguments)
    assert done.code == 1
    assert f"{home} cannot be written" in done.err
    assert "HURACAN_HOME" in done.err


def test_a_candle_folder_that_is_none_is_said(told, fresh, tmp_path):
    done = told(replace(fresh, source=tmp_path), "nightly")
    assert done.code == 1
    assert f"{tmp_path} is no candle folder" in done.err


def test_a_second_night_is_refused_and_the_first_is_unharmed(told, fresh):
    """The first is stopped in its tracks while the second asks, so that it cannot end too early."""
    first = start(fresh, "nightly", "--coins", "BTCUSDT", "--as-of", "2023-06-30T02:00Z")
    try:
        wait_for(fresh, first, lambda: len(fresh.files("runs/*/ledger/raw/*.json")) > 2)
        os.kill(first.pid, signal.SIGSTOP)
        before = fresh.files("**/*")
        for arguments in (("nightly", "--as-of", "2023-06-30T02:00Z"), ("nightly", "--json")):
            second = told(fresh, *arguments)
            assert second.code == 1
            assert f"run_20230630_020000 (pid {first.pid}) is running" in second.err
            assert second.out == ""
        assert fresh.files("**/*") == before
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(timeout=120) == 0
    finally:
        first.kill()
        first.wait()
    assert set(fresh.pointers()) == {"BTCUSDT"}
    only_bitcoin_is_done(fresh)
    with fresh.dagster() as instance:
        assert [run.status.value for run in instance.get_runs()] == ["SUCCESS"], "who is refused leaves nothing behind"

    resumed = told(fresh, "nightly", "--resume", "--as-of", "2023-06-30T02:00Z")
    assert resumed.code == 0, resumed.err
    assert {name.split("/")[1].partition(".")[0] for name in fresh.ledger(NIGHTS[0])} == {"BTCUSDT"}, "a resumed run keeps its coins"
    only_bitcoin_is_done(fresh)


def only_bitcoin_is_done(world: World) -> None:
    for asset, found in world.partition_states().items():
        assert found == {f"BTCUSDT|{timeframe}": "MATERIALIZED" for timeframe in TIMEFRAMES}, asset


def wait_for(world: World, process: subprocess.Popen[str], met: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert process.poll() is None, Path(world.home.with_suffix(".log")).read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
