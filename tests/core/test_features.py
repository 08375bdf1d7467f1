import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hamilton_client.core import features as feature_module
from hamilton_client.core.features import FUNCTION_VERSIONS, KINDS, FeatureRecipe, build, efficiency_ratio
from hamilton_client.core.windows import Bars
from worlds import BASE_FEATURES, assert_causal, candles_of, random_walk

BASE = FeatureRecipe(features=BASE_FEATURES)
EVERY_KIND = FeatureRecipe(
    features={
        name: [] if not kind.parameters else [list(range(5, 5 + len(kind.parameters)))] if len(kind.parameters) > 1 else [7]
        for name, kind in KINDS.items()
    }
)


@pytest.fixture(scope="module")
def walk():
    return random_walk(1, 700)


def test_base_recipe_has_its_size_and_warm_up():
    assert len(BASE.names) == 41
    assert BASE.warmup_bars == 74


@pytest.mark.parametrize("recipe", [BASE, EVERY_KIND], ids=["base", "every kind"])
def test_features_are_causal_and_of_finite_memory(walk, recipe):
    assert_causal(lambda candles: build(candles, recipe), walk, recipe.warmup_bars)


def test_a_tail_yields_the_very_bits_of_the_batch(walk):
    whole = build(walk, BASE)
    for start in (3, 64, 101, 500):
        assert build(walk[start:], BASE)[BASE.warmup_bars - 1 :].equals(whole[start + BASE.warmup_bars - 1 :])


def test_series_laid_end_to_end_equal_each_alone(walk):
    other = random_walk(9, 300).with_columns(pl.col("open", "high", "low", "close") * 1e-7, pl.col("volume") * 1e9)
    together, alone = build(pl.concat([walk, other]), BASE), build(other, BASE)
    assert together[-200:].equals(alone[-200:])


def test_chunks_change_no_bit(walk, monkeypatch):
    whole = build(walk, BASE)
    monkeypatch.setattr(feature_module, "CHUNK_ROWS", 128)
    assert build(walk, BASE).equals(whole)


@pytest.mark.parametrize("name", EVERY_KIND.names)
def test_declared_warm_up_is_exact(walk, name):
    kind, values = EVERY_KIND.columns[name]
    column = build(walk, EVERY_KIND)[name]
    first = column.is_not_null().arg_max()
    assert first == KINDS[kind].warmup_bars(values) - 1
    assert column[first:].null_count() == 0


LEAKS = {
    "centred mean": pl.col("close").rolling_mean(9, center=True),
    "global z-score": (pl.col("close") - pl.col("close").mean()) / pl.col("close").std(),
    "next high": pl.col("high").shift(-1),
    "whole-sample rank": pl.col("close").rank(),
    "interpolated": pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.col("close")).interpolate(),
    "expanding mean": pl.col("close").cum_sum() / pl.int_range(1, pl.len() + 1),
    "exponential mean": pl.col("close").ewm_mean(span=24),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_causality_check_catches_planted_leaks(walk, leak):
    with pytest.raises(AssertionError, match=r"changes when|changes with|depends on more"):
        assert_causal(lambda candles: candles.select(LEAKS[leak].alias("leak")), walk, 74)


def test_scale_of_price_and_volume_does_not_matter(walk):
    scaled = walk.with_columns(pl.col("open", "high", "low", "close") * 3.7e-6, pl.col("volume") * 5.1e8)
    one, other = build(walk, BASE).drop("ts").to_numpy(), build(scaled, BASE).drop("ts").to_numpy()
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_amihud_alone_carries_units(walk):
    recipe = FeatureRecipe(features={"amihud": [24]})
    double = walk.with_columns(pl.col("volume") * 2)
    np.testing.assert_allclose(build(double, recipe)["amihud_24"].to_numpy() * 2, build(walk, recipe)["amihud_24"].to_numpy())


def finite(frame):
    return all(frame[name].is_finite().fill_null(True).all() for name in frame.columns if name != "ts")


