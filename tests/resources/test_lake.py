import contextlib
import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from polars.testing import assert_frame_equal

from engine_resources.lake import StoredFolds, read_frame, write_frame
from hamilton_client.core import layout
from hamilton_client.core.contracts import HuracanError
from hamilton_client.store import LocalStore, NotFound

START = datetime(2024, 1, 1, tzinfo=UTC)


def frame(rows=40, seed=0):
    draw = random.Random(seed)
    return pl.DataFrame(
        {
            "ts": [START + timedelta(hours=hour) for hour in range(rows)],
            "score": [draw.gauss(0, 1) if hour % 7 else None for hour in range(rows)],
            "regime": [("TREND", "RANGE")[hour % 2] for hour in range(rows)],
        },
        schema={"ts": pl.Datetime("us", "UTC"), "score": pl.Float64, "regime": pl.String},
    )


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "bucket")


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_a_frame_comes_back_as_it_went_in(store, rows):
    assert write_frame(store, "a/b.parquet", frame(rows))
    assert_frame_equal(read_frame(store, "a/b.parquet"), frame(rows), check_exact=True)


def test_if_absent_keeps_what_is_there(store):
    assert write_frame(store, "a.parquet", frame(1), if_absent=True)
    assert not write_frame(store, "a.parquet", frame(2), if_absent=True)
    assert read_frame(store, "a.parquet").height == 1
    assert write_frame(store, "a.parquet", frame(2))
    assert read_frame(store, "a.parquet").height == 2


def test_a_missing_frame_is_not_found(store):
    with pytest.raises(NotFound, match=r"a\.parquet"):
        read_frame(store, "a.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A written frame and the bucket it lies in."""
    store = LocalStore(tmp_path_factory.mktemp("damage"))
    write_frame(store, "whole.parquet", frame())
    return store, store.get("whole.parquet")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_object_is_refused_by_name(whole, share):
    store, body = whole
    store.put("cut.parquet", body[: int(share * len(body))])
    with pytest.raises(HuracanError, match=r"^cut\.parquet in file://.* is not readable parquet .*; delete it"):
        read_frame(store, "cut.parquet")


def test_damage_that_makes_the_reader_panic_is_refused_by_name(whole):
    store, body = whole
    for place in range(114, 118):  # in the footer: the reader of polars 2.1 panics at ten of these flips
        for bit in range(8):
            damaged = bytearray(body)
            damaged[-1 - place] ^= 1 << bit
            store.put("flip.parquet", bytes(damaged))
            with contextlib.suppress(HuracanError):
                read_frame(store, "flip.parquet")


class FoldsAreAMapping(RuleBasedStateMachine):
    """StoredFolds against a dict, reopened at will: what one night stored, the next one finds."""

    keys = Bundle("keys")

    def __init__(self):
        super().__init__()
        self.store = LocalStore(self.folder)
        for key in self.store.list(""):
            self.store.delete(key)
        self.model: dict[str, pl.DataFrame] = {}
        self.reopen()

    @rule()
    def reopen(self):
        self.folds = StoredFolds(self.store, "BTCUSDT", "1h")

    @rule(target=keys, key=st.text("0123456789abcdef", min_size=1, max_size=4), rows=st.integers(0, 3))
    def put(self, key, rows):
        self.folds[key] = self.model[key] = frame(rows)
        return key

    @rule(key=keys)
    def delete(self, key):
        self.folds.pop(key, None)
        self.model.pop(key, None)

    @rule(key=keys)
    def get(self, key):
        assert (key in self.folds) == (key in self.model)
        found, expected = self.folds.get(key), self.model.get(key)
        assert (found is None) == (expected is None)
        assert found is None or found.equals(expected)

    @invariant()
    def same_keys(self):
        assert list(self.folds) == sorted(self.model)
        assert len(self.folds) == len(self.model)


def test_folds_behave_as_a_mapping(tmp_path):
    machine = type("Machine", (FoldsAreAMapping,), {"folder": tmp_path})
    run_state_machine_as_test(machine, settings=settings(max_examples=30, stateful_step_count=15, deadline=None))


def test_series_do_not_see_each_others_folds(store):
    StoredFolds(store, "BTCUSDT", "1h")["abc"] = frame()
    assert list(StoredFolds(store, "BTCUSDT", "1h")) == ["abc"]
    for symbol, timeframe in (("BTCUSDT", "4h"), ("BTCUSDT2", "1h"), ("ETHUSDT", "1h")):
        assert len(StoredFolds(store, symbol, timeframe)) == 0


def test_a_fold_that_vanished_is_a_missing_key(store):
    folds = StoredFolds(store, "BTCUSDT", "1h")
    folds["abc"] = frame()
    store.delete(layout.fold("BTCUSDT", "1h", "abc"))
    with pytest.raises(KeyError, match="abc"):
        folds["abc"]
    with pytest.raises(KeyError, match="never"):
        folds["never"]
    assert folds.get("never") is None


def test_a_damaged_fold_is_no_missing_key_but_an_error_with_its_name(store):
    folds = StoredFolds(store, "BTCUSDT", "1h")
    folds["abc"] = frame()
    store.put(layout.fold("BTCUSDT", "1h", "abc"), b"PAR1 nothing PAR1")
    with pytest.raises(HuracanError, match=r"folds/BTCUSDT/1h/abc\.parquet .* is not readable parquet"):
        folds.get("abc")


@pytest.mark.parametrize("symbol", ["../etc", "btcusdt", ""])
def test_a_symbol_is_checked_before_it_reaches_a_path(store, symbol):
    with pytest.raises(HuracanError):
        StoredFolds(store, symbol, "1h")
