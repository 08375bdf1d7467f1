import io
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamilton_client.candles import CandleStore, LakeCard, Written
from hamilton_client.core import bars
from hamilton_client.core.contracts import HuracanError, Market
from hamilton_client.store import LocalStore

START = datetime(2023, 1, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


def candles(n, start=START, volume=1.0):
    close = 100 + np.arange(n) / 7
    return pl.DataFrame(
        {
            "ts": [start + i * HOUR for i in range(n)],
            "open": close,
            "high": close + 1,
            "low": close - 1,
            "close": close,
            "volume": np.full(n, volume),
        },
        schema=bars.CANDLE_SCHEMA,
    )


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


@pytest.fixture
def lake(store):
    return CandleStore(store)


def names(store):
    return [key.rpartition("/")[2].removesuffix(".parquet") for key in store.list("candles/")]


def parquet(frame):
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def test_closed_months_are_one_file_and_the_open_month_one_file_a_day(store, lake):
    frame = candles(100)  # 30 Jan 00:00 … 3 Feb 03:00
    written = lake.write("BTCUSDT", "1h", frame)
    assert names(store) == ["202301", "20230201", "20230202", "20230203"]
    assert written.new_bars == 100
    assert len(written.put) == 4
    assert lake.read("BTCUSDT", "1h").equals(frame)
    assert lake.symbols() == ["BTCUSDT"]


def test_a_month_is_compacted_by_its_last_bar_or_by_a_later_month(store, lake):
    lake.write("BTCUSDT", "1h", candles(47))
    assert names(store) == ["20230130", "20230131"]
    written = lake.write("BTCUSDT", "1h", candles(1, START + 47 * HOUR))  # 31 Jan 23:00
    assert names(store) == ["202301"]
    assert len(written.deleted) == 2
    lake.write("ETHUSDT", "1h", candles(40))
    lake.write("ETHUSDT", "1h", candles(1, datetime(2023, 3, 1, tzinfo=UTC)))
    assert names(store)[1:] == ["202301", "20230301"]
    assert lake.read("ETHUSDT", "1h").height == 41


def test_a_repeated_write_changes_nothing(store, lake):
    lake.write("BTCUSDT", "1h", candles(100))
    before = {key: (store.root / key).stat().st_mtime_ns for key in store.list("")}
    assert lake.write("BTCUSDT", "1h", candles(100)) == Written()
    assert lake.write("BTCUSDT", "1h", candles(10, START + 60 * HOUR)[:0]) == Written()
    assert {key: (store.root / key).stat().st_mtime_ns for key in store.list("")} == before


def test_late_and_restated_bars_change_only_their_file(store, lake):
    frame = candles(100)
    lake.write("BTCUSDT", "1h", frame.filter(pl.int_range(100) != 5))
    late = lake.write("BTCUSDT", "1h", frame[4:7])
    assert (late.new_bars, late.restated_bars, late.put) == (1, 0, ("candles/BTCUSDT/1h/202301.parquet",))
    restated = frame[60:62].with_columns(volume=pl.Series([1.0, 2.0]))
    again = lake.write("BTCUSDT", "1h", restated)
    assert (again.new_bars, again.restated_bars, again.put) == (0, 1, ("candles/BTCUSDT/1h/20230201.parquet",))
    assert lake.read("BTCUSDT", "1h")["volume"].sum() == 101
    assert lake.read("BTCUSDT", "1h").height == 100


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 1700), min_size=1, max_size=6))
def test_day_hashes_are_independent_of_how_the_series_was_written(tmp_path_factory, cuts):
    frame = candles(1700, datetime(2023, 1, 20, 5, tzinfo=UTC))
    store = LocalStore(tmp_path_factory.mktemp("lake"))
    lake = CandleStore(store)
    edges = sorted({0, 1700, *cuts})
    for first, last in pairwise(edges):
        lake.write("BTCUSDT", "1h", frame[max(0, first - 3) : last])
    assert lake.read("BTCUSDT", "1h").equals(frame)
    assert bars.day_hashes(lake.read("BTCUSDT", "1h")) == bars.day_hashes(frame)
    whole = CandleStore(LocalStore(tmp_path_factory.mktemp("whole")))
    whole.write("BTCUSDT", "1h", frame)
    assert names(store) == names(whole.store)


