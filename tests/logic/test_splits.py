import itertools
from dataclasses import astuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import TimeSeriesSplit

from engine_assets.logic.splits import DAY_MS, TooFewWindows, walk_forward, windows
from hamilton_client.core.contracts import HuracanError

HOUR_MS = DAY_MS // 24
START_MS = 1_735_689_600_000  # 2025-01-01
GEOMETRY = {"train_days": 20, "test_days": 5, "purge_days": 2}


def at(days):
    return START_MS + round(days * DAY_MS)


@st.composite
def rows(draw):
    """A gappy panel of 1 to 3 coins in random row order, labels 0 to 48 h, and a geometry."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    days, step = draw(st.integers(12, 45)), HOUR_MS * draw(st.sampled_from([1, 4, 24]))
    grid = np.arange(START_MS + draw(st.integers(0, 23)) * HOUR_MS, at(days), step)
    outage = at(draw(st.integers(0, days)))
    grid = grid[(rng.random(grid.size) > draw(st.sampled_from([0.0, 0.1, 0.6]))) & ~((grid >= outage) & (grid < outage + 3 * DAY_MS))]
    ts = rng.permutation(np.tile(grid, draw(st.integers(1, 3))))
    ends = ts + rng.integers(0, draw(st.sampled_from([1, 5, 49])), ts.size) * HOUR_MS
    geometry = {"train_days": draw(st.integers(1, 10)), "test_days": draw(st.integers(1, 4)), "purge_days": draw(st.integers(0, 3))}
    options = {"expanding": draw(st.booleans()), "anchor": draw(st.sampled_from([None, 0, START_MS - 5 * HOUR_MS]))}
    return ts, ends, geometry | options | {"min_windows": 0, "until_ms": at(days)}


def bodies(folds):
    return [(fold.k, fold.test_start_ms, fold.train.tobytes(), fold.test.tobytes()) for fold in folds]


@settings(max_examples=80, deadline=None)
@given(rows())
def test_folds_leak_nothing_and_drop_nothing_else(case):
    ts, ends, config = case
    if not ts.size:
        return
    purge, folds = config["purge_days"] * DAY_MS, walk_forward(ts, ends, **config)
    for fold in folds:
        assert fold.train.dtype == fold.test.dtype == np.int64
        for index in (fold.train, fold.test):  # 1
            assert (np.diff(index) > 0).all()
        assert not set(fold.train) & set(fold.test)
        assert not set(ts[fold.train]) & set(ts[fold.test])  # 3
        assert (fold.skipped is None) == bool(fold.train.size and fold.test.size)
        if fold.skipped is None:  # 2: train labels end before any test label begins
            assert ends[fold.train].max() <= ts[fold.test].min()
            assert ts[fold.test].min() - ts[fold.train].max() > purge or purge == 0
        inside = np.flatnonzero((ts >= fold.train_start_ms) & (ts < fold.test_start_ms))  # 12
        for row in np.setdiff1d(inside, fold.train):
            assert ends[row] > fold.test_start_ms or ts[row] >= fold.test_start_ms - purge
        assert np.array_equal(fold.test, np.flatnonzero((ts >= fold.test_start_ms) & (ts < fold.test_end_ms)))
        width = fold.train_end_ms - fold.train_start_ms  # 5
        assert width >= config["train_days"] * DAY_MS if config["expanding"] else width == config["train_days"] * DAY_MS
        assert fold.train_start_ms >= ts.min()
        assert fold.test_end_ms <= config["until_ms"]  # 6
        assert fold.test_end_ms - fold.test_start_ms == config["test_days"] * DAY_MS
    for before, after in itertools.pairwise(folds):  # 4
        assert (after.k, after.test_start_ms) == (before.k + 1, before.test_end_ms)
        if config["expanding"]:
            assert set(before.train) <= set(after.train)
    listed = windows(int(ts.min()), config["until_ms"], **{k: v for k, v in config.items() if k not in ("min_windows", "until_ms")})
    assert [tuple(window) for window in listed] == [astuple(fold)[:5] for fold in folds]


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(-3, 3), st.integers(0, 2**32 - 1))
def test_folds_follow_the_data_and_nothing_else(case, shift_days, seed):
    ts, ends, config = case
    if not ts.size:
        return
    folds = walk_forward(ts, ends, **config)
    assert bodies(walk_forward(ts, ends, **config)) == bodies(folds)  # 14

    shift = shift_days * DAY_MS + (0 if config["anchor"] is None else 12_345)  # 7: no anchor means UTC midnights
    moved = config | {"until_ms": config["until_ms"] + shift, "anchor": None if config["anchor"] is None else config["anchor"] + shift}
    assert [b[2:] for b in bodies(walk_forward(ts + shift, ends + shift, **moved))] == [b[2:] for b in bodies(folds)]
    for unit in ("ms", "us", "ns"):
        as_unit = [x.astype("datetime64[ms]").astype(f"datetime64[{unit}]") for x in (ts, ends)]
        assert bodies(walk_forward(*as_unit, **config)) == bodies(folds)

    order = np.random.default_rng(seed).permutation(ts.size)  # 8
    for fold, other in zip(folds, walk_forward(ts[order], ends[order], **config), strict=True):
        assert np.array_equal(np.sort(order[other.train]), fold.train)
        assert np.array_equal(np.sort(order[other.test]), fold.test)

    later = config["until_ms"] + np.arange(0, 9 * DAY_MS, 5 * HOUR_MS)  # 9
    longer = walk_forward(np.r_[ts, later], np.r_[ends, later], **config | {"until_ms": config["until_ms"] + 9 * DAY_MS})
    assert bodies(longer[: len(folds)]) == bodies(folds)

    by_start = {fold.test_start_ms: set(fold.train) for fold in folds}  # 10
    stricter = [walk_forward(ts, ends + 7 * HOUR_MS, **config)]
    if config["anchor"] is not None and config["train_days"] > 1 and not config["expanding"]:
        stricter.append(walk_forward(ts, ends, **config | {"purge_days": config["purge_days"] + 1, "train_days": config["train_days"] - 1}))
    for fold in itertools.chain(*stricter):
        assert set(fold.train) <= by_start[fold.test_start_ms]


@pytest.mark.parametrize("horizon", [0, 1, 24])
def test_regular_grid_equals_scikit_learn(horizon):
    ts = np.arange(START_MS, at(60), HOUR_MS)
    folds = walk_forward(ts, ts + horizon * HOUR_MS, train_days=20, test_days=5, purge_days=0)
    gap = max(horizon - 1, 0)
    oracle = TimeSeriesSplit(n_splits=8, test_size=120, gap=gap, max_train_size=480 - gap)
    for fold, (train, test) in zip(folds, oracle.split(ts), strict=True):
        assert np.array_equal(fold.train, train)
        assert np.array_equal(fold.test, test)


@pytest.mark.parametrize(("days", "count"), [(26, 0), (27, 1), (46, 4), (47, 5), (51.9, 5), (62, 8), (365, 68)])
def test_conformance_counts(days, count):
    ts = np.arange(START_MS, at(days), HOUR_MS)
    assert len(walk_forward(ts, ts, **GEOMETRY, min_windows=0, until_ms=at(days))) == count
    assert len(windows(START_MS, at(days), **GEOMETRY)) == count


def test_conformance_windows_62_days():
    expected = [(k, at(5 * k), at(5 * k + 20), at(5 * k + 22), at(5 * k + 27)) for k in range(8)]
    assert windows(START_MS, at(62), **GEOMETRY) == expected


def test_46_days_are_refused_not_shrunk():
    ts = np.arange(START_MS, at(46), HOUR_MS)
    with pytest.raises(TooFewWindows, match=r"needs 5 windows, 46.0 days of data hold 4") as refused:
        walk_forward(ts, ts, **GEOMETRY)
    assert (refused.value.needed, refused.value.available) == (5, 4)
    with pytest.raises(TooFewWindows):
        walk_forward(ts[:0], ts[:0], **GEOMETRY)


def test_purge_of_mlfinlab_issue_295():
    """The library kept row 4, whose label ends inside the test block."""
    starts = START_MS + np.arange(10) * DAY_MS
    (fold,) = walk_forward(starts, starts + 2 * DAY_MS, train_days=5, test_days=5, purge_days=0, min_windows=1)
    assert fold.train.tolist() == [0, 1, 2, 3]
    assert fold.test.tolist() == [5, 6, 7, 8, 9]


def test_a_new_day_never_moves_an_epoch_anchored_window():
    config = GEOMETRY | {"anchor": 0}
    nights = [windows(START_MS, at(days), **config) for days in range(60, 80)]
    for tonight, next_night in itertools.pairwise(nights):
        assert next_night[: len(tonight)] == tonight
    dropped_first_week = windows(at(7), at(79), **config)
    assert set(dropped_first_week) < set(nights[-1])
    assert all(window.test_start_ms == window.k * 5 * DAY_MS for window in nights[-1])


def test_an_outage_skips_its_window_with_a_reason():
    ts = np.arange(START_MS, at(62), HOUR_MS)
    gone = (ts >= at(27)) & (ts < at(32))
    folds = walk_forward(ts[~gone], ts[~gone], **GEOMETRY)
    assert [fold.skipped for fold in folds] == [None, "no test rows", *[None] * 6]
    with pytest.raises(TooFewWindows, match="hold 7"):
        walk_forward(ts[~gone], ts[~gone], **GEOMETRY, min_windows=8)


def test_polars_columns_are_accepted():
    ts = pl.Series(np.arange(START_MS, at(47), HOUR_MS)).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").dt.cast_time_unit("us")
    assert bodies(walk_forward(ts, ts, **GEOMETRY)) == bodies(walk_forward(ts.dt.epoch("ms"), ts.dt.epoch("ms"), **GEOMETRY))


def test_unresolved_labels_and_bad_shapes_are_refused():
    ts = np.arange(START_MS, at(62), HOUR_MS)
    missing = ts.astype("datetime64[ms]")
    missing[-1] = "NaT"
    for bad, message in [
        (missing, "unresolved"),
        (ts - 1, "unresolved"),
        (ts[1:], "same rows"),
        (ts * 1.0, "epoch milliseconds"),
        (ts[:, None], "epoch"),
    ]:
        with pytest.raises(HuracanError, match=message):
            walk_forward(ts, bad, **GEOMETRY)
    with pytest.raises(HuracanError, match="at least 1"):
        windows(START_MS, at(62), train_days=20, test_days=0, purge_days=2)
