import math
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skfolio.measures import kurtosis, skew

from engine_assets.logic.stats import (
    benjamini_hochberg,
    dsr,
    expected_max_sharpe,
    max_drawdown_pct,
    psr,
    segment_metrics,
    sharpe_annual,
    sharpe_daily,
    sharpe_se_daily,
)
from hamilton_client.core.contracts import HuracanError

PER_PERIOD = [0.01, -0.005, 0.012, 0.003, -0.008, 0.015, 0.002, -0.001, 0.006, -0.004]
BH_1995 = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528, 0.759, 1.0]
HEDGE_FUND = {"size": 24, "skewness": -2.448, "kurt": 10.164}


def series(sharpe, size, skewness=0.0, kurt=3.0):
    """A series of exactly these sample moments, by Newton steps: published cases give moments, the functions take P&L."""
    x, target = np.random.default_rng(1).normal(size=size), np.array([skewness, kurt])
    x[0] += np.sign(skewness) * (abs(skewness) * size) ** (1 / 3)
    for _ in range(100):
        x = (x - x.mean()) / x.std()
        slopes = np.stack([3 * (x**2 - 1 - (x**3).mean() * x), 4 * (x**3 - (x**3).mean() - (x**4).mean() * x)]) / size
        step = np.linalg.lstsq(slopes, target - [(x**3).mean(), (x**4).mean()], rcond=None)[0]
        x = x + step / max(1.0, np.abs(step).max() / 0.3)
    x = (x - x.mean()) / x.std(ddof=1)
    assert [float(skew(x)), float(kurtosis(x))] == pytest.approx(target.tolist(), abs=1e-6)
    return x + sharpe


def pnl(sharpe=3.0, days=600, seed=0, sd=40.0):
    return np.random.default_rng(seed).standard_t(4, days) * sd / math.sqrt(2) + sharpe / math.sqrt(365) * sd


def frame(net, cost=8.0, trades=2, wins=1):
    dates = [date(2025, 1, 1) + timedelta(days=day) for day in range(len(net))]
    columns = {"date": dates, "net_bps": net, "gross_bps": np.asarray(net) + cost, "cost_bps": [cost] * len(net)}
    return pl.DataFrame(columns | {"trades": [trades] * len(net), "wins": [wins] * len(net)})


def metrics(daily, **changes):
    return segment_metrics(daily, **{"windows": 8, "effective_sample": 150.0, "n_trials": 1, "trial_sharpe_var": 0.002} | changes)


def test_conformance_per_period_and_annual():
    assert sharpe_daily(np.array(PER_PERIOD)) == pytest.approx(0.3894680901671239, abs=1e-12)
    assert sharpe_annual(np.array(PER_PERIOD)) == pytest.approx(0.3894680901671239 * 19.1049731745428, abs=1e-9)


@pytest.mark.parametrize(
    ("sharpe", "moments", "expected", "tolerance"),
    [
        (0.4589934640057525, {"size": 24}, 0.982, 1e-3),
        (0.4589934640057525, HEDGE_FUND, 0.913, 1e-3),
        (0.2, {"size": 50}, 0.9171580805434985, 1e-8),
    ],
)
def test_conformance_psr(sharpe, moments, expected, tolerance):
    assert psr(series(sharpe, **moments)) == pytest.approx(expected, abs=tolerance)


def test_conformance_dsr():
    sharpe = 2.5 / math.sqrt(250)
    assert dsr(series(sharpe, 1250), 88, 1 / 500) == pytest.approx(0.9505, abs=5e-5)
    losses = np.where(np.arange(1250) < 105, -1.0, 0.0)  # only a two-point law has skew -3 and kurtosis 10
    losses = (losses - losses.mean()) / losses.std(ddof=1)
    assert [float(skew(losses)), float(kurtosis(losses))] == pytest.approx([-3, 10], abs=0.01)
    assert dsr(losses + sharpe, 46, 1 / 500) == pytest.approx(0.9505, abs=5e-5)
    assert dsr(losses + sharpe, 100, 1 / 500) == pytest.approx(0.9004, abs=5e-5)


def test_conformance_standard_error():
    assert sharpe_se_daily(series(0.45569620253164556, **HEDGE_FUND)) == pytest.approx(0.32859, abs=5e-6)
    assert sharpe_se_daily(series(0.5, 12)) == pytest.approx(0.30618621784789724, abs=1e-8)  # Lo 2002: normal law
    assert sharpe_se_daily(series(1.0, 60)) == pytest.approx(0.15811388300841897, abs=1e-8)


def test_conformance_expected_maximum():
    assert expected_max_sharpe(100, 0.002) == pytest.approx(0.1132, abs=5e-5)
    assert expected_max_sharpe(10, 0.1) == pytest.approx(0.49793170320847435, abs=1e-9)
    assert expected_max_sharpe(1, 0.1) == expected_max_sharpe(1.2, 0.1) == 0  # the bare closed form is negative at 1.2
    for models, days, best in [(4, 25, 4.02015566649216), (400, 25, 11.404910536157226), (400, 365, 2.9848015048129364)]:
        assert expected_max_sharpe(models, 1 / days) * math.sqrt(365) == pytest.approx(best, abs=1e-9)


def test_one_trial_is_psr_of_zero():
    daily = series(0.1, 250)
    assert dsr(daily, 1, 0.004) == psr(daily) == pytest.approx(0.942261266719699, abs=1e-8)


@pytest.mark.parametrize(("trials", "variance"), [(0, 0.1), (0.5, 0.1), (float("nan"), 0.1), (5, -1.0), (5, float("inf"))])
def test_impossible_trials_are_refused(trials, variance):
    with pytest.raises(HuracanError, match="n_trials"):
        expected_max_sharpe(trials, variance)


