import importlib.util
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lightgbm as lgb
import numpy as np
import polars as pl
import pytest

from engine_resources.market import BundledSource, CandleSource
from hamilton_client.core import bars
from hamilton_client.core.contracts import HuracanError, Market
from hamilton_client.core.regimes import RegimeParams, classify

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "data/quickstart"
SHARED = ROOT.parent / "shared"
SYNTHETIC = "SYNTHETICUSDT"
HORIZON_BARS, COST_BPS = 4, 12


@pytest.fixture(scope="module")
def source() -> CandleSource:
    return BundledSource(QUICKSTART)


@pytest.fixture
def folder(tmp_path):
    """A small folder of the same layout, to be broken."""
    (tmp_path / "candles/1h").mkdir(parents=True)
    shutil.copy(QUICKSTART / "market.json", tmp_path)
    shutil.copy(QUICKSTART / "spreads.csv", tmp_path)
    pl.read_parquet(QUICKSTART / "candles/1h/BTCUSDT.parquet").head(64).write_parquet(tmp_path / "candles/1h/BTCUSDT.parquet")
    return tmp_path


def maker():
    spec = importlib.util.spec_from_file_location("make_quickstart", ROOT / "tools/make_quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bundle_holds_twenty_real_coins_and_one_synthetic(source):
    assert len(source.symbols()) == 21
    assert [symbol for symbol in source.symbols() if source.is_synthetic(symbol)] == [SYNTHETIC]
    assert source.market == Market()
    assert "stand in" in source.note
    assert source.now() == datetime(2023, 7, 1, 2, tzinfo=UTC)
    assert sum(path.stat().st_size for path in QUICKSTART.rglob("*") if path.is_file()) < 15e6


def test_every_bundled_series_is_sound_and_its_holes_are_still_there(source):
    holes = {}
    for symbol in source.symbols():
        checked = bars.check_candles(source.fetch(symbol, "1h", None, None), "1h", as_of=source.now())
        settled = {name: n for name, n in checked.counts.items() if n and bars.DEFECT_RULES[name] != "kept"}
        assert settled == {}, symbol
        assert checked.frame["ts"][-1] == datetime(2023, 6, 30, 23, tzinfo=UTC)
        assert checked.frame["ts"][0] in (datetime(2021, 1, 1, tzinfo=UTC), datetime(2022, 1, 1, tzinfo=UTC))
        holes[symbol] = checked.counts["gaps"]
        assert 0 <= source.spread(symbol).spread_bps < 15
    assert holes["BTCUSDT"] == 7
    assert holes["BNBUSDT"] == 1
    assert holes[SYNTHETIC] == 0


def test_spreads_say_where_they_come_from(source):
    assert source.spread("BTCUSDT").source == "binance usdm_perp book ticker"
    assert source.spread("BTCUSDT").as_of == "2026-07-15T06:51:58Z"
    assert source.spread("BTCUSDT").spread_bps == pytest.approx(0.1 / 64925.05 * 1e4, abs=1e-4)
    assert "POLUSDT" in source.spread("MATICUSDT").source
    assert source.spread(SYNTHETIC).source == "synthetic"
    assert source.spread(SYNTHETIC).spread_bps == 1.0


def test_fetch_is_half_open_and_may_be_unbounded(source):
    since, until = datetime(2023, 1, 1, tzinfo=UTC), datetime(2023, 1, 2, tzinfo=UTC)
    day = source.fetch("BTCUSDT", "1h", since, until)
    assert (day["ts"][0], day["ts"][-1], day.height) == (since, until - timedelta(hours=1), 24)
    assert source.fetch("BTCUSDT", "1h", since, None).height == 181 * 24 - 1  # the outage of 2023-03-24


def test_the_synthetic_coin_is_marked_in_every_row_and_made_from_its_seed():
    stored = pl.read_parquet(QUICKSTART / f"candles/1h/{SYNTHETIC}.parquet")
    assert stored["synthetic"].all()
    again = maker().synthetic_coin()
    for name in bars.CANDLE_SCHEMA:
        assert stored[name].equals(again[name]) or np.allclose(stored[name], again[name], rtol=1e-4), name


def test_the_synthetic_law_is_found_by_a_purged_walk_forward(source):
    frame = source.fetch(SYNTHETIC, "1h", None, None)
    log_price, log_usd = pl.col("close").log(), (pl.col("close") * pl.col("volume")).log()
    features = frame.select(
        *(log_price.diff(bars_back).alias(f"r{bars_back}") for bars_back in (1, 4, 8, 24)),
        z=(log_usd.rolling_mean(8) - log_usd.rolling_mean(168)) / log_usd.rolling_std(168),
        position=(log_price - log_price.rolling_min(48)) / (log_price.rolling_max(48) - log_price.rolling_min(48)),
    ).to_numpy()
    opens = np.log(frame["open"].to_numpy())
    outcome = np.full(frame.height, np.nan)
    outcome[: -HORIZON_BARS - 1] = opens[HORIZON_BARS + 1 :] - opens[1:-HORIZON_BARS]
    score = np.full(frame.height, np.nan)
    for first in range(168 + 120 * 24 + 48, frame.height, 60 * 24):
        train = slice(first - 48 - 120 * 24, first - 48)
        data = lgb.Dataset(features[train], (outcome[train] > 0).astype(float))
        model = lgb.train({"objective": "binary", "verbosity": -1, "num_leaves": 15, "num_threads": 1, "deterministic": True}, data, 60)
        score[first : first + 60 * 24] = model.predict(features[first : first + 60 * 24]) - 0.5
    net, free_from = [], 0
    for row in np.flatnonzero(np.abs(score) > 0.1):
        if row >= free_from and np.isfinite(outcome[row]):
            net.append(np.sign(score[row]) * outcome[row] * 1e4 - COST_BPS)
            free_from = row + HORIZON_BARS
    assert len(net) > 2000
    assert np.mean(net) > 20
    assert (score[-2:] > 0.1).all()  # 2023-06-30 22:00 and 23:00 still say buy


def test_the_synthetic_coin_trends_and_ranges_and_ends_in_a_trend(source):
    day, month = 24, 720
    params = RegimeParams(
        er_bars=2 * day,
        vol_bars=day,
        vol_rank_bars=month,
        return_bars=day,
        z_bars=month,
        volume_bars=day,
        volume_ref_bars=month,
        restart_bars=240,
    )
    regimes = classify(source.fetch(SYNTHETIC, "1h", None, None), params, "1h")
    share = {regime: n / len(regimes) for regime, n in regimes.value_counts().iter_rows()}
    assert min(share["TREND"], share["RANGE"]) > 0.3
    assert share.get("PANIC", 0) + share.get("ILLIQUID", 0) < 0.01
    assert set(regimes[-6:]) == {"TREND"}


def test_an_unknown_or_hostile_symbol_is_refused_with_the_nearest_names(source):
    with pytest.raises(HuracanError, match="nearest: BTCUSDT"):
        source.fetch("BTCUSD", "1h", None, None)
    with pytest.raises(HuracanError, match="known: ADAUSDT"):
        source.spread("QQ")
    for symbol in ("../../../etc/passwd", "BTC/USDT", "btcusdt", "", "BTC\0USDT"):
        with pytest.raises(HuracanError, match="refused"):
            source.fetch(symbol, "1h", None, None)


def test_a_timeframe_the_folder_lacks_is_refused(source):
    with pytest.raises(HuracanError, match="no 4h candles of BTCUSDT, only 1h"):
        source.fetch("BTCUSDT", "4h", None, None)
    with pytest.raises(HuracanError, match="unknown timeframe"):
        source.fetch("BTCUSDT", "../1h", None, None)


def test_dirty_but_readable_candles_are_passed_on_as_they_are(folder):
    path = folder / "candles/1h/BTCUSDT.parquet"
    frame = pl.read_parquet(path)
    pl.concat([frame.reverse(), frame[:3]]).write_parquet(path)
    raw = BundledSource(folder).fetch("BTCUSDT", "1h", None, None)
    assert raw.height == 67
    checked = bars.check_candles(raw, "1h", as_of=None)
    assert checked.frame.equals(frame)
    assert checked.counts["duplicate"] == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "no whole parquet file"),
        (lambda path: path.write_text("ts,open\n1,2\n"), "no whole parquet file"),
        (lambda path: pl.DataFrame({"time": [1]}).write_parquet(path), "lack the columns ts, open"),
    ],
)
def test_an_unusable_candle_file_is_named(folder, spoil, message):
    spoil(folder / "candles/1h/BTCUSDT.parquet")
    with pytest.raises(HuracanError, match=message) as fault:
        BundledSource(folder).fetch("BTCUSDT", "1h", None, None)
    assert str(folder / "candles/1h/BTCUSDT.parquet") in str(fault.value)


