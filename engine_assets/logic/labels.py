"""Gross fixed-horizon labels and the weights that overlapping labels deserve."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hamilton_client.core.contracts import FloatArray, HuracanError, IntArray, Regime
from hamilton_client.core.layout import timeframe_ms
from hamilton_client.core.regimes import REGIME_CODES

LABEL_VERSION = 1


def gross_labels(candles: pl.DataFrame, horizon_bars: int, timeframe: str) -> pl.DataFrame:
    """Label every bar i with the gross log return of entering at the open of bar i+1 and leaving at the close of bar i+h.

    Returns one row per candle: `gross_bps` Float64 and `label_end_ms` Int64, the close of bar i+h, from which on the label is
    known. Both are null where bars i..i+h are not contiguous, where the data ends before bar i+h, and where either price is
    not finite and positive. Costs are no part of a label. Raises HuracanError for `horizon_bars` < 1.
    """
    if horizon_bars < 1:
        raise HuracanError(f"horizon_bars is {horizon_bars}: a label needs at least one bar")
    bar_ms = timeframe_ms(timeframe)
    open_ms = pl.col("ts").dt.epoch("ms")
    adjacent = (open_ms.diff() == bar_ms).cast(pl.Int64)
    contiguous = adjacent.rolling_sum(horizon_bars).shift(-horizon_bars) == horizon_bars
    entry, leave = pl.col("open").shift(-1), pl.col("close").shift(-horizon_bars)
    priced = entry.is_finite() & leave.is_finite() & (entry > 0) & (leave > 0)
    return candles.select(
        pl.when(contiguous & priced).then((leave / entry).log() * 1e4).alias("gross_bps"),
        pl.when(contiguous & priced).then(open_ms.shift(-horizon_bars) + bar_ms).alias("label_end_ms"),
    )


def uniqueness(start_ms: IntArray, end_ms: IntArray) -> FloatArray:
    """Average uniqueness of each label: the time average of 1 ÷ (labels alive) over its own interval, in (0, 1].

    `start_ms`, `end_ms` (n,), any order: label i lives from the close of its bar, `start_ms`, to `end_ms`. On a regular grid
    this is the bar average of AFML 4.3. O(n log n). Raises HuracanError for an empty interval.
    """
    if (end_ms <= start_ms).any():
        raise HuracanError("a label must end after it starts: uniqueness needs resolved labels and their close instants")
    if not start_ms.size:
        return np.empty(0)
    edges, position = np.unique(np.concatenate([start_ms, end_ms]), return_inverse=True)
    born, dead = position[: start_ms.size], position[start_ms.size :]
    alive = np.cumsum(np.bincount(born, minlength=edges.size) - np.bincount(dead, minlength=edges.size))[:-1]
    share = np.divide(np.diff(edges), alive, out=np.zeros(alive.size), where=alive > 0)
    integral = np.concatenate([[0.0], np.cumsum(share)])
    average: FloatArray = (integral[dead] - integral[born]) / (end_ms - start_ms)
    return average


def sample_weights(uniqueness: FloatArray, regime_codes: NDArray[np.int8], regime: Regime, off_regime_weight: float) -> FloatArray:
    """Training weight of each row: its uniqueness, times `off_regime_weight` outside `regime` (0 = pure regime model). All (n,)."""
    inside = regime_codes == REGIME_CODES.index(regime)
    return uniqueness * np.where(inside, 1.0, off_regime_weight)


def effective_sample(uniqueness: FloatArray, mask: NDArray[np.bool_]) -> float:
    """Number of independent labels among the rows of `mask`: the sum of their uniqueness (AFML 4.4)."""
    return float(uniqueness[mask].sum())
