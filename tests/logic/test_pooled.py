from dataclasses import replace
from datetime import UTC, datetime

import lightgbm as lgb
import numpy as np
import polars as pl
import pytest

from engine_assets.logic import pooled
from engine_assets.logic.pooled import PooledScorer, fit_pooled, pooled_key, pooled_rows, quarter_starts, with_regime
from market import DAY_MS, HOUR_MS, drifting, frame_of, noise, recipe, scaled, since_ms

RECIPE = recipe()
CANDLES = noise(1, 200)
FRAME = frame_of(CANDLES, RECIPE)
QUARTER = int(datetime(2023, 4, 1, tzinfo=UTC).timestamp() * 1000)
SHARE = 1000


def ms(*day):
    return int(datetime(*day, tzinfo=UTC).timestamp() * 1000)


def same(one, two):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two, strict=True))


def test_quarters_begin_within_the_data():
    assert quarter_starts(ms(2022, 11, 5), ms(2023, 7, 1)) == [ms(2023, 1, 1), ms(2023, 4, 1), ms(2023, 7, 1)]
    assert quarter_starts(ms(2023, 1, 1), ms(2023, 3, 31)) == []


def test_a_quarter_knows_only_what_was_known_before_it():
    """Labels resolved a purge before the quarter: prices from the purge on change nothing, the hours before it do."""
    clean = pooled_rows(FRAME, QUARTER, RECIPE, "1h", SHARE)
    cutoff = QUARTER - DAY_MS
    assert same(pooled_rows(frame_of(scaled(CANDLES, since_ms(cutoff)), RECIPE), QUARTER, RECIPE, "1h", SHARE), clean)
    late = FRAME.label_end_ms > cutoff
    garbage = replace(FRAME, x=np.where(late[:, None], 1e9, FRAME.x), gross_bps=np.where(late, -FRAME.gross_bps, FRAME.gross_bps))
    assert same(pooled_rows(garbage, QUARTER, RECIPE, "1h", SHARE), clean)
    assert not same(pooled_rows(frame_of(scaled(CANDLES, since_ms(cutoff - HOUR_MS)), RECIPE), QUARTER, RECIPE, "1h", SHARE), clean)


def test_a_quarters_model_is_the_same_before_and_after_it():
    before = frame_of(CANDLES.filter(~since_ms(QUARTER)), RECIPE)
    one, two = (fit_pooled(*pooled_rows(frame, QUARTER, RECIPE, "1h", SHARE), RECIPE) for frame in (before, FRAME))
    assert one == two is not None


def test_each_coin_gives_at_most_its_share_spread_over_time():
    x, target, weight = pooled_rows(FRAME, QUARTER, RECIPE, "1h", 100)
    assert x.shape == (100, len(RECIPE.features.names) + 1)
    assert target.shape == weight.shape == (100,)
    usable = np.flatnonzero(FRAME.usable & (FRAME.label_end_ms <= QUARTER - DAY_MS))
    assert x[[0, -1], 0].tolist() == FRAME.x[usable[[0, -1]], 0].tolist()
    assert len(pooled_rows(FRAME, QUARTER, RECIPE, "1h", 10**6)[0]) == len(usable)
    assert not len(pooled_rows(FRAME, int(FRAME.close_ms[0]), RECIPE, "1h", 100)[0])
    assert set(np.unique(target)) == {0.0, 1.0}
    assert (weight > 0).all()


def test_regime_is_the_last_column_and_a_category():
    x, target, weight = pooled_rows(FRAME, QUARTER, RECIPE, "1h", 10**6)
    assert x[:, -1].tolist() == FRAME.regime[FRAME.usable & (FRAME.label_end_ms <= QUARTER - DAY_MS)].tolist()
    only_regime = np.where(x[:, -1] == x[0, -1], 1.0, 0.0)
    text = fit_pooled(x, only_regime, weight, RECIPE)
    assert f"Column_{x.shape[1] - 1}" in text
    assert "num_cat=1" in text
    assert fit_pooled(x, target, weight, RECIPE) == fit_pooled(x, target, weight, RECIPE)
    assert fit_pooled(x, target, weight, RECIPE) != fit_pooled(x, target, weight * np.linspace(1, 5, len(weight)), RECIPE)