class Killed(BaseException):
    pass


class Dies(LocalStore):
    """A bucket whose process is killed at the n-th change."""

    changes_left = 10**9

    def _change(self):
        self.changes_left -= 1
        if self.changes_left < 0:
            raise Killed

    def put(self, key, body, *, if_absent=False):
        self._change()
        return super().put(key, body, if_absent=if_absent)

    def delete(self, key):
        self._change()
        super().delete(key)


@pytest.mark.parametrize("changes", range(6))
def test_killed_anywhere_the_series_stays_whole_and_the_next_write_finishes(tmp_path, changes):
    store = Dies(tmp_path)
    lake = CandleStore(store)
    old, new = candles(47), candles(70)[40:]
    lake.write("BTCUSDT", "1h", old)
    store.changes_left = changes
    try:
        lake.write("BTCUSDT", "1h", new)
    except Killed:
        seen = lake.read("BTCUSDT", "1h")
        assert seen["ts"].is_unique().all()
        assert seen.head(47).equals(old)
    store.changes_left = 10**9
    lake.write("BTCUSDT", "1h", new)
    assert lake.read("BTCUSDT", "1h").equals(candles(70))
    assert names(store) == ["202301", "20230201"]


def test_a_month_and_its_days_side_by_side_do_not_count_twice(store, lake):
    lake.write("BTCUSDT", "1h", candles(47))
    store.put("candles/BTCUSDT/1h/202301.parquet", parquet(candles(48)))
    assert lake.read("BTCUSDT", "1h").equals(candles(48))
    assert lake.read("BTCUSDT", "1h", since=datetime(2023, 1, 31, tzinfo=UTC)).height == 24


def test_a_reader_beside_a_compacting_writer_always_sees_a_whole_prefix(lake):
    frame = candles(600, datetime(2023, 1, 25, tzinfo=UTC))
    lake.write("BTCUSDT", "1h", frame[:24])
    done = threading.Event()

    def write():
        for last in range(48, 601, 12):
            lake.write("BTCUSDT", "1h", frame[last - 24 : last])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    height = 24
    while not done.is_set():
        try:
            seen = lake.read("BTCUSDT", "1h")
        except HuracanError as fault:
            assert "changes faster" in str(fault)  # noqa: PT017  (allowed, never a wrong answer)
            continue
        assert seen.equals(frame[: seen.height])
        assert seen.height >= height
        height = seen.height
    writer.join()
    assert lake.read("BTCUSDT", "1h").equals(frame)


def test_a_read_opens_only_the_files_its_span_needs(store, lake):
    frame = candles(24 * 65)
    lake.write("BTCUSDT", "1h", frame)
    opened = []
    get = store.get
    store.get = lambda key: opened.append(key) or get(key)
    since, until = datetime(2023, 2, 3, tzinfo=UTC), datetime(2023, 2, 5, tzinfo=UTC)
    assert lake.read("BTCUSDT", "1h", since=since, until=until).equals(frame.filter(pl.col("ts").is_between(since, until, closed="left")))
    assert [key[-14:] for key in opened] == ["202302.parquet"]
    opened.clear()
    lake.read("BTCUSDT", "1h", since=datetime(2023, 4, 4, tzinfo=UTC))
    assert [key[-16:] for key in opened] == ["20230404.parquet"]


