"""The pooled baseline: one model over all coins of a timeframe, regime as a feature, refitted quarterly. A yardstick, never traded."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from engine_assets.logic.fit import TrainingFrame, boost
from engine_assets.logic.labels import LABEL_VERSION
from engine_assets.logic.plan import DAY_MS, library_versions
from hamilton_client.core.contracts import FloatArray, IntArray, content_hash
from hamilton_client.core.recipe import Recipe

POOLED_VERSION = 1


def quarter_starts(first_ms: int, last_ms: int) -> list[int]:
    """Instants (epoch ms) at which a calendar quarter begins within (`first_ms`, `last_ms`]."""
    years = range(_utc(first_ms).year, _utc(last_ms).year + 1)
    starts = [int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000) for year in years for month in (1, 4, 7, 10)]
    return [start for start in starts if first_ms < start <= last_ms]


def pooled_key(
    days: Mapping[str, Mapping[str, str]], quarter_ms: int, recipe: Recipe, timeframe: str, max_rows: int, device: str = "cpu"
) -> str:
    """Address of one quarter's model: every candle day of every coin before the quarter, recipe, cap and versions."""
    before = f"{_utc(quarter_ms):%Y%m%d}"
    used = {symbol: {day: digest for day, digest in hashes.items() if day < before} for symbol, hashes in days.items()}
    basis = [POOLED_VERSION, LABEL_VERSION, used, quarter_ms, recipe.hash, timeframe, max_rows, device, library_versions()]
    return content_hash(basis)


def pooled_rows(
    frame: TrainingFrame, quarter_ms: int, recipe: Recipe, timeframe: str, share: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """At most `share` evenly spaced training rows of one coin known before the quarter: x with regime appended, target, weight."""
    cutoff = quarter_ms - recipe.folds[timeframe].purge_days * DAY_MS
    rows: IntArray = np.flatnonzero(frame.usable & (frame.label_end_ms <= cutoff))
    if len(rows) > share:
        rows = rows[np.linspace(0, len(rows) - 1, share).astype(np.int64)]
    return with_regime(frame.x[rows], frame.regime[rows]), (frame.gross_bps[rows] > 0).astype(np.float64), frame.uniqueness[rows]


def with_regime(x: FloatArray, regime: NDArray[np.int8]) -> FloatArray:
    """Append the regime code as the last, categorical, column."""
    return np.column_stack([x, regime.astype(np.float64)])


def fit_pooled(x: FloatArray, target: FloatArray, weight: FloatArray, recipe: Recipe, device: str = "cpu") -> str | None:
    """Fit one pooled model and return its text; None where there are too few rows or one class only."""
    if len(target) < 10 * recipe.model.min_data_in_leaf or target.min() == target.max():
        return None
    parameters = recipe.model.lightgbm(device)
    data = lgb.Dataset(x, label=target, weight=weight, params=parameters, categorical_feature=[x.shape[1] - 1])
    return str(boost(data, parameters, recipe.model).model_to_string())


class PooledScorer:
    """Scores a coin's rows by the pooled model of the quarter they fall in; NaN before the first."""

    def __init__(self, models: Mapping[int, str]) -> None:
        self.models = dict(sorted(models.items()))

    def __call__(self, frame: TrainingFrame) -> FloatArray:
        """Return P(price rises) for every row (n,)."""
        score = np.full(len(frame.close_ms), np.nan)
        starts = [*self.models, np.iinfo(np.int64).max]
        for start, end in pairwise(starts):
            rows = np.flatnonzero((frame.close_ms > start) & (frame.close_ms <= end))
            if len(rows):
                booster = lgb.Booster(model_str=self.models[start])
                score[rows] = booster.predict(with_regime(frame.x[rows], frame.regime[rows]), num_threads=1)
        return score


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, tz=UTC)