@pytest.mark.parametrize("price", [1.0, 0.9998, 1.0001 / 3, 6.9e4, 1.2e-8])
def test_a_pegged_coin_has_no_exploding_features(walk, price):
    log_close = np.log(walk["close"].to_numpy().copy())
    log_close[200:500] = math.log(price)
    flat = pl.lit(price)
    still = (pl.int_range(pl.len()) >= 200) & (pl.int_range(pl.len()) < 500)
    pegged = walk.with_columns(pl.when(still).then(flat).otherwise(pl.col(n)).alias(n) for n in ("open", "high", "low", "close"))
    frame = build(pegged, EVERY_KIND)
    assert finite(frame)
    inside = frame[220:490]
    assert inside["volatility_7"].unique().to_list() == [0.0]
    for name in ("zscore_7", "trend_score_7", "rsi_7", "skew_7", "body", "donchian_position_7", "efficiency_ratio_7"):
        assert inside[name].null_count() == inside.height, name


def test_rounding_noise_on_a_constant_price_is_no_signal():
    noise = np.random.default_rng(0).normal(0, 1e-15, 300)
    candles = candles_of(3 + noise).with_columns(high=pl.max_horizontal("open", "close"), low=pl.min_horizontal("open", "close"))
    frame = build(candles, EVERY_KIND)
    for name in ("zscore_7", "trend_score_7", "rsi_7", "skew_7", "autocorrelation_7", "variance_ratio_5_6", "body"):
        assert frame[name].null_count() == frame.height, name


def test_zero_volume_is_undefined_not_infinite(walk):
    dead = pl.int_range(pl.len()).is_between(300, 420)
    frame = build(walk.with_columns(volume=pl.when(dead).then(0.0).otherwise("volume")), EVERY_KIND)
    assert finite(frame)
    for name in ("volume_zscore_7", "volume_ratio_5_6", "volume_imbalance_7", "vwap_gap_7", "amihud_7", "amihud_ratio_5_6"):
        assert frame[name][310:420].null_count() == 110, name
        assert frame[name][440:].null_count() == 0, name


@pytest.mark.parametrize("fault", [None, float("nan"), float("inf"), -1.0, 0.0])
@pytest.mark.parametrize("column", ["open", "high", "low", "close"])
def test_a_faulty_candle_is_null_and_forgotten_after_the_warm_up(walk, fault, column):
    rows = pl.int_range(pl.len())
    frame = build(walk.with_columns(pl.when(rows == 300).then(pl.lit(fault)).otherwise(pl.col(column)).alias(column)), BASE)
    assert finite(frame)
    assert not frame[300].select(BASE.names).equals(build(walk, BASE)[300].select(BASE.names))
    assert frame[:300].equals(build(walk, BASE)[:300])
    assert frame[300 + BASE.warmup_bars :].equals(build(walk, BASE)[300 + BASE.warmup_bars :])


@settings(max_examples=40, deadline=None)
@given(
    moves=st.lists(st.sampled_from([0.0, 0.0, 1e-9, 1e-4, -1e-4, 0.02, -0.5, 3.0]), min_size=0, max_size=120),
    volume=st.sampled_from([0.0, 1e-12, 1.0, 1e13]),
)
def test_nothing_is_ever_infinite(moves, volume):
    candles = candles_of(np.cumsum(np.array(moves)), volume=volume)
    frame = build(candles, EVERY_KIND)
    assert frame.height == len(moves)
    assert finite(frame)
    assert frame.columns == ["ts", *EVERY_KIND.names]


def naive(function, values, bars):
    return np.array([function(values[at + 1 - bars : at + 1]) if at + 1 >= bars else np.nan for at in range(len(values))])


@pytest.mark.parametrize("bars", [2, 3, 7, 8, 23, 64, 72])
def test_windows_equal_the_definition(walk, bars):
    series = Bars(walk)
    values = series["log_close"]
    close_to = {"rtol": 1e-10, "atol": 1e-13}
    np.testing.assert_allclose(series.total("log_close", bars), naive(np.sum, values, bars), **close_to)
    np.testing.assert_array_equal(series.highest("log_close", bars), naive(np.max, values, bars))
    np.testing.assert_array_equal(series.lowest("log_close", bars), naive(np.min, values, bars))
    mean, std = series.moments("log_close", bars)
    np.testing.assert_allclose(mean, naive(np.mean, values, bars), **close_to)
    np.testing.assert_allclose(std, naive(lambda window: np.std(window, ddof=1), values, bars), rtol=1e-9)