@pytest.mark.parametrize("daily", [[], [1.0], [1.0, 2.0], [0.0] * 30, [0.1] * 30, [-7.3] * 30])
def test_short_and_constant_series_are_undefined(daily):
    values = np.array(daily)
    for statistic in (sharpe_daily, sharpe_annual, sharpe_se_daily, psr, lambda x: dsr(x, 10, 0.01)):
        assert statistic(values) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-6, 6), st.floats(0.01, 100), st.floats(1, 500))
def test_invariants_of_sharpe_psr_dsr(seed, sharpe, scale, trials):
    daily = pnl(sharpe, 120, seed)
    assert sharpe_daily(daily * scale) == pytest.approx(sharpe_daily(daily))
    assert sharpe_daily(-daily) == pytest.approx(-sharpe_daily(daily))
    assert psr(daily) + psr(-daily) == pytest.approx(1)
    assert (psr(daily) > 0.5) == (sharpe_daily(daily) > 0)
    assert psr(daily, 0.05) <= psr(daily)
    assert dsr(daily, trials + 1, 0.003) <= dsr(daily, trials, 0.003) <= psr(daily)


def test_drawdown_counts_the_start_as_a_peak_and_is_not_compounded():
    assert max_drawdown_pct(np.array([-100.0, 50.0])) == 1.0
    assert max_drawdown_pct(np.array([300.0, -100.0, -100.0, 50.0, -60.0])) == 2.1
    assert max_drawdown_pct(np.array([1.0, 2.0])) == max_drawdown_pct(np.empty(0)) == 0


def test_conformance_benjamini_hochberg_1995():
    assert (benjamini_hochberg(BH_1995) <= 0.05).tolist() == [True] * 4 + [False] * 11


def test_untested_p_values_do_not_count_and_are_never_rejected():
    holes = [float("nan"), *BH_1995, float("nan")]
    adjusted = benjamini_hochberg(holes)
    assert adjusted[1:-1].tolist() == benjamini_hochberg(BH_1995).tolist()
    assert np.isnan(adjusted[[0, -1]]).all()
    assert not (adjusted[[0, -1]] <= 1).any()
    assert np.isnan(benjamini_hochberg([float("nan")])).all()
    assert benjamini_hochberg([]).size == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.data())
def test_benjamini_hochberg_is_monotone_and_contains_bonferroni(p_values, data):
    p = np.array(p_values)
    adjusted = benjamini_hochberg(p)
    assert (adjusted >= p - 1e-15).all()
    assert (adjusted <= np.minimum(p * p.size, 1) + 1e-15).all()
    lowered = p.copy()
    lowered[data.draw(st.integers(0, p.size - 1))] /= 2
    assert (benjamini_hochberg(lowered) <= adjusted + 1e-15).all()


def test_metrics_add_up():
    net = pnl(days=100)
    found = metrics(frame(net), n_trials=50, baselines={"flat": 0.0})
    assert found.net_pnl_pct == pytest.approx(net.sum() / 100)
    assert found.net_bps == pytest.approx(net.sum() / 200)
    assert (found.cost_bps, found.sample_size, found.hit_rate) == (4.0, 200, 0.5)
    assert found.gross_bps == pytest.approx(found.net_bps + 4.0)
    assert found.edge_after_cost_bps == pytest.approx(found.net_bps)
    assert found.p_value == pytest.approx(1 - found.psr)
    assert found.dsr < found.psr
    assert (found.windows, found.effective_sample, found.baselines) == (8, 150.0, {"flat": 0.0})
    assert found.window == ("2025-01-01", "2025-04-10")
    assert type(found).from_bytes(found.to_bytes()) == found


def test_days_without_a_row_are_zero_days():
    net = pnl(days=100)
    net[3:97] = 0.0
    full, sparse = frame(net, cost=0.0), frame(net, cost=0.0).filter(pl.col("net_bps") != 0)
    everything = metrics(full)
    assert metrics(sparse).sharpe == everything.sharpe
    wider = metrics(sparse, window=(date(2024, 12, 1), date(2025, 6, 30)))
    assert abs(wider.sharpe) < abs(everything.sharpe)
    assert wider.window == ("2024-12-01", "2025-06-30")
    assert metrics(full.sample(fraction=1, shuffle=True, seed=3)) == everything


@pytest.mark.parametrize("window", [None, (date(2025, 1, 1), date(2025, 2, 1))])
def test_a_segment_that_never_traded_is_undefined(window):
    found = metrics(frame([]), window=window)
    assert (found.sharpe, found.psr, found.dsr, found.p_value, found.hit_rate, found.net_bps, found.cost_bps) == (None,) * 7
    assert (found.sample_size, found.net_pnl_pct, found.max_drawdown_pct) == (0, 0.0, 0.0)
    assert found.window == (window and ("2025-01-01", "2025-02-01"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("column", ["net_bps", "cost_bps", "trades"])
def test_missing_values_are_refused(value, column):
    daily = frame([1.0, 2.0, 3.0])
    with pytest.raises(HuracanError, match="never empty"):
        metrics(daily.with_columns(pl.Series(column, [1.0, value, 2.0])))


def test_double_and_outside_days_are_refused():
    daily = frame([1.0, 2.0, 3.0])
    for bad, window in [(pl.concat([daily, daily[1:2]]), None), (daily, (date(2025, 1, 2), date(2025, 1, 9)))]:
        with pytest.raises(HuracanError, match="twice, or one outside"):
            metrics(bad, window=window)
