import hashlib
import struct
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamilton_client.core import bars
from hamilton_client.core.contracts import HuracanError

START = datetime(2023, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SHARED = Path(__file__).parents[3] / "shared/data"


def candles(n, start=START, step=HOUR, seed=0):
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.005, n)))
    open_ = np.concatenate([[100.0], close[:-1]])
    return pl.DataFrame(
        {
            "ts": [start + i * step for i in range(n)],
            "open": open_,
            "high": np.maximum(open_, close) * 1.002,
            "low": np.minimum(open_, close) * 0.998,
            "close": close,
            "volume": rng.uniform(1, 9, n),
        },
        schema=bars.CANDLE_SCHEMA,
    )


def at(frame, row, **values):
    index = pl.int_range(frame.height)
    return frame.with_columns(
        pl.when(index == row).then(pl.lit(value)).otherwise(pl.col(name)).alias(name) for name, value in values.items()
    )


def found(frame, as_of=None):
    checked = bars.check_candles(frame, "1h", as_of=as_of)
    return checked, {name: n for name, n in checked.counts.items() if n}


def test_a_clean_series_passes_untouched():
    checked, counts = found(candles(100))
    assert checked.frame.equals(candles(100))
    assert counts == {}
    assert set(checked.counts) == set(bars.DEFECT_RULES)
    assert checked.quarantine.is_empty()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ts": START + timedelta(hours=5, minutes=28, milliseconds=14)}, "off_grid"),
        ({"ts": None}, "null_ts"),
        ({"close": float("nan")}, "null_price"),
        ({"open": None}, "null_price"),
        ({"high": float("inf")}, "null_price"),
        ({"low": 0.0}, "non_positive_price"),
        ({"open": -1.0}, "non_positive_price"),
        ({"high": 1.0}, "impossible_range"),
        ({"low": 1e6}, "impossible_range"),
        ({"volume": float("nan")}, "bad_volume"),
        ({"volume": None}, "bad_volume"),
        ({"volume": -1.0}, "bad_volume"),
    ],
)
def test_each_bad_row_is_quarantined_with_its_reason_and_leaves_a_counted_hole(values, reason):
    checked, counts = found(at(candles(20), 5, **values))
    assert counts == {reason: 1, "gaps": 1, "missing_bars": 1, "longest_gap_bars": 1}
    assert checked.quarantine["reason"].to_list() == [reason]
    assert checked.frame.equals(candles(20).filter(pl.int_range(20) != 5))


def test_unclosed_bars_are_quarantined():
    checked, counts = found(candles(10), as_of=START + timedelta(hours=8, minutes=59))
    assert counts == {"unclosed": 2}
    assert checked.frame.height == 8
    assert found(candles(10), as_of=START + timedelta(hours=10))[1] == {}
    with pytest.raises(HuracanError, match="time zone"):
        found(candles(3), as_of=datetime(2023, 1, 1))


def test_identical_duplicates_are_dropped_and_conflicting_ones_quarantined():
    clean = candles(10)
    checked, counts = found(pl.concat([clean, clean[3:5], at(clean, 7, volume=99.0)[7:8]]))
    assert counts == {"backward": 1, "duplicate": 2, "conflicting_duplicate": 1}
    assert checked.frame.equals(clean)
    assert checked.quarantine["volume"].to_list() == [99.0]


def test_a_broken_duplicate_does_not_displace_a_sound_one():
    clean = candles(10)
    checked, counts = found(pl.concat([at(clean, 4, close=float("nan"))[:5], clean[4:]]))
    assert counts == {"null_price": 1}
    assert checked.frame.equals(clean)


def test_backward_order_is_sorted():
    checked, counts = found(candles(10).reverse())
    assert counts == {"backward": 9}
    assert checked.frame.equals(candles(10))


def test_zero_volume_flat_bars_and_gaps_are_counted_and_kept():
    frame = at(candles(30), 4, volume=0.0).filter(~pl.int_range(30).is_in([10, 20, 21, 22]))
    _, counts = found(frame)
    assert counts == {"zero_volume": 1, "gaps": 2, "missing_bars": 4, "longest_gap_bars": 3}
    constant = candles(64).with_columns(open=1.0, high=1.0, low=1.0, close=1.0, volume=0.0)
    checked, counts = found(constant)
    assert counts == {"zero_volume": 64, "flat": 64}
    assert checked.frame.equals(constant)


