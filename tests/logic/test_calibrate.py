import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_assets.logic.calibrate import fit_calibration, prequential
from hamilton_client.core.contracts import TRAINED_REGIMES
from hamilton_client.core.recipe import CalibrationParameters

PARAMETERS = CalibrationParameters(knots=8, min_effective_rows=100, shrinkage_rows=100)
DAY_MS = 86_400_000


def rows(count, seed=0, slope_bps=0.0):
    """Scores in (0, 1) and outcomes that follow them with `slope_bps`, under 100 bps of noise."""
    rng = np.random.default_rng(seed)
    score = rng.random(count)
    return score, slope_bps * (score - 0.5) + rng.normal(0, 100, count), np.ones(count)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(100, 400), st.integers(2, 30), st.sampled_from([1, 3, 10, 1000]))
def test_tables_are_monotone_and_bounded(seed, count, knots, levels):
    score, gross, weight = rows(count, seed)
    score = np.round(score * levels) / levels  # ties, as a shallow model makes them
    weight = weight * np.random.default_rng(seed).uniform(1, 2, count)
    table = fit_calibration(score, gross, weight, PARAMETERS.model_copy(update={"knots": knots}))
    assert (table is None) == (_first_bin_holds_all(score, knots))
    if table is None:
        return
    assert table.rows == count
    for part, low, high in ((table.edge_bps, gross.min(), gross.max()), (table.probability, 0, 1)):
        assert (np.diff(part.scores) > 0).all()
        assert (np.diff(part.values) >= 0).all()
        assert min(low, 0) <= min(part.values) <= max(part.values) <= max(high, 0.5)
        assert len(part.scores) <= knots
        assert np.isnan(part(np.array([np.nan]))).all()


def _first_bin_holds_all(score, knots):
    return (score < score.max()).sum() * knots < len(score)


def test_equal_scores_share_one_knot():
    """The outcome of half of the rows of a score must not be all that its knot knows, whatever order the rows come in."""
    score, gross = np.repeat([0.4, 0.6], 100), np.tile(np.repeat([-50.0, 50.0], 50), 2)
    table = fit_calibration(score, gross, np.ones(200), PARAMETERS)
    assert table.edge_bps.scores == pytest.approx((0.4, 0.6))
    assert table.edge_bps.values == (0.0, 0.0)
    assert table.probability.values == (0.5, 0.5)
    mixed = np.random.default_rng(0).permutation(200)
    again = fit_calibration(score[mixed], gross[mixed], np.ones(200), PARAMETERS)
    assert again.edge_bps.scores == pytest.approx(table.edge_bps.scores)
    assert again.edge_bps.values == pytest.approx(table.edge_bps.values)


def test_signal_survives_and_noise_shrinks():
    noise = fit_calibration(*rows(50_000), PARAMETERS)
    assert np.abs(noise.edge_bps.values).max() < 4  # 100 bps of noise in bins of some 6,000 rows: ±1.3
    assert np.abs(np.array(noise.probability.values) - 0.5).max() < 0.02
    few = fit_calibration(*rows(100), PARAMETERS)
    unshrunk = fit_calibration(*rows(100), PARAMETERS.model_copy(update={"shrinkage_rows": 1}))
    assert np.ptp(few.edge_bps.values) < 0.55 * np.ptp(unshrunk.edge_bps.values)  # as many pseudo-observations as rows
    assert np.abs(few.edge_bps.values).max() < 0.55 * np.abs(unshrunk.edge_bps.values).max()
    signal = fit_calibration(*rows(50_000, slope_bps=200.0), PARAMETERS)
    assert signal.edge_bps(np.array([0.1, 0.5, 0.9])) == pytest.approx([-80, 0, 80], abs=10)
    assert signal.probability(np.array([0.1]))[0] < 0.25
    wrong_way = fit_calibration(*rows(50_000, slope_bps=-200.0), PARAMETERS)
    assert np.ptp(wrong_way.edge_bps.values) < 1  # a model that is wrong earns nothing by it


def test_shrinkage_adds_the_stated_pseudo_observations():
    score, gross = np.repeat([0.4, 0.6], [150, 50]), np.repeat([-30.0, 60.0], [150, 50])
    table = fit_calibration(score, gross, np.ones(200), CalibrationParameters(knots=4, min_effective_rows=1, shrinkage_rows=100))
    assert table.edge_bps.values == pytest.approx((-30 * 150 / 200, 60 * 50 / 100))  # 100 pseudo-rows over two bins
    assert table.probability.values == pytest.approx((0.5 - 0.5 * 0.75, 0.5 + 0.5 * 0.5))


