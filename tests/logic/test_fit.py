from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from engine_assets.logic import fit
from engine_assets.logic.fit import final_models, fit_regimes, fit_window, training_frame
from engine_assets.logic.labels import gross_labels
from engine_assets.logic.prepare import all_features
from engine_assets.logic.train import plan_folds
from hamilton_client.core.bars import day_hashes
from hamilton_client.core.contracts import TRAINED_REGIMES, Regime
from market import DAY_MS, HOUR_MS, code, drifting, features, frame_of, noise, recipe, scaled, since_ms

RECIPE = recipe()
CANDLES = noise(1, 60)
FRAME = frame_of(CANDLES, RECIPE)
AS_OF = CANDLES["ts"][-1]
FOLD = plan_folds(FRAME, RECIPE, "1h", AS_OF, 1)[3]
BOTH = [Regime.TREND, Regime.RANGE]


def texts(frame, rows, by=RECIPE, regimes=BOTH):
    return {regime: model.model_to_string() for regime, model in fit_regimes(frame, rows, list(regimes), by).items()}


def trainable(frame, fold):
    return fold.train[frame.usable[fold.train]]


@pytest.fixture
def fitted(monkeypatch):
    """Texts of the models that `fit_window` makes, most recent last."""
    seen, real = [], fit_regimes

    def spy(*arguments):
        models = real(*arguments)
        seen.append({regime: model.model_to_string() for regime, model in models.items()})
        return models

    monkeypatch.setattr(fit, "fit_regimes", spy)
    return seen


def test_a_training_frame_joins_features_regimes_and_labels():
    labels = gross_labels(CANDLES, 4, "1h")
    assert FRAME.x.shape == (CANDLES.height, len(RECIPE.features.names))
    np.testing.assert_array_equal(FRAME.gross_bps, labels["gross_bps"].fill_null(np.nan))
    np.testing.assert_array_equal(FRAME.close_ms - FRAME.open_ms, HOUR_MS)
    np.testing.assert_array_equal(FRAME.label_end_ms - FRAME.close_ms, 4 * HOUR_MS)
    assert FRAME.uniqueness[100:-10] == pytest.approx(0.25)
    assert (FRAME.uniqueness[np.isnan(FRAME.gross_bps)] == 0).all()
    middle, built = 700, all_features(CANDLES, day_hashes(CANDLES), RECIPE, "1h")
    assert FRAME.x[middle].tolist() == list(built.select(RECIPE.features.names).row(middle))


def test_rows_before_the_warm_up_know_nothing():
    """The hour of day is known from the first bar on; a series begins where the longest window is full."""
    assert "hour_sin" in RECIPE.features.names
    assert np.flatnonzero(FRAME.known)[0] == RECIPE.features.warmup_bars - 1 == 12
    holes = CANDLES.with_columns(close=pl.when(pl.int_range(pl.len()) == 500).then(None).otherwise("close"))
    assert frame_of(holes, RECIPE).known[12:].all()  # one known feature is enough


def test_the_same_rows_give_the_same_bytes():
    rows = trainable(FRAME, FOLD)
    assert texts(FRAME, rows) == texts(FRAME, rows)
    assert texts(FRAME, rows)[Regime.RANGE] == texts(FRAME, rows, regimes=[Regime.RANGE])[Regime.RANGE]  # shared bins share nothing else
    assert texts(FRAME, rows, regimes=BOTH[::-1]) == texts(FRAME, rows)
    assert texts(FRAME, rows)[Regime.RANGE] != texts(FRAME, rows)[Regime.TREND]
    assert texts(FRAME, rows[:-1]) != texts(FRAME, rows)


def test_only_train_rows_reach_bins_and_trees(fitted):
    """D5: garbage in every row but the train rows, in features, labels, regimes and weights."""
    fit_window(FRAME, FOLD, RECIPE)
    other = np.setdiff1d(np.arange(len(FRAME.x)), trainable(FRAME, FOLD))
    garbage = replace(FRAME, **{name: getattr(FRAME, name).copy() for name in ("x", "gross_bps", "uniqueness")})
    garbage.x[other] = 1e6 * np.random.default_rng(0).normal(size=(len(other), garbage.x.shape[1]))
    garbage.gross_bps[other] = np.where(np.isnan(garbage.gross_bps[other]), np.nan, 5e5)
    garbage.uniqueness[other] = 77.0
    fit_window(garbage, FOLD, RECIPE)
    clean, dirty = fitted
    assert clean == dirty
    assert set(clean) >= set(BOTH)


