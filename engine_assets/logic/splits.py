"""Purged walk-forward folds: date windows on an anchored grid, per-row label-end purge, complete windows only."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hamilton_client.core.contracts import HuracanError, IntArray

SPLIT_VERSION = 1
DAY_MS = 86_400_000


class TooFewWindows(HuracanError):  # noqa: N818  # named for what it says, like StopIteration
    """The data holds fewer usable walk-forward windows than asked for; windows are never shrunk to make up for it."""

    def __init__(self, needed: int, available: int, span_days: float) -> None:
        super().__init__(
            f"walk-forward needs {needed} windows, {span_days:.1f} days of data hold {available}; "
            f"ingest more history, or lower train_days, test_days or min_windows of this timeframe"
        )
        self.needed, self.available = needed, available


class Window(NamedTuple):
    """One train and one test window, half-open, epoch milliseconds; `k` is the window's number on the anchored grid."""

    k: int
    train_start_ms: int
    train_end_ms: int
    test_start_ms: int
    test_end_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """A `Window` with the sorted positions of its rows: `train` and `test`, each (n,)."""

    k: int
    train_start_ms: int
    train_end_ms: int
    test_start_ms: int
    test_end_ms: int
    train: IntArray
    test: IntArray

    @property
    def skipped(self) -> str | None:
        """Why this fold cannot be used (an outage covers its train or test window), or None."""
        if not self.train.size:
            return "no train rows"
        return None if self.test.size else "no test rows"


def windows(
    start_ms: int,
    until_ms: int,
    *,
    train_days: int,
    test_days: int,
    purge_days: int,
    expanding: bool = False,
    anchor: int | None = None,
) -> list[Window]:
    """List every complete window of data that covers [`start_ms`, `until_ms`), oldest first.

    Test windows start at `anchor` + j·test_days for every integer j whose train and purge days begin at or after `start_ms`
    and whose test days end at or before `until_ms`. `anchor` is in epoch ms; 0 pins the grid for ever, so that a new day never
    moves an old window; None starts it at the first UTC midnight of the data. With `expanding` every train window begins at
    `start_ms`. Raises HuracanError for lengths that make no window.
    """
    if train_days < 1 or test_days < 1 or purge_days < 0:
        raise HuracanError(f"train_days {train_days} and test_days {test_days} must be at least 1, purge_days {purge_days} at least 0")
    lead, step, purge = (train_days + purge_days) * DAY_MS, test_days * DAY_MS, purge_days * DAY_MS
    origin = -(-start_ms // DAY_MS) * DAY_MS + lead if anchor is None else anchor
    first = -((origin - lead - start_ms) // step)
    last = (until_ms - origin) // step
    found = []
    for k in range(first, last):
        test_start = origin + k * step
        train_start = start_ms if expanding else test_start - lead
        found.append(Window(k, train_start, test_start - purge, test_start, test_start + step))
    return found


def walk_forward(
    ts: ArrayLike,
    label_end_ts: ArrayLike,
    *,
    train_days: int,
    test_days: int,
    purge_days: int,
    expanding: bool = False,
    anchor: int | None = None,
    min_windows: int = 5,
    until_ms: int | None = None,
) -> list[Fold]:
    """Assign rows to the folds of `windows`, oldest first.

    `ts` and `label_end_ts` are (n,) epoch ms (or datetime64, any unit), in any order, duplicates (panels) allowed; a row's label is
    known from `label_end_ts` on. A row trains fold f iff it lies in f's train window and `label_end_ts <= test_start` (AFML 7.4.1
    for train before test). `until_ms` is the last complete instant of the data, by default the last row plus the smallest step.
    A fold without train or test rows is returned with its `skipped` reason and does not count. Raises TooFewWindows below
    `min_windows` usable folds, HuracanError for malformed input.
    """
    opens, ends = _to_ms(ts, "ts"), _to_ms(label_end_ts, "label_end_ts")
    if opens.shape != ends.shape:
        raise HuracanError(f"ts has {opens.size} rows, label_end_ts {ends.size}: they must be the same rows")
    if (ends < opens).any():
        raise HuracanError("label_end_ts lies before ts, or is missing, in some rows: drop unresolved labels before splitting")
    if not opens.size:
        raise TooFewWindows(min_windows, 0, 0.0)
    start = int(opens.min())
    until = _last_complete_ms(opens) if until_ms is None else until_ms
    grid = windows(start, until, train_days=train_days, test_days=test_days, purge_days=purge_days, expanding=expanding, anchor=anchor)
    folds = [Fold(*window, *_rows(window, opens, ends)) for window in grid]
    usable = sum(fold.skipped is None for fold in folds)
    if usable < min_windows:
        raise TooFewWindows(min_windows, usable, (until - start) / DAY_MS)
    return folds


def _rows(window: Window, opens: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    train = (opens >= window.train_start_ms) & (opens < window.train_end_ms) & (ends <= window.test_start_ms)
    test = (opens >= window.test_start_ms) & (opens < window.test_end_ms)
    return np.flatnonzero(train), np.flatnonzero(test)


def _last_complete_ms(opens: IntArray) -> int:
    stamps = np.unique(opens)
    return int(stamps[-1] + (np.diff(stamps).min() if stamps.size > 1 else 0))


def _to_ms(values: ArrayLike, name: str) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuM":
        raise HuracanError(f"{name} must be a one-dimensional array of epoch milliseconds or datetime64, not {array.dtype} {array.shape}")
    if array.dtype.kind == "M":
        array = array.astype("datetime64[ms]")
    return array.astype(np.int64)