def test_overlapping_labels_count_by_their_uniqueness():
    score, gross, _ = rows(399)
    assert fit_calibration(score, gross, np.full(399, 0.25), PARAMETERS) is None  # 99.75 effective rows
    assert fit_calibration(*rows(400)[:2], np.full(400, 0.25), PARAMETERS) is not None
    halves = np.repeat([0.4, 0.6], 100)
    heavy = np.where(np.arange(200) % 2, 3.0, 1.0)
    uneven = fit_calibration(halves, np.where(np.arange(200) % 2, 40.0, -40.0), heavy, PARAMETERS.model_copy(update={"shrinkage_rows": 1}))
    assert uneven.edge_bps.values == pytest.approx((20, 20), rel=0.01)


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_rows_without_score_outcome_or_weight_do_not_count(hole):
    score, gross, weight = rows(300, slope_bps=50)
    table = fit_calibration(score, gross, weight, PARAMETERS)
    more = [np.r_[values, extra] for values, extra in ((score, [hole, 0.5, 0.5]), (gross, [9e9, hole, 9e9]), (weight, [1, 1, 0]))]
    assert fit_calibration(*more, PARAMETERS) == table


def test_scores_that_rank_nothing_give_no_table():
    """A table of one knot would also give an edge to bars without a score: `np.interp` forgets NaN there."""
    lopsided = np.repeat([0.4, 0.5], [3, 497])
    assert fit_calibration(lopsided, rows(500)[1], np.ones(500), PARAMETERS) is None
    assert fit_calibration(np.full(500, 0.5), rows(500)[1], np.ones(500), PARAMETERS) is None
    assert fit_calibration(np.empty(0), np.empty(0), np.empty(0), PARAMETERS) is None


def history(windows=8, per_window=120, seed=0):
    """Windows of two regimes; the last labels of a window resolve after the next one began."""
    rng = np.random.default_rng(seed)
    count = windows * per_window
    window = np.repeat(np.arange(windows), per_window)
    hour = np.arange(count)
    score = rng.random(count)
    return pl.DataFrame(
        {
            "window": window,
            "window_start_ms": window * per_window * 3_600_000,
            "regime": rng.choice([0, 1], count, p=[0.7, 0.3]).astype(np.int8),
            "score": score,
            "gross_bps": 200 * (score - 0.5) + rng.normal(0, 50, count),
            "label_end_ms": (hour + 5) * 3_600_000,
            "uniqueness": np.full(count, 0.5),
        }
    )


@pytest.mark.parametrize("poisoned", [0, 3, 6])
def test_a_window_never_sees_its_own_or_later_outcomes(poisoned):
    oof = history()
    late = pl.col("window") >= poisoned
    wild = oof.with_columns(gross_bps=pl.when(late).then(-7 * pl.col("gross_bps") + 900).otherwise("gross_bps"))
    past = oof["window"].to_numpy() <= poisoned
    for clean, dirty in zip(prequential(oof, PARAMETERS), prequential(wild, PARAMETERS), strict=True):
        np.testing.assert_array_equal(clean[past], dirty[past])
        if poisoned < 6:  # and the outcomes are used, once they are known
            assert not np.array_equal(clean[~past], dirty[~past], equal_nan=True)


def test_outcomes_that_resolve_inside_the_window_are_not_known_at_its_start():
    oof = history()
    unresolved = pl.col("label_end_ms") > (pl.col("window") + 1) * 120 * 3_600_000
    assert oof.filter(unresolved)["window"].n_unique() == 8
    wild = oof.with_columns(gross_bps=pl.when(unresolved).then(9e6).otherwise("gross_bps"))
    in_next = oof["window"].to_numpy() == 4  # window 3's late labels may be used from window 5 on
    only_three = wild.with_columns(gross_bps=pl.when(pl.col("window") == 3).then("gross_bps").otherwise(oof["gross_bps"]))
    clean, dirty = prequential(oof, PARAMETERS)[0], prequential(only_three, PARAMETERS)[0]
    np.testing.assert_array_equal(clean[in_next], dirty[in_next])
    assert not np.array_equal(clean[oof["window"].to_numpy() == 5], dirty[oof["window"].to_numpy() == 5])


def test_each_row_is_calibrated_by_its_regime_and_nothing_else():
    oof = history()
    edge, probability = prequential(oof, PARAMETERS)
    assert np.isnan(edge[oof["window"].to_numpy() == 0]).all()
    for regime in range(len(TRAINED_REGIMES[:2])):
        rows_ = np.flatnonzero((oof["regime"] == regime).to_numpy() & (oof["window"] == 6).to_numpy())
        start = oof["window_start_ms"][int(rows_[0])]
        past = oof.filter(pl.col("regime") == regime, pl.col("window") < 6, pl.col("label_end_ms") <= start)
        table = fit_calibration(*(past[name].to_numpy() for name in ("score", "gross_bps", "uniqueness")), PARAMETERS)
        np.testing.assert_array_equal(edge[rows_], table.edge_bps(oof["score"].to_numpy()[rows_]))
        np.testing.assert_array_equal(probability[rows_], table.probability(oof["score"].to_numpy()[rows_]))
