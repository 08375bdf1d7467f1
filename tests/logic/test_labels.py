from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_assets.logic.labels import effective_sample, gross_labels, sample_weights, uniqueness
from hamilton_client.core.contracts import HuracanError, Regime
from hamilton_client.core.regimes import REGIME_CODES

START = datetime(2025, 1, 1, tzinfo=UTC)
HOUR_MS = 3_600_000


def candles(bars=200, seed=0, hours=1):
    close = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, bars)))
    ts = pl.Series([START + timedelta(hours=hours * bar) for bar in range(bars)], dtype=pl.Datetime("us", "UTC"))
    return pl.DataFrame({"ts": ts, "open": np.r_[100.0, close[:-1]] * 1.0001, "close": close})


@pytest.mark.parametrize(("timeframe", "hours"), [("1h", 1), ("4h", 4), ("1d", 24)])
@pytest.mark.parametrize("horizon", [1, 4])
def test_enters_at_the_next_open_and_leaves_at_the_close_of_bar_h(horizon, timeframe, hours):
    frame = candles(50, hours=hours)
    labels = gross_labels(frame, horizon, timeframe)
    assert labels.schema == {"gross_bps": pl.Float64, "label_end_ms": pl.Int64}
    assert labels.height == frame.height
    bar = 10
    assert labels["gross_bps"][bar] == pytest.approx(1e4 * np.log(frame["close"][bar + horizon] / frame["open"][bar + 1]), abs=1e-9)
    assert labels["label_end_ms"][bar] == frame["ts"].dt.epoch("ms")[bar + horizon] + hours * HOUR_MS
    for column in labels:  # the tail is unresolved
        assert column.is_null().to_list() == [False] * (50 - horizon) + [True] * horizon


def test_labels_that_span_a_gap_are_null():
    frame = candles(50).with_row_index().filter(pl.col("index") != 20).drop("index")
    labels = gross_labels(frame, 4, "1h")
    assert np.flatnonzero(labels["gross_bps"].is_null()).tolist() == [16, 17, 18, 19, 45, 46, 47, 48]
    assert labels["label_end_ms"].is_null().equals(labels["gross_bps"].is_null(), check_names=False)


def test_an_off_grid_bar_does_not_hide_a_gap():
    """Bars 0, 0:30, 2:00 end where three hourly bars would."""
    frame = candles(3).with_columns(pl.Series("ts", [START, START + timedelta(minutes=30), START + timedelta(hours=2)]))
    assert gross_labels(frame, 2, "1h")["gross_bps"].is_null().all()


@pytest.mark.parametrize("price", [float("nan"), float("inf"), 0.0, -1.0, None])
def test_impossible_prices_give_no_label(price):
    frame = candles(20)
    open_, close = frame["open"].to_list(), frame["close"].to_list()
    open_[6] = close[12] = price
    labels = gross_labels(frame.with_columns(pl.Series("open", open_), pl.Series("close", close)), 3, "1h")
    assert np.flatnonzero(labels["gross_bps"].is_null()).tolist() == [5, 9, 17, 18, 19]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 8), st.integers(0, 1000))
def test_a_label_sees_its_own_interval_only(bar, horizon, seed):
    """Leak detector D4: prices outside (t_i, e_i] do not move label i, prices inside do."""
    frame, inside = candles(120, seed), pl.int_range(pl.len()).is_between(bar + 1, bar + horizon)
    price = pl.col("open", "close")

    def label(poisoned):
        return gross_labels(poisoned, horizon, "1h").row(bar)

    assert label(frame.with_columns(pl.when(inside).then(price).otherwise(price * 7))) == label(frame)
    assert label(
        frame.with_columns(pl.when(inside & (pl.int_range(pl.len()) == bar + 1)).then(pl.col("open") * 2).otherwise("open"))
    ) != label(frame)


def test_a_horizon_below_one_bar_is_refused():
    with pytest.raises(HuracanError, match="at least one bar"):
        gross_labels(candles(5), 0, "1h")


def test_uniqueness_of_afml_and_of_two_shifted_labels():
    assert uniqueness(np.array([0, 2, 4]), np.array([3, 4, 6])) == pytest.approx([5 / 6, 3 / 4, 1.0], abs=1e-12)
    assert uniqueness(np.array([0, 1]), np.array([4, 5])) == pytest.approx([5 / 8, 5 / 8], abs=1e-12)


@pytest.mark.parametrize("horizon", [1, 4, 24])
def test_contiguous_labels_of_h_bars_are_one_hth_unique(horizon):
    bars = 500
    start = np.arange(bars) * HOUR_MS
    unique = uniqueness(start, start + horizon * HOUR_MS)
    assert unique[horizon:-horizon] == pytest.approx(1 / horizon)
    assert unique.sum() == pytest.approx(bars / horizon, rel=0.1)


def test_labels_of_real_bars_do_not_overlap_at_one_bar():
    frame = candles(50)
    labels = gross_labels(frame, 1, "1h").drop_nulls()
    closes = frame["ts"].dt.epoch("ms").to_numpy()[:-1] + HOUR_MS
    assert (uniqueness(closes, labels["label_end_ms"].to_numpy()) == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)), min_size=1, max_size=25), st.randoms())
def test_uniqueness_equals_the_bar_by_bar_definition(intervals, random):
    start = np.array([begin for begin, _ in intervals])
    end = start + np.array([length for _, length in intervals])
    bars = np.arange(80)
    alive = (bars >= start[:, None]) & (bars < end[:, None])
    expected = np.array([(1 / alive.sum(axis=0)[row]).mean() for row in alive])
    unique = uniqueness(start, end)
    assert unique == pytest.approx(expected, abs=1e-12)
    assert ((unique > 0) & (unique <= 1 + 1e-12)).all()
    order = list(range(start.size))
    random.shuffle(order)
    assert uniqueness(start[order], end[order]) == pytest.approx(unique[order], abs=1e-12)
    assert uniqueness(np.tile(start, 2), np.tile(end, 2)) == pytest.approx(np.tile(unique, 2) / 2, abs=1e-12)


def test_an_empty_label_interval_is_refused_and_no_labels_are_fine():
    with pytest.raises(HuracanError, match="end after it starts"):
        uniqueness(np.array([0, 5]), np.array([3, 5]))
    assert uniqueness(np.empty(0, np.int64), np.empty(0, np.int64)).size == 0


def test_weights_and_effective_sample():
    codes = np.array([REGIME_CODES.index(regime) for regime in (Regime.TREND, Regime.RANGE, Regime.TREND, Regime.UNKNOWN)], dtype=np.int8)
    unique = np.array([0.25, 0.5, 1.0, 0.5])
    assert sample_weights(unique, codes, Regime.TREND, 0.3) == pytest.approx([0.25, 0.15, 1.0, 0.15])
    assert sample_weights(unique, codes, Regime.RANGE, 0.0) == pytest.approx([0, 0.5, 0, 0])
    assert effective_sample(unique, codes == REGIME_CODES.index(Regime.TREND)) == 1.25
