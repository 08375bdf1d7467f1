"""Fit LightGBM for one coin × timeframe: rows are read and binned once, the four regimes share the bins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine_assets.logic.labels import gross_labels, sample_weights, uniqueness
from engine_assets.logic.splits import DAY_MS, Fold
from hamilton_client.core.contracts import TRAINED_REGIMES, FloatArray, IntArray, Regime, SignArray
from hamilton_client.core.layout import timeframe_ms
from hamilton_client.core.recipe import ModelParameters, Recipe
from hamilton_client.core.regimes import REGIME_CODES

FIT_VERSION = 1
REGIME_CODE = {regime: REGIME_CODES.index(regime) for regime in Regime}


@dataclass(frozen=True, slots=True)
class TrainingFrame:
    """Rows of one coin × timeframe, one per closed bar.

    `open_ms` and `close_ms` are the bar's instants, `x` is (n × F), `gross_bps` the label before costs (NaN: unresolved or across a gap),
    `label_end_ms` the instant the label is known, `uniqueness` in (0, 1] (0 without a label), `usable` rows with features and label.
    """

    open_ms: IntArray
    close_ms: IntArray
    x: FloatArray
    regime: SignArray
    gross_bps: FloatArray
    label_end_ms: IntArray
    uniqueness: FloatArray

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Rows that can train: resolved label and known features."""
        return np.asarray(np.isfinite(self.gross_bps) & self.known)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Rows with at least one known feature: those after the warm-up."""
        return np.asarray(np.isfinite(self.x).any(axis=1))


def training_frame(candles: pl.DataFrame, features: pl.DataFrame, regimes: SignArray, recipe: Recipe, timeframe: str) -> TrainingFrame:
    """Join features and regime codes (n,) with gross labels; all three have one row per candle. Rows before the warm-up know nothing."""
    labels = gross_labels(candles, recipe.horizon_bars[timeframe], timeframe)
    open_ms = candles["ts"].dt.epoch("ms").to_numpy()
    close_ms = open_ms + timeframe_ms(timeframe)
    gross = labels["gross_bps"].fill_null(np.nan).to_numpy()
    known = np.isfinite(gross)
    unresolved_end = close_ms + recipe.horizon_bars[timeframe] * timeframe_ms(timeframe)
    label_end = np.where(known, labels["label_end_ms"].fill_null(0).to_numpy(), unresolved_end)
    weight = np.zeros(len(gross))
    weight[known] = uniqueness(close_ms[known], label_end[known])
    x = np.array(features.select(recipe.features.names).cast(pl.Float64).fill_null(np.nan).to_numpy(), order="C")
    x[: recipe.features.warmup_bars - 1] = np.nan  # the hour is known at once; it must not start a series before its windows are full
    return TrainingFrame(open_ms, close_ms, x, regimes, gross, label_end, weight)


def fit_window(frame: TrainingFrame, fold: Fold, recipe: Recipe, device: str = "cpu") -> pl.DataFrame:
    """Train on one fold and score its test bars, each by the model of its own regime.

    Returns columns close_ms, regime (code), score: raw P(price rises); NaN where the fold could not train.
    """
    usable = frame.usable
    train = fold.train[usable[fold.train]]
    test = fold.test
    present = [regime for regime in TRAINED_REGIMES if (frame.regime[test] == REGIME_CODE[regime]).any()]
    models = fit_regimes(frame, train, present, recipe, device)
    score = np.full(len(test), np.nan)
    for regime, model in models.items():
        inside = frame.regime[test] == REGIME_CODE[regime]
        score[inside] = model.predict(frame.x[test[inside]], num_threads=1)
    return pl.DataFrame({"close_ms": frame.close_ms[test], "regime": frame.regime[test], "score": score})


def fit_regimes(
    frame: TrainingFrame, rows: IntArray, regimes: list[Regime], recipe: Recipe, device: str = "cpu"
) -> dict[Regime, lgb.Booster]:
    """Fit one weighted binary model per regime on `rows`; bins are cut on those rows once.

    A regime whose weighted rows are fewer than two leaves, or of one class, gets no model.
    """
    target = (frame.gross_bps[rows] > 0).astype(np.float64)
    weights = {regime: sample_weights(frame.uniqueness[rows], frame.regime[rows], regime, recipe.off_regime_weight) for regime in regimes}
    taught = {regime: weight for regime, weight in weights.items() if _teaches(target[weight > 0], recipe.model)}
    if not taught:
        return {}
    parameters = recipe.model.lightgbm(device)
    data = lgb.Dataset(frame.x[rows], label=target, params=parameters, free_raw_data=True).construct()
    models = {}
    for regime, weight in taught.items():
        data.set_weight(weight)
        models[regime] = boost(data, parameters, recipe.model)
    return models


def _teaches(target: FloatArray, model: ModelParameters) -> bool:
    return len(target) >= 2 * model.min_data_in_leaf and bool(target.min() < target.max())


def boost(data: lgb.Dataset, parameters: Mapping[str, object], model: ModelParameters) -> lgb.Booster:
    """Grow `model.rounds` trees on `data`, fewer where no split is left."""
    booster = lgb.Booster(params=dict(parameters), train_set=data)
    for _ in range(model.rounds):
        if booster.update():
            break
    return booster


def final_models(
    frame: TrainingFrame,
    recipe: Recipe,
    timeframe: str,
    as_of_ms: int,
    device: str = "cpu",
    *,
    regimes: Sequence[Regime] = TRAINED_REGIMES,
) -> dict[Regime, str]:
    """Fit the models that will trade: the last `train_days` before `as_of_ms`, labels resolved by then. Returns LightGBM text."""
    since = as_of_ms - recipe.folds[timeframe].train_days * DAY_MS
    rows = np.flatnonzero(frame.usable & (frame.close_ms > since) & (frame.label_end_ms <= as_of_ms))
    models = fit_regimes(frame, rows, list(regimes), recipe, device)
    return {regime: model.model_to_string() for regime, model in models.items()}
