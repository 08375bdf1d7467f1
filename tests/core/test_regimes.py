import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hamilton_client.core.contracts import HuracanError, Regime
from hamilton_client.core.regimes import REGIME_CODES, Measures, RegimeParams, RegimeRecipe, _successors, _walk, classify, codes, measure
from worlds import assert_causal, candles_of, random_walk

HOURLY = RegimeParams(
    er_bars=48, vol_bars=24, vol_rank_bars=720, return_bars=24, z_bars=720, volume_bars=24, volume_ref_bars=720, restart_bars=168
)
SHORT = RegimeParams(
    er_bars=12, vol_bars=6, vol_rank_bars=40, return_bars=6, z_bars=40, volume_bars=6, volume_ref_bars=40, restart_bars=24,
    dwell_bars=3, panic_z_enter=-1.2, panic_z_exit=-0.5, panic_vol_enter=0.8, panic_vol_exit=0.6, illiquid_enter=0.7, illiquid_exit=0.9,
)  # fmt: skip


def states(candles, params=HOURLY, timeframe="1h"):
    return classify(candles, params, timeframe).to_numpy()


def share(found, regime):
    return float((found == regime.value).mean())


def test_every_bar_has_exactly_one_state_and_a_code():
    found = classify(random_walk(1, 2_000), SHORT, "1h")
    assert found.name == "regime"
    assert found.dtype == pl.String
    assert found.null_count() == 0
    assert set(found) == set(Regime)
    assert [REGIME_CODES[code] for code in codes(found)] == found.to_list()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("timeframe", ["1h", "1d"])
def test_causal_and_of_finite_memory(seed, timeframe):
    candles = random_walk(seed, 500, timeframe)
    assert_causal(lambda some: classify(some, SHORT, timeframe).to_frame(), candles, SHORT.warmup_bars, seed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), start=st.integers(1, 250), holes=st.sets(st.integers(1, 399), max_size=60))
def test_a_known_state_is_the_same_wherever_the_series_begins(seed, start, holes):
    candles = random_walk(seed, 400)
    candles = candles.filter(~pl.int_range(pl.len()).is_in(list(holes)))
    batch, tail = states(candles, SHORT)[start:], states(candles[start:], SHORT)
    known = tail != Regime.UNKNOWN
    assert (tail[known] == batch[known]).all()
    assert known[SHORT.warmup_bars - 1 :].all()


def test_hysteresis_without_restarts_would_not_have_finite_memory():
    params = SHORT.model_copy(update={"restart_bars": 10_000})
    candles = random_walk(1, 500)
    assert (states(candles[100:], params)[params.window_bars :] == Regime.UNKNOWN).all()


def test_hysteresis_conformance():
    ratio = np.array([0.1, 0.25, 0.31, 0.28, 0.22, 0.19, 0.25, 0.35, 0.21, 0.1])
    quiet = np.zeros(10)
    params = SHORT.model_copy(update={"trend_enter": 0.3, "trend_exit": 0.2, "dwell_bars": 1})
    tables = _successors(Measures(ratio, quiet, quiet, quiet + 1), params)
    found = _walk(tables, np.ones(10, bool), np.arange(10) == 0, params.dwell_bars)
    expected = ["RANGE", "RANGE", "TREND", "TREND", "TREND", "RANGE", "RANGE", "TREND", "TREND", "RANGE"]
    assert [REGIME_CODES[code].value for code in found] == expected


def machine(efficiency, return_z, rank, volume, dwell_bars=6):
    arrays = Measures(*(np.array(values, dtype=float) for values in (efficiency, return_z, rank, volume)))
    rows = len(efficiency)
    found = _walk(_successors(arrays, HOURLY), np.ones(rows, bool), np.arange(rows) == 0, dwell_bars)
    return [REGIME_CODES[code].value for code in found]


def test_a_regime_dwells_but_panic_and_illiquid_are_entered_at_once():
    calm, none, full = [0.0] * 10, [0.0] * 10, [1.0] * 10
    assert machine([0.0, 0.9] + [0.0] * 8, calm, none, full) == ["RANGE"] * 10
    assert machine([0.9] + [0.0] * 9, calm, none, full) == ["TREND"] * 6 + ["RANGE"] * 4
    crash = machine([0.9] * 10, [0, 0, -4, -2, 0, 0, 0, 0, 0, 0], [0, 0, 0.99, 0.95, 0, 0, 0, 0, 0, 0], full)
    assert crash == ["TREND"] * 2 + ["PANIC"] * 6 + ["TREND"] * 2
    dry = machine([0.9] * 10, [-4.0] * 10, full, [1, 1, 0.2, 0.3, 0.39, 0.41, 0.41, 0.41, 0.41, 0.41])
    assert dry == ["PANIC"] * 2 + ["ILLIQUID"] * 3 + ["PANIC"] * 5