def test_prices_from_the_test_window_on_reach_no_model(fitted):
    """D5 on candles: features, regimes, labels and weights are all made anew from poisoned prices."""
    poisoned = frame_of(scaled(CANDLES, since_ms(FOLD.test_start_ms)), RECIPE)
    np.testing.assert_array_equal(poisoned.x[FOLD.train], FRAME.x[FOLD.train])
    assert not np.array_equal(poisoned.x[FOLD.test], FRAME.x[FOLD.test], equal_nan=True)
    for frame in (FRAME, poisoned):
        fit_window(frame, FOLD, RECIPE)
    clean, dirty = fitted
    shared = clean.keys() & dirty.keys()
    assert shared
    assert all(clean[regime] == dirty[regime] for regime in shared)
    inside = frame_of(scaled(CANDLES, since_ms(FOLD.train_end_ms - 3 * HOUR_MS)), RECIPE)
    fit_window(inside, FOLD, RECIPE)
    assert any(fitted[-1][regime] != clean[regime] for regime in clean.keys() & fitted[-1].keys())


def test_a_model_is_the_same_before_the_test_window_exists():
    cut = frame_of(CANDLES.filter(~since_ms(FOLD.test_start_ms)), RECIPE)
    assert texts(cut, trainable(cut, FOLD)) == texts(FRAME, trainable(FRAME, FOLD))


def test_each_test_bar_is_scored_by_the_model_of_its_regime():
    scored = fit_window(FRAME, FOLD, RECIPE)
    assert scored["close_ms"].to_list() == FRAME.close_ms[FOLD.test].tolist()
    models = fit_regimes(FRAME, trainable(FRAME, FOLD), list(TRAINED_REGIMES), RECIPE)
    seen = set()
    for position, row in enumerate(FOLD.test):
        regime = TRAINED_REGIMES[scored["regime"][position]]
        seen.add(regime)
        assert scored["score"][position] == models[regime].predict(FRAME.x[row : row + 1])[0]
    assert len(seen) >= 2
    unknown = replace(FRAME, regime=np.where(np.arange(len(FRAME.x)) == FOLD.test[7], code(Regime.UNKNOWN), FRAME.regime).astype(np.int8))
    assert np.isnan(fit_window(unknown, FOLD, RECIPE)["score"].to_numpy()).nonzero()[0].tolist() == [7]


def test_bars_outside_the_regime_weigh_what_the_recipe_says():
    rows = trainable(FRAME, FOLD)
    pure, all_alike = (texts(FRAME, rows, recipe(off_regime_weight=weight)) for weight in (0.0, 1.0))
    assert pure[Regime.RANGE] != all_alike[Regime.RANGE]
    assert all_alike[Regime.RANGE] == all_alike[Regime.TREND]
    inside = FRAME.regime[rows] == code(Regime.RANGE)
    noisy = replace(FRAME, gross_bps=FRAME.gross_bps.copy())
    noisy.gross_bps[rows[~inside][::3]] *= -1  # other regimes' labels teach a pure model nothing
    assert texts(noisy, rows, recipe(off_regime_weight=0.0))[Regime.RANGE] == pure[Regime.RANGE]
    assert texts(noisy, rows, recipe(off_regime_weight=0.3))[Regime.RANGE] != texts(FRAME, rows)[Regime.RANGE]


def test_overlapping_labels_weigh_less():
    rows = trainable(FRAME, FOLD)
    half = replace(FRAME, uniqueness=np.where(np.arange(len(FRAME.x)) % 2, FRAME.uniqueness, FRAME.uniqueness / 5))
    assert texts(half, rows) != texts(FRAME, rows)


