"""Finite windows over one candle series, in numpy: shared between features, exact, and the same bits wherever the series begins.

A window of w bars is put together from windows of 1, 2, 4, … bars, each made once per series (`x[i] ⊕ x[i - half]`). Every value is
a fixed tree over its own w bars and nothing else, so no rounding error outlives its bar, a flat window has a variance of exactly 0,
and a tail yields the bits that the whole series yields. It is also several times faster than rolling sums that carry state.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import polars as pl

from hamilton_client.core.contracts import FloatArray, IntArray

np.empty(3 << 20)  # freed at once: glibc then keeps freed pages for the next window (mmap threshold), which halves the CPU time

Moments = tuple[FloatArray, FloatArray]


def back(values: FloatArray, bars: int) -> FloatArray:
    """`values` of `bars` earlier, (n,); NaN at the start."""
    shifted = np.empty_like(values)
    shifted[:bars] = np.nan
    shifted[bars:] = values[: max(len(values) - bars, 0)]
    return shifted


def over(numerator: FloatArray, denominator: FloatArray, floor: float | FloatArray = 0.0) -> FloatArray:
    """`numerator / denominator`, (n,); NaN where the denominator is not above `floor`."""
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > floor)


class Bars:
    """One candle series of n bars as named float arrays (n,), with windows over them.

    Columns are cleaned on first use: a price that is not finite and positive, or a volume that is not finite and at least 0, is NaN,
    and so is every window that holds one, and every window that is not full.
    """

    def __init__(self, candles: pl.DataFrame) -> None:
        self._candles = candles
        self._memo: dict[tuple[str, str, int], FloatArray] = {}
        self._moments: dict[tuple[str, int], Moments] = {}

    def __len__(self) -> int:
        return self._candles.height

    def __getitem__(self, name: str) -> FloatArray:
        key = ("series", name, 0)
        if key not in self._memo:
            self._memo[key] = DERIVED[name](self) if name in DERIVED else self._column(name)
        return self._memo[key]

    def _column(self, name: str) -> FloatArray:
        values = self._candles.get_column(name).cast(pl.Float64).to_numpy()
        sound = np.isfinite(values) & ((values >= 0) if name == "volume" else (values > 0))
        return np.where(sound, values, np.nan)

    @cached_property
    def ts_us(self) -> IntArray:
        """Open times in microseconds since the epoch, (n,) int64."""
        return self._candles.get_column("ts").dt.epoch("us").to_numpy()

    def define(self, name: str, make: Callable[[], FloatArray]) -> str:
        """Add a series under a name of its own, made once; returns the name."""
        if ("series", name, 0) not in self._memo:
            self._memo["series", name, 0] = make()
        return name

    def back(self, name: str, bars: int) -> FloatArray:
        """The series `bars` earlier."""
        return back(self[name], bars)

    def total(self, name: str, bars: int) -> FloatArray:
        """Sum over the last `bars` bars."""
        key = ("total", name, bars)
        if key not in self._memo:
            self._memo[key] = self._join(key, bars, np.add)
        return self._memo[key]

    def mean(self, name: str, bars: int) -> FloatArray:
        """Mean over the last `bars` bars."""
        return self.total(name, bars) / bars

    def highest(self, name: str, bars: int) -> FloatArray:
        """Largest of the last `bars` bars."""
        return self._join(("highest", name, bars), bars, np.maximum)

    def lowest(self, name: str, bars: int) -> FloatArray:
        """Smallest of the last `bars` bars."""
        return self._join(("lowest", name, bars), bars, np.minimum)

    def return_std(self, bars: int) -> FloatArray:
        """Standard deviation (n - 1) of the last `bars` >= 2 log returns, from sums: their mean is too small to cancel digits."""
        key = ("deviation", "log_return", bars)
        if key not in self._memo:
            total = self.total("log_return", bars)
            squares = self.total("squared_return", bars) - total * total / bars
            self._memo[key] = np.sqrt(np.maximum(squares, 0.0) / (bars - 1))
        return self._memo[key]

    def _level(self, key: tuple[str, str, int], join: np.ufunc) -> FloatArray:
        kind, name, power = key
        if power == 0:
            return self[name]
        memo = (f"{kind} of 2^", name, power)
        if memo not in self._memo:
            below, half = self._level((kind, name, power - 1), join), 1 << (power - 1)
            level = np.empty(len(self))
            level[:half] = np.nan
            join(below[half:], below[:-half], out=level[half:])
            self._memo[memo] = level
        return self._memo[memo]

    def _join(self, key: tuple[str, str, int], bars: int, join: np.ufunc) -> FloatArray:
        kind, name, _ = key
        window, width = self[name], 0
        for power in range(bars.bit_length()):
            if bars >> power & 1:
                level = self._level((kind, name, power), join)
                window = join(level, back(window, 1 << power)) if width else level
                width += 1 << power
        return window

    def moments(self, name: str, bars: int) -> Moments:
        """Mean and standard deviation (n - 1) over the last `bars` >= 2 bars. Merged pairwise: Chan, Golub, LeVeque 1983."""
        key = (f"{name} joined", bars)
        if key not in self._moments:
            window, width = self._moment_level(name, 0), 0
            for power in range(bars.bit_length()):
                if bars >> power & 1:
                    level = self._moment_level(name, power)
                    window = _merge(level, 1 << power, window, width) if width else level
                    width += 1 << power
            self._moments[key] = window[0], np.sqrt(window[1] / (bars - 1))
        return self._moments[key]

    def _moment_level(self, name: str, power: int) -> Moments:
        key = (name, power)
        if key not in self._moments:
            if power == 0:
                self._moments[key] = self[name], np.where(np.isnan(self[name]), np.nan, 0.0)
            else:
                below, half = self._moment_level(name, power - 1), 1 << (power - 1)
                self._moments[key] = _merge(below, half, below, half)
        return self._moments[key]


def _merge(new: Moments, new_bars: int, old: Moments, old_bars: int) -> Moments:
    """Mean and squared deviations of the last `new_bars` bars and the `old_bars` before them."""
    bars = new_bars + old_bars
    before = back(old[0], new_bars)
    gap = new[0] - before
    spread = back(old[1], new_bars)
    spread += new[1]
    spread += gap * gap * (new_bars * old_bars / bars)
    gap *= new_bars / bars
    before += gap
    return before, spread


def _true_range(bars: Bars) -> FloatArray:
    previous = bars.back("log_close", 1)
    return np.maximum(bars["log_high"], previous) - np.minimum(bars["log_low"], previous)


DERIVED: dict[str, Callable[[Bars], FloatArray]] = {
    "log_open": lambda bars: np.log(bars["open"]),
    "log_high": lambda bars: np.log(bars["high"]),
    "log_low": lambda bars: np.log(bars["low"]),
    "log_close": lambda bars: np.log(bars["close"]),
    "log_return": lambda bars: bars["log_close"] - bars.back("log_close", 1),
    "abs_return": lambda bars: np.abs(bars["log_return"]),
    "up_return": lambda bars: np.maximum(bars["log_return"], 0.0),
    "squared_return": lambda bars: np.square(bars["log_return"]),
    "cubed_return": lambda bars: bars["squared_return"] * bars["log_return"],
    "lagged_product": lambda bars: bars["log_return"] * bars.back("log_return", 1),
    "abs_change": lambda bars: np.abs(bars["close"] - bars.back("close", 1)),
    "range": lambda bars: bars["log_high"] - bars["log_low"],
    "squared_range": lambda bars: np.square(bars["range"]),
    "true_range": _true_range,
    "usd": lambda bars: bars["close"] * bars["volume"],  # traded value; quote_volume differs between sources
    "root_usd": lambda bars: np.sqrt(bars["usd"]),
    "signed_usd": lambda bars: bars["usd"] * np.sign(bars["log_return"]),
    "usd_log_close": lambda bars: bars["usd"] * bars["log_close"],
    "traded": lambda bars: np.where(np.isnan(bars["usd"]), np.nan, bars["usd"] > 0),
    "impact": lambda bars: np.where(bars["usd"] == 0, 0 * bars["abs_return"], over(bars["abs_return"], bars["usd"])),
}