def planted():
    """Candles with a trend, noise, a crash and a drop in volume, and the row at which each part begins."""
    rng = np.random.default_rng(4)
    parts = {
        "warm": rng.normal(0, 0.006, 1_100),
        "trend": rng.normal(0.006, 0.003, 100),
        "noise": np.diff(rng.normal(0, 0.006, 301)),  # of the price, not of its return: a random walk may well trend
        "crash": rng.normal(-0.30 / 24, 0.030, 24),
        "after": rng.normal(0, 0.006, 300),
        "dry": rng.normal(0, 0.006, 200),
    }
    lengths = [len(part) for part in parts.values()]
    starts = dict(zip(parts, np.cumsum([0, *lengths[:-1]]), strict=True))
    volume = rng.lognormal(8, 0.3, sum(lengths))
    volume[starts["dry"] :] /= 10
    return candles_of(5 + np.cumsum(np.concatenate(list(parts.values()))), volume=volume), starts


def test_planted_segments_are_recognised():
    candles, at = planted()
    found = states(candles)
    assert (found[: HOURLY.window_bars - 1] == Regime.UNKNOWN).all()
    assert share(found[at["trend"] + 48 : at["noise"]], Regime.TREND) > 0.9
    assert share(found[at["noise"] + 96 : at["crash"]], Regime.RANGE) > 0.9
    assert Regime.PANIC in found[at["crash"] : at["crash"] + 24]
    assert Regime.PANIC not in found[: at["crash"]]
    dry = found[at["dry"] :]
    assert Regime.ILLIQUID in dry[:24]
    assert share(dry[24:], Regime.ILLIQUID) == 1.0


def test_scale_does_not_matter():
    candles = random_walk(5, 1_500)
    scaled = candles.with_columns(pl.col("open", "high", "low", "close") * 2.3e-7, pl.col("volume") * 4.4e10)
    assert (states(candles, SHORT) == states(scaled, SHORT)).all()


def test_states_persist():
    candles = random_walk(6, 8_000)
    found = codes(classify(candles, HOURLY, "1h"))[HOURLY.warmup_bars :]
    assert (np.diff(found) != 0).mean() * 24 < 1.0
    params = HOURLY.model_copy(update={"trend_exit": HOURLY.trend_enter, "dwell_bars": 1})
    nervous = codes(classify(candles, params, "1h"))[HOURLY.warmup_bars :]
    assert (np.diff(nervous) != 0).sum() > 1.3 * (np.diff(found) != 0).sum()


def test_restarts_are_anchored_at_the_epoch():
    params = SHORT.model_copy(update={"restart_bars": 24, "dwell_bars": 1_000})
    candles = random_walk(8, 5_000)
    found = codes(classify(candles, params, "1h"))
    calm = np.isin(found, [REGIME_CODES.index(Regime.TREND), REGIME_CODES.index(Regime.RANGE)])
    changes = np.flatnonzero((np.diff(found) != 0) & calm[1:] & calm[:-1]) + 1
    assert len(changes) > 2
    assert set(candles["ts"].dt.hour().to_numpy()[changes]) == {0}


def test_constant_prices_are_a_range_and_a_dead_market_is_illiquid():
    flat = candles_of(np.zeros(400)).with_columns(high=pl.col("close"), low=pl.col("close"))
    known = states(flat, SHORT.model_copy(update={"illiquid_enter": 0.1, "illiquid_exit": 0.2}))[SHORT.warmup_bars :]
    assert set(known) == {"RANGE"}
    assert set(states(flat.with_columns(volume=0.0), SHORT)[SHORT.warmup_bars :]) == {"ILLIQUID"}


@pytest.mark.parametrize("fault", [None, float("nan"), float("inf"), -1.0])
def test_a_faulty_candle_makes_unknown_until_a_fresh_start(fault):
    candles = random_walk(3, 400)
    broken = candles.with_columns(close=pl.when(pl.int_range(pl.len()) == 150).then(pl.lit(fault)).otherwise("close"))
    found, sound = states(broken, SHORT), states(candles, SHORT)
    assert (found[:150] == sound[:150]).all()
    assert (found[150 : 150 + SHORT.window_bars - 6] == Regime.UNKNOWN).all()
    assert (found[150 + SHORT.warmup_bars :] == sound[150 + SHORT.warmup_bars :]).all()
    assert np.isnan(measure(broken, SHORT).efficiency[150])


def test_empty_and_short_series_are_unknown():
    assert states(random_walk(1, 1)[:0], SHORT).tolist() == []
    assert set(states(random_walk(1, 30), SHORT)) == {"UNKNOWN"}


def test_refusals():
    with pytest.raises(ValidationError, match=r"looser than the entry level: trend, illiquid"):
        RegimeParams(**SHORT.model_dump() | {"trend_exit": 0.5, "illiquid_exit": 0.1})
    with pytest.raises(ValidationError):
        RegimeRecipe.from_bytes(b'{"by_timeframe": {}, "function_version": 2}')
    with pytest.raises(HuracanError, match="unknown timeframe"):
        classify(random_walk(1, 10), SHORT, "7h")
    recipe = RegimeRecipe(by_timeframe={"1h": HOURLY})
    assert RegimeRecipe.from_bytes(recipe.to_bytes()) == recipe