def test_few_rows_or_one_class_give_no_model():
    x, target, weight = pooled_rows(FRAME, QUARTER, RECIPE, "1h", 10**6)
    assert fit_pooled(x[:199], target[:199], weight[:199], RECIPE) is None
    assert fit_pooled(x, np.ones_like(target), weight, RECIPE) is None
    assert fit_pooled(x[:0], target[:0], weight[:0], RECIPE) is None


def test_each_bar_is_scored_by_the_model_of_its_quarter():
    frame = frame_of(drifting(2, 250), RECIPE)
    starts = quarter_starts(int(frame.open_ms[0]), int(frame.close_ms[-1]))
    texts = {start: fit_pooled(*pooled_rows(frame, start, RECIPE, "1h", SHARE), RECIPE) for start in starts}
    assert len(set(texts.values())) == len(starts) == 2
    score = PooledScorer(dict(reversed(texts.items())))(frame)
    assert np.isnan(score[frame.close_ms <= starts[0]]).all()  # the bar that closes as the quarter begins is not in it
    for start, end in zip(starts, [*starts[1:], frame.close_ms[-1]], strict=True):
        rows = np.flatnonzero((frame.close_ms > start) & (frame.close_ms <= end))
        expected = lgb.Booster(model_str=texts[start]).predict(with_regime(frame.x[rows], frame.regime[rows]))
        np.testing.assert_array_equal(score[rows], expected)
    assert np.isnan(PooledScorer({})(frame)).all()


def test_a_quarter_is_addressed_by_the_days_before_it(monkeypatch):
    days = {"A": {"20230330": "a", "20230401": "b"}, "B": {"20230331": "c"}}

    def key(days_=days, quarter=QUARTER, by=RECIPE, timeframe="1h", rows=100):
        return pooled_key(days_, quarter, by, timeframe, rows)

    assert key(days | {"A": days["A"] | {"20230401": "restated", "20230402": "new"}}) == key()
    others = [
        key(days | {"B": {"20230331": "restated"}}),
        key(days | {"C": {"20230101": "d"}}),
        key(quarter=QUARTER + 91 * DAY_MS),
        key(by=recipe(model={"rounds": 11})),
        key(timeframe="4h"),
        key(rows=99),
    ]
    for version in ("POOLED_VERSION", "LABEL_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(pooled, version, 99)
            others.append(key())
    assert len({key(), *others}) == 1 + len(others)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_pooled_model_learns_across_coins(seed):
    frames = [frame_of(drifting(coin, 100), RECIPE) for coin in (10, 11, 12)]
    parts = [pooled_rows(frame, QUARTER, RECIPE, "1h", SHARE) for frame in frames]
    text = fit_pooled(*(np.concatenate(column) for column in zip(*parts, strict=True)), RECIPE)
    other = frame_of(drifting(20 + seed, 130), RECIPE)
    score = PooledScorer({QUARTER: text})(other)
    rows = np.flatnonzero(np.isfinite(score) & np.isfinite(other.gross_bps))
    assert len(rows) > 500
    assert ((score[rows] > 0.5) == (other.gross_bps[rows] > 0)).mean() > 0.75


def test_scores_do_not_depend_on_later_candles():
    texts = {QUARTER: fit_pooled(*pooled_rows(FRAME, QUARTER, RECIPE, "1h", SHARE), RECIPE)}
    cut = CANDLES.filter(pl.col("ts").dt.epoch("ms") < QUARTER + 10 * DAY_MS)
    short = PooledScorer(texts)(frame_of(cut, RECIPE))
    np.testing.assert_array_equal(PooledScorer(texts)(FRAME)[: len(short)], short)