def test_nothing_stored_reads_as_no_rows(lake):
    assert lake.read("BTCUSDT", "1h").equals(bars.empty_candles())
    assert lake.symbols() == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"PAR1 nonsense", "no whole parquet file"),
        (parquet(candles(24))[:-200], "no whole parquet file"),
        (parquet(candles(24).rename({"close": "c"})), "lack the columns close"),
        (parquet(candles(24).reverse()), "out of order"),
        (parquet(pl.concat([candles(12), candles(12)])), "twice"),
        (parquet(candles(24, START + 24 * HOUR)), "outside the span"),
        (parquet(candles(24).with_columns(ts=pl.lit(None, bars.TS))), "out of order"),
    ],
)
def test_a_damaged_object_is_named_with_the_next_step(store, lake, body, message):
    lake.write("BTCUSDT", "1h", candles(40))
    store.put("candles/BTCUSDT/1h/20230130.parquet", body)
    with pytest.raises(HuracanError, match=message) as fault:
        lake.read("BTCUSDT", "1h")
    assert "candles/BTCUSDT/1h/20230130.parquet" in str(fault.value)
    assert "ingest" in str(fault.value)
    assert lake.read("BTCUSDT", "1h", since=datetime(2023, 1, 31, tzinfo=UTC)).height == 16


def test_dirty_bars_and_hostile_names_never_reach_the_lake(store, lake):
    with pytest.raises(HuracanError, match="not clean"):
        lake.write("BTCUSDT", "1h", pl.concat([candles(5), candles(2)]))
    with pytest.raises(HuracanError, match="not clean"):
        lake.write("BTCUSDT", "1h", candles(5).with_columns(close=float("nan")))
    for symbol in ("../../etc/passwd", "BTC/USDT", "btcusdt", "", "A" * 21, "BTC;DROP"):
        with pytest.raises(HuracanError, match="refused"):
            lake.write(symbol, "1h", candles(5))
        with pytest.raises(HuracanError, match="refused"):
            lake.read(symbol, "1h")
    assert store.list("") == []


def test_strange_files_beside_the_candles_are_not_symbols(store, lake):
    lake.write("BTCUSDT", "1h", candles(5))
    for key in ("candles/bad-name/1h/202301.parquet", "candles/BTCUSDT/1h/notes.txt", "candles/README.md"):
        store.put(key, b"")
    assert lake.symbols() == ["BTCUSDT"]
    assert lake.read("BTCUSDT", "1h").height == 5
    store.put("candles/BTCUSDT/1h/20230230.parquet", b"")
    with pytest.raises(HuracanError, match=r"20230230\.parquet is named after no date"):
        lake.read("BTCUSDT", "1h")


def test_optional_columns_survive_a_mixed_series(lake):
    lake.write("BTCUSDT", "1h", candles(24))
    lake.write("BTCUSDT", "1h", candles(24, START + 24 * HOUR).with_columns(trades=pl.lit(4, pl.Int64)))
    assert lake.read("BTCUSDT", "1h")["trades"].to_list() == [None] * 24 + [4] * 24


def test_an_unwritable_home_says_what_to_do(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(HuracanError, match=r"home.*HURACAN_HOME"):
        CandleStore(LocalStore(tmp_path / "home")).write("BTCUSDT", "1h", candles(5))


def test_a_lake_holds_one_market(store):
    assert LakeCard.read(store) is None
    card = LakeCard(market=Market(), note="bundled", synthetic=("SYNTHETICUSDT",))
    assert card.ensure(store) == card
    assert card.ensure(store) == card
    assert LakeCard(market=Market(), synthetic=("FAKEUSDT",)).ensure(store).synthetic == ("FAKEUSDT", "SYNTHETICUSDT")
    held = LakeCard.read(store)
    assert held is not None
    assert held.note == "bundled"
    with pytest.raises(HuracanError, match=r"holds binance usdm_perp \(priced by spot candles\); binance spot"):
        LakeCard(market=Market(instrument="spot")).ensure(store)
    assert LakeCard.read(store) == held


def test_a_damaged_card_is_refused(store):
    store.put("lake.json", b"{")
    with pytest.raises(HuracanError, match=r"lake\.json.*damaged"):
        LakeCard(market=Market()).ensure(store)