def test_known_values(walk):
    close, high, low = (walk[name].to_numpy() for name in ("close", "high", "low"))
    frame = build(walk, FeatureRecipe(features={"return": [4], "rsi": [14], "skew": [24], "donchian_position": [24], "parkinson": [24]}))
    move = np.diff(np.log(close))
    assert frame["return_4"][100] == pytest.approx(math.log(close[100] / close[96]), abs=1e-12)
    last = move[86:100]
    assert frame["rsi_14"][100] == pytest.approx(100 * last[last > 0].sum() / np.abs(last).sum(), abs=1e-9)
    last = move[76:100]
    assert frame["skew_24"][100] == pytest.approx(((last - last.mean()) ** 3).mean() / last.std(ddof=1) ** 3, abs=1e-9)
    top, bottom = np.log(high[77:101].max()), np.log(low[77:101].min())
    assert frame["donchian_position_24"][100] == pytest.approx((np.log(close[100]) - bottom) / (top - bottom), abs=1e-9)
    reach = np.log(high[77:101] / low[77:101])
    assert frame["parkinson_24"][100] == pytest.approx(math.sqrt((reach**2).mean() / (4 * math.log(2))), abs=1e-12)


@pytest.mark.parametrize(
    ("prices", "expected"), [([1, 2, 3, 4, 5], 1.0), ([1, 2, 1, 2, 1], 0.0), ([100, 102, 101, 104, 103], 3 / 7)], ids=str
)
def test_efficiency_ratio_conformance(prices, expected):
    bars = Bars(candles_of(np.log(np.array(prices, dtype=float))).with_columns(close=pl.Series(prices, dtype=pl.Float64)))
    assert efficiency_ratio(bars, 4)[-1] == pytest.approx(expected, abs=1e-12)


def test_amihud_conformance():
    returns, dollars = [0.01, -0.02, 0.03], [1_000_000.0, 2_000_000.0, 1_500_000.0]
    log_close = np.concatenate([[0.0], np.cumsum(returns)])
    candles = candles_of(log_close, volume=np.array([1.0, *dollars]) / np.exp(log_close))
    assert build(candles, FeatureRecipe(features={"amihud": [3]}))["amihud_3"][-1] == pytest.approx(0.013333333333333334, abs=1e-12)


def test_calendar_follows_the_clock(walk):
    frame = build(walk, FeatureRecipe(features={"hour_sin": [], "hour_cos": [], "weekday_sin": [], "weekday_cos": []}))
    hour = np.arctan2(frame["hour_sin"], frame["hour_cos"]) / (2 * math.pi) * 24 % 24
    day = np.arctan2(frame["weekday_sin"], frame["weekday_cos"]) / (2 * math.pi) * 7 % 7
    np.testing.assert_allclose(np.round(hour) % 24, walk["ts"].dt.hour().to_numpy())
    np.testing.assert_allclose(np.round(day) % 7, walk["ts"].dt.weekday().to_numpy() - 1)


def test_recipe_survives_json_with_its_columns_in_order():
    shuffled = FeatureRecipe(features=dict(reversed(BASE_FEATURES.items())))
    read = FeatureRecipe.from_bytes(shuffled.to_bytes())
    assert read == shuffled == BASE
    assert read.names == BASE.names
    assert read.hash == BASE.hash
    assert set(FeatureRecipe.of(BASE.names).names) == set(BASE.names)


def test_hash_moves_with_parameters_and_versions(monkeypatch):
    assert FeatureRecipe(features={"return": [1]}).hash != FeatureRecipe(features={"return": [2]}).hash
    before = FeatureRecipe(features={"zscore": [24]})
    monkeypatch.setitem(FUNCTION_VERSIONS, "zscore", 2)
    assert FeatureRecipe(features={"zscore": [24]}).hash != before.hash
    with pytest.raises(ValidationError, match="other versions of zscore"):
        FeatureRecipe.from_bytes(before.to_bytes())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"z_score": [24]}, "did you mean 'zscore'"),
        ({"zscore": 24}, "parameters are a list"),
        ({"zscore": []}, "empty"),
        ({"zscore": [24, 24]}, "repeats itself"),
        ({"zscore": [1]}, "at least 2"),
        ({"zscore": [24.5]}, "whole numbers"),
        ({"zscore": [True]}, "whole numbers"),
        ({"zscore": [[8, 24]]}, "takes 1 parameters"),
        ({"sma_gap": [24]}, "takes 2 parameters"),
        ({"sma_gap": [[24, 8]]}, "rising order"),
        ({"hour_sin": [24]}, "write \\[\\]"),
    ],
)
def test_unfit_recipes_are_refused_with_the_reason(features, message):
    with pytest.raises(ValidationError, match=message):
        FeatureRecipe(features=features)