def test_64_hours_and_no_history_at_all():
    short = candles(64)
    assert bars.derive(short, "1h", "4h").height == 16
    assert bars.derive(short, "1h", "1d").height == 2
    none = bars.empty_candles()
    assert found(none)[1] == {}
    assert bars.derive(none, "1h", "1d").equals(none)
    assert bars.derive(candles(3), "1h", "4h").equals(none)
    assert bars.day_hashes(none) == {}
    assert bars.closed(none, "1h", START).is_empty()


@pytest.mark.parametrize(
    ("frame", "names"),
    [
        (pl.DataFrame({"ts": [1]}), "open, high, low, close, volume"),
        (candles(3).rename({"close": "c"}), "close"),
        (candles(3).with_columns(close=pl.lit("1.0")), "close is String"),
        (candles(3).with_columns(pl.col("ts").dt.replace_time_zone(None)), "ts is Datetime"),
        (candles(3).with_columns(pl.col("ts").dt.epoch("ms")), "ts is Int64"),
        (pl.DataFrame(), "nothing"),
    ],
)
def test_a_wrong_schema_is_refused_naming_the_columns(frame, names):
    with pytest.raises(HuracanError) as fault:
        bars.check_candles(frame, "1h", as_of=None)
    assert names in str(fault.value)


def test_optional_columns_come_along_and_others_do_not():
    rich = candles(8).with_columns(
        trades=pl.lit(3, pl.Int32), quote_volume=pl.lit(2), note=pl.lit("x"), ts=pl.col("ts").dt.cast_time_unit("ms")
    )
    frame = found(rich)[0].frame
    assert dict(frame.schema) == bars.CANDLE_SCHEMA | bars.OPTIONAL_COLUMNS
    derived = bars.derive(at(frame, 1, trades=None), "1h", "4h")
    assert derived["trades"].to_list() == [None, 12]
    assert derived["quote_volume"].to_list() == [8.0, 8.0]


def test_derived_values():
    base = candles(8)
    derived = bars.derive(base, "1h", "4h")
    first = base[:4]
    assert derived.row(0) == (
        START,
        first["open"][0],
        first["high"].max(),
        first["low"].min(),
        first["close"][3],
        pytest.approx(first["volume"].sum()),
    )
    assert bars.derive(base, "1h", "1h").equals(base)
    assert bars.derive(base, "1h", "4h", as_of=START + timedelta(hours=7, minutes=59)).height == 1
    with pytest.raises(HuracanError, match="multiple"):
        bars.derive(base, "4h", "1h")


