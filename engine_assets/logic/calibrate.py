"""Turn raw scores into an expected edge and a probability: monotone knot tables, fitted on earlier out-of-fold scores only."""

import numpy as np
import polars as pl
from scipy.optimize import isotonic_regression

from hamilton_client.core.contracts import Calibration, CalibrationTable, FloatArray, IntArray
from hamilton_client.core.recipe import CalibrationParameters


def fit_calibration(score: FloatArray, gross_bps: FloatArray, weight: FloatArray, parameters: CalibrationParameters) -> Calibration | None:
    """Fit both tables on resolved out-of-fold rows (n,); `weight` is label uniqueness.

    Scores are cut into quantile bins (equal scores share one), bin means are shrunk towards no edge (0 bps, P = 1/2) by
    `shrinkage_rows` pseudo-observations, then made monotone by pool-adjacent-violators. None below `min_effective_rows`
    and where the scores fill one bin only: they rank nothing.
    """
    known = np.isfinite(score) & np.isfinite(gross_bps) & (weight > 0)
    score, gross_bps, weight = score[known], gross_bps[known], weight[known]
    bins = _quantile_bins(score, parameters.knots)
    if weight.sum() < parameters.min_effective_rows or bins.max() == 0:
        return None
    total = np.bincount(bins, weight).astype(np.float64)
    shrink = total / (total + parameters.shrinkage_rows / len(total))

    def mean(values: FloatArray) -> FloatArray:
        return np.bincount(bins, weight * values) / total

    knots, rises = mean(score), mean((gross_bps > 0).astype(np.float64))
    return Calibration(
        edge_bps=_monotone(knots, shrink * mean(gross_bps), total),
        probability=_monotone(knots, 0.5 + shrink * (rises - 0.5), total),
        rows=len(score),
    )


def _quantile_bins(score: FloatArray, count: int) -> IntArray:
    """Number of each score's bin (n,): at most `count` bins of about equal size in rising order, none empty, ties together."""
    _, value, rows = np.unique(score, return_inverse=True, return_counts=True)
    below = np.cumsum(rows) - rows
    bins: IntArray = np.unique(below * count // len(score), return_inverse=True)[1][value]
    return bins


def _monotone(knots: FloatArray, values: FloatArray, weight: FloatArray) -> CalibrationTable:
    fitted = isotonic_regression(values, weights=weight).x
    return CalibrationTable(scores=tuple(map(float, knots)), values=tuple(map(float, fitted)))


def prequential(oof: pl.DataFrame, parameters: CalibrationParameters) -> tuple[FloatArray, FloatArray]:
    """Calibrate every out-of-fold row with tables fitted on the rows of its regime whose labels were known when its window began.

    `oof` has window, window_start_ms, regime, score, gross_bps, label_end_ms, uniqueness, ordered by window. Returns
    (edge_bps, probability), each (n,), NaN where no table could be fitted yet: those rows do not trade.
    """
    edge = np.full(len(oof), np.nan)
    probability = np.full(len(oof), np.nan)
    window = oof["window"].to_numpy()
    regime = oof["regime"].to_numpy()
    columns = {name: oof[name].to_numpy() for name in ("score", "gross_bps", "uniqueness", "label_end_ms", "window_start_ms")}
    for code in np.unique(regime):
        inside = np.flatnonzero(regime == code)
        for number in np.unique(window[inside]):
            rows: IntArray = inside[window[inside] == number]
            past = inside[columns["label_end_ms"][inside] <= columns["window_start_ms"][rows[0]]]
            table = fit_calibration(columns["score"][past], columns["gross_bps"][past], columns["uniqueness"][past], parameters)
            if table is not None:
                edge[rows] = table.edge_bps(columns["score"][rows])
                probability[rows] = table.probability(columns["score"][rows])
    return edge, probability