def test_a_file_with_a_hostile_name_is_left_out(folder):
    shutil.copy(folder / "candles/1h/BTCUSDT.parquet", folder / "candles/1h/BTC;DROP TABLE.parquet")
    assert BundledSource(folder).symbols() == ["BTCUSDT"]


def test_a_folder_of_another_layout_is_refused(folder):
    with pytest.raises(HuracanError, match=r"no candle folder: market\.json"):
        BundledSource(folder / "candles")
    (folder / "market.json").write_text(json.dumps({"note": "?"}))
    with pytest.raises(HuracanError, match=r"market\.json is damaged"):
        BundledSource(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symbol,spread\nBTCUSDT,1\n", "no table of"),
        ("symbol,spread_bps,source,as_of\nBTCUSDT,wide,x,y\n", "no table of"),
        ("symbol,spread_bps,source,as_of\nBTCUSDT,-1,x,y\n", "not between"),
        ("symbol,spread_bps,source,as_of\nBTCUSDT,nan,x,y\n", "not between"),
        ("", "no table of"),
    ],
)
def test_a_bad_spread_table_is_refused(folder, text, message):
    (folder / "spreads.csv").write_text(text)
    with pytest.raises(HuracanError, match=message):
        BundledSource(folder)


def test_missing_spreads_are_said(folder):
    (folder / "spreads.csv").write_text("symbol,spread_bps,source,as_of\nETHUSDT,1,x,y\n")
    with pytest.raises(HuracanError, match="no spread of BTCUSDT; add a line"):
        BundledSource(folder).spread("BTCUSDT")
    (folder / "spreads.csv").unlink()
    with pytest.raises(HuracanError, match="cannot be read"):
        BundledSource(folder)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the collected data set is not on this machine")
def test_the_bundle_equals_its_source(source):
    made = maker()
    for symbol, frame in made.real_series(SHARED).items():
        assert source.fetch(symbol, "1h", None, None).equals(frame), symbol
    real = [symbol for symbol in source.symbols() if not source.is_synthetic(symbol)]
    table = made.spread_table(SHARED, real)
    assert table["spread_bps"].to_list() == [source.spread(symbol).spread_bps for symbol in sorted(source.symbols())]