@settings(max_examples=60)
@given(st.integers(0, 23), st.integers(1, 120), st.data())
def test_a_derived_bar_exists_iff_it_ended_and_all_its_base_bars_exist(offset, n, data):
    full = candles(n, START + offset * HOUR)
    keep = data.draw(st.lists(st.integers(0, n - 1), max_size=3))
    base = full.filter(~pl.int_range(n).is_in(keep))
    as_of = START + data.draw(st.integers(0, 160)) * HOUR
    have = set(base["ts"])
    for timeframe, hours in (("4h", 4), ("1d", 24)):
        starts = [START + i * hours * HOUR for i in range(150 // hours)]
        expected = [ts for ts in starts if ts + hours * HOUR <= as_of and all(ts + i * HOUR in have for i in range(hours))]
        assert bars.derive(base, "1h", timeframe, as_of=as_of)["ts"].to_list() == expected


@given(st.integers(0, 300))
def test_derived_bars_do_not_depend_on_where_the_history_starts(cut):
    whole, tail = bars.derive(candles(400), "1h", "4h"), bars.derive(candles(400)[cut:], "1h", "4h")
    assert whole.tail(tail.height).equals(tail)


@given(st.lists(st.integers(1, 99), max_size=5))
def test_day_hashes_do_not_depend_on_chunks_layout_or_further_columns(cuts):
    frame = candles(100)
    edges = sorted({0, *cuts, 100})
    pieces = [frame[a:b] for a, b in pairwise(edges)]
    assert bars.day_hashes(pl.concat(pieces, rechunk=False)) == bars.day_hashes(frame)
    assert bars.day_hashes(frame.with_columns(trades=1).select("trades", *reversed(frame.columns))) == bars.day_hashes(frame)
    days = [bars.day_hashes(frame[first : first + 24]) for first in range(0, 100, 24)]
    assert {day: digest for one in days for day, digest in one.items()} == bars.day_hashes(frame)


@given(st.integers(0, 99), st.sampled_from(["open", "high", "low", "close", "volume"]))
def test_a_day_hash_changes_iff_a_row_of_it_changes(row, column):
    frame = candles(100)
    before = bars.day_hashes(frame)
    after = bars.day_hashes(at(frame, row, **{column: np.nextafter(frame[column][row], np.inf)}))
    assert {day for day in before if before[day] != after[day]} == {f"{frame['ts'][row]:%Y%m%d}"}
    dropped = bars.day_hashes(frame.filter(pl.int_range(100) != row))
    assert {day for day in before if before[day] != dropped.get(day)} == {f"{frame['ts'][row]:%Y%m%d}"}


def test_day_hashes_are_pinned_fast_and_refuse_an_unsorted_series():
    frame = pl.DataFrame(
        {"ts": [START], "open": [1.0], "high": [2.0], "low": [0.5], "close": [1.5], "volume": [-0.0]}, schema=bars.CANDLE_SCHEMA
    )
    assert bars.day_hashes(frame) == {
        "20230101": hashlib.sha256(struct.pack("<q5d", 1_672_531_200_000_000, 1.0, 2.0, 0.5, 1.5, 0.0)).hexdigest()
    }
    assert bars.day_hashes(frame.with_columns(volume=0.0)) == bars.day_hashes(frame)
    long = candles(900 * 24)
    for bad in (long.reverse(), pl.concat([frame, frame])):
        with pytest.raises(HuracanError, match="sorted"):
            bars.day_hashes(bad)


@given(st.lists(st.integers(0, 49), max_size=10), st.permutations(range(50)), st.randoms())
def test_shuffling_and_repeating_rows_never_changes_the_clean_series(repeats, order, random):
    frame = candles(50)
    dirty = pl.concat([frame[list(order)], *(frame[i : i + 1] for i in repeats)])
    checked, _ = found(dirty)
    assert checked.frame.equals(frame)
    assert checked.counts["duplicate"] == len(repeats)
    assert checked.quarantine.is_empty()


@given(
    st.lists(st.sampled_from(["open", "high", "low", "close", "volume"]), min_size=60, max_size=60),
    st.lists(st.floats(), min_size=60, max_size=60),
)
def test_every_row_is_kept_dropped_or_quarantined_and_what_is_kept_is_sound(columns, values):
    frame = candles(60)
    for row in range(0, 60, 3):
        frame = at(frame, row, **{columns[row]: values[row]})
    checked, _ = found(frame)
    kept = checked.frame
    assert kept.height + checked.quarantine.height + checked.counts["duplicate"] == 60
    assert found(kept)[0].frame.equals(kept)
    assert bool((kept["low"] > 0).all())
    assert bool((kept["high"] >= kept["low"]).all())


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the collected data set is not on this machine")
@pytest.mark.parametrize(
    ("name", "timeframe", "expected"),
    [
        ("spot_1d_2021_2022/candles/1d/JUVUSDT", "1d", {"duplicate": 93}),
        ("spot_1h_2017_2022/candles/1h/ETHUSDT", "1h", {"off_grid": 43}),
        ("spot_1h_majors/candles/1h/BTCUSDT", "1h", {"gaps": 27, "missing_bars": 122, "longest_gap_bars": 33}),
        ("fut_1m_many/candles/1m/AGIXUSDT", "1m", {"bad_volume": 8641}),
    ],
)
def test_the_defects_of_real_files_are_found(name, timeframe, expected):
    checked = bars.check_candles(pl.read_parquet(SHARED / f"{name}.parquet"), timeframe, as_of=None)
    assert expected.items() <= checked.counts.items()