def test_one_class_or_few_rows_give_no_model():
    rows = trainable(FRAME, FOLD)
    assert texts(replace(FRAME, gross_bps=np.abs(FRAME.gross_bps) + 1), rows) == {}
    assert texts(replace(FRAME, gross_bps=np.zeros(len(FRAME.x))), rows) == {}
    assert texts(FRAME, rows[:39]) == {}
    assert texts(FRAME, rows[:40], regimes=[Regime.RANGE]).keys() == {Regime.RANGE}
    assert texts(FRAME, rows[:0]) == {}
    flat = fit_window(replace(FRAME, gross_bps=np.ones(len(FRAME.x))), FOLD, RECIPE)
    assert flat["score"].is_nan().all()
    assert flat.height == len(FOLD.test)


def test_a_pure_model_of_a_regime_that_never_was_is_no_model():
    """With weight 0 outside, a regime of no rows would fit 0.5 for everything."""
    rows = trainable(FRAME, FOLD)
    quiet = replace(FRAME, regime=np.full(len(FRAME.x), code(Regime.RANGE), np.int8))
    quiet.regime[rows[:39]] = code(Regime.TREND)
    assert texts(quiet, rows, recipe(off_regime_weight=0.0), TRAINED_REGIMES).keys() == {Regime.RANGE}
    assert texts(quiet, rows, recipe(off_regime_weight=0.3), TRAINED_REGIMES).keys() == set(TRAINED_REGIMES)
    one_sided = replace(FRAME, gross_bps=np.where(FRAME.regime == code(Regime.TREND), 10.0, FRAME.gross_bps))
    assert Regime.TREND not in texts(one_sided, rows, recipe(off_regime_weight=0.0))


def test_final_models_use_the_last_train_days_and_resolved_labels_only():
    as_of_ms = int(FRAME.close_ms[-200])
    first = as_of_ms - 20 * DAY_MS
    used = FRAME.usable & (FRAME.close_ms > first) & (FRAME.label_end_ms <= as_of_ms)
    assert used.sum() == 20 * 24 - 4
    clean = final_models(FRAME, RECIPE, "1h", as_of_ms)
    assert clean.keys() == set(TRAINED_REGIMES)
    assert clean == texts(FRAME, np.flatnonzero(used), regimes=TRAINED_REGIMES)
    turned = replace(FRAME, gross_bps=np.where(used, FRAME.gross_bps, -FRAME.gross_bps), x=np.where(used[:, None], FRAME.x, 1e5))
    assert final_models(turned, RECIPE, "1h", as_of_ms) == clean
    for edge in (np.flatnonzero(used)[0], np.flatnonzero(used)[-1]):
        moved = replace(FRAME, gross_bps=FRAME.gross_bps.copy())
        moved.gross_bps[edge] *= -1
        assert final_models(moved, RECIPE, "1h", as_of_ms) != clean
    later = frame_of(scaled(CANDLES, since_ms(as_of_ms)), RECIPE)
    assert final_models(later, RECIPE, "1h", as_of_ms) == clean
    assert final_models(FRAME, RECIPE, "1h", int(FRAME.close_ms[20])) == {}


def test_a_signal_is_learned():
    frame = frame_of(drifting(2, 60), RECIPE)
    fold = plan_folds(frame, RECIPE, "1h", AS_OF, 1)[3]
    scored = fit_window(frame, fold, RECIPE)
    known = np.isfinite(frame.gross_bps[fold.test]) & scored["score"].is_finite().to_numpy()
    hit = (scored["score"].to_numpy()[known] > 0.5) == (frame.gross_bps[fold.test][known] > 0)
    assert hit.mean() > 0.75


def test_a_recipe_without_clock_features_is_not_masked_further():
    by = recipe(features=features(**{"return": [1]}))
    frame = frame_of(CANDLES, by)
    assert np.flatnonzero(frame.known)[0] == 1
    built = all_features(CANDLES, day_hashes(CANDLES), by, "1h")
    assert training_frame(CANDLES, built, FRAME.regime, by, "1h").x[1, 0] == built["return_1"][1]
