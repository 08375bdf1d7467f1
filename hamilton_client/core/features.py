"""Features: a recipe is data; each kind is one row of a table and one causal expression over finite windows."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from hamilton_client.core.contracts import FloatArray, Record
from hamilton_client.core.windows import Bars, back, over

FLOOR = 1e-9  # log-price moves below it are rounding noise, not movement
DAY_US = 86_400_000_000
CHUNK_ROWS = 8192


def efficiency_ratio(b: Bars, bars: int) -> FloatArray:
    """Net move of the close ÷ length of its path over `bars` steps, in [0, 1]; NaN where it stood still. Kaufman 1995."""
    net = np.abs(b["close"] - b.back("close", bars))
    return np.minimum(over(net, b.total("abs_change", bars), FLOOR * b["close"]), 1.0)


def change(b: Bars, bars: int) -> FloatArray:
    """Log return over `bars`."""
    return b["log_close"] - b.back("log_close", bars)


def volatility(b: Bars, bars: int) -> FloatArray:
    """Standard deviation of one-bar log returns."""
    return b.return_std(bars)


def volatility_ratio(b: Bars, short: int, long: int) -> FloatArray:
    """Log ratio of short to long volatility."""
    return np.log(over(np.maximum(volatility(b, short), FLOOR), volatility(b, long), FLOOR))


def zscore(b: Bars, bars: int) -> FloatArray:
    """Distance of the log close from its mean in standard deviations."""
    mean, std = b.moments("log_close", bars)
    return over(b["log_close"] - mean, std, FLOOR)


def bollinger_position(b: Bars, bars: int) -> FloatArray:
    """%b: place between the bands at two standard deviations, 0 to 1 inside. Bollinger 2001."""
    return 0.5 + zscore(b, bars) / 4


def trend_score(b: Bars, bars: int) -> FloatArray:
    """Return over `bars` in standard deviations of a random walk. Moskowitz, Ooi, Pedersen 2012."""
    return over(change(b, bars), volatility(b, bars) * math.sqrt(bars), FLOOR)


def rsi(b: Bars, bars: int) -> FloatArray:
    """Relative strength index of log returns with simple sums, 0 to 100. Wilder 1978 in Cutler's form."""
    return 100 * np.minimum(over(b.total("up_return", bars), b.total("abs_return", bars), FLOOR), 1.0)


def sma_gap(b: Bars, short: int, long: int) -> FloatArray:
    """Short minus long mean of the log close."""
    return b.mean("log_close", short) - b.mean("log_close", long)


def donchian_position(b: Bars, bars: int) -> FloatArray:
    """Place of the close between the lowest low and the highest high, 0 to 1. Donchian's channel, Lane's %K."""
    low = b.lowest("log_low", bars)
    return over(b["log_close"] - low, b.highest("log_high", bars) - low, FLOOR)


def channel_break(b: Bars, bars: int) -> FloatArray:
    """Log distance of the close beyond the channel of the `bars` before it, signed; 0 inside. Donchian's four-week rule."""
    above = b["log_close"] - back(b.highest("log_high", bars), 1)
    below = b["log_close"] - back(b.lowest("log_low", bars), 1)
    return np.maximum(above, 0.0) + np.minimum(below, 0.0)


def drawdown(b: Bars, bars: int) -> FloatArray:
    """Log distance of the close below the highest high, at most 0."""
    return b["log_close"] - b.highest("log_high", bars)


def atr(b: Bars, bars: int) -> FloatArray:
    """Mean true range in log units. Wilder 1978 with a simple mean."""
    return b.mean("true_range", bars)


def atr_ratio(b: Bars, short: int, long: int) -> FloatArray:
    """Short ÷ long average true range."""
    return over(atr(b, short), atr(b, long), FLOOR)


def parkinson(b: Bars, bars: int) -> FloatArray:
    """High-low volatility per bar. Parkinson 1980."""
    return np.sqrt(b.mean("squared_range", bars) / (4 * math.log(2)))


def skew(b: Bars, bars: int) -> FloatArray:
    """Skewness of log returns: third central moment ÷ cubed standard deviation (n - 1)."""
    mean, std = b.mean("log_return", bars), volatility(b, bars)
    third = b.mean("cubed_return", bars) - 3 * mean * b.mean("squared_return", bars) + 2 * mean * mean * mean
    return over(third, np.where(std > FLOOR, std * std * std, np.nan))


def autocorrelation(b: Bars, bars: int) -> FloatArray:
    """First autocorrelation of log returns about zero, in [-1, 1]."""
    return np.clip(over(b.total("lagged_product", bars), b.total("squared_return", bars), FLOOR**2), -1.0, 1.0)


def variance_ratio(b: Bars, step: int, bars: int) -> FloatArray:
    """Mean square of overlapping `step`-bar returns ÷ `step` times that of one-bar returns. Lo, MacKinlay 1988, about zero."""
    squares = b.define(f"squared_change_{step}", lambda: np.square(change(b, step)))
    return over(b.mean(squares, bars - step + 1), step * b.mean("squared_return", bars), FLOOR**2)


def volume_zscore(b: Bars, bars: int) -> FloatArray:
    """Z-score of the square root of traded value: free of scale, defined at zero, tame at spikes."""
    mean, std = b.moments("root_usd", bars)
    return over(b["root_usd"] - mean, std, FLOOR * mean)


def volume_ratio(b: Bars, short: int, long: int) -> FloatArray:
    """Short ÷ long mean traded value."""
    return over(b.mean("usd", short), b.mean("usd", long))


def volume_imbalance(b: Bars, bars: int) -> FloatArray:
    """Traded value of rising minus falling bars ÷ all, in [-1, 1]. Granville's on-balance volume, windowed."""
    return over(b.total("signed_usd", bars), b.total("usd", bars))


def vwap_gap(b: Bars, bars: int) -> FloatArray:
    """Log close minus its mean weighted by traded value."""
    return b["log_close"] - over(b.total("usd_log_close", bars), b.total("usd", bars))


def amihud(b: Bars, bars: int) -> FloatArray:
    """Mean of |return| ÷ traded value over the bars that traded, per million. Amihud 2002."""
    return 1e6 * over(b.total("impact", bars), b.total("traded", bars))


def amihud_ratio(b: Bars, short: int, long: int) -> FloatArray:
    """Log ratio of short to long Amihud illiquidity."""
    return np.log(over(amihud(b, short), amihud(b, long)))


def _of_range(part: Callable[[Bars], FloatArray]) -> Callable[[Bars], FloatArray]:
    return lambda b: over(part(b), b["range"], FLOOR)


def _wave(function: np.ufunc, step_us: int, steps: int, offset: int = 0) -> Callable[[Bars], FloatArray]:
    wave = function(np.arange(steps) * (2 * math.pi / steps))
    return lambda b: wave[(b.ts_us // step_us + offset) % steps]


@dataclass(frozen=True)
class Kind:
    """One row of the table: the expression, its parameters, how many bars it needs beyond its longest window, and its version.

    Raise `version` whenever the numbers an expression yields change: it enters every hash taken over a recipe.
    """

    build: Callable[..., FloatArray]
    parameters: tuple[str, ...] = ("bars",)
    lag: int = 0
    least: int = 2
    version: int = 1

    def warmup_bars(self, values: tuple[int, ...]) -> int:
        """Bars the newest value depends on, its own included."""
        return max(values, default=1) + self.lag

    def fault(self, values: tuple[int, ...]) -> str | None:
        """What is wrong with a set of parameters, or None."""
        if len(values) != len(self.parameters):
            return f"takes {len(self.parameters)} parameters ({', '.join(self.parameters) or 'none: write []'}), not {list(values)}"
        if any(value < self.least for value in values) or list(values) != sorted(set(values)):
            return f"wants windows of at least {self.least} bars, in rising order, not {list(values)}"
        return None


SHORT_LONG = ("short", "long")
HOUR_US = DAY_US // 24
KINDS: dict[str, Kind] = {
    "return": Kind(change, lag=1, least=1),
    "volatility": Kind(volatility, lag=1),
    "volatility_ratio": Kind(volatility_ratio, SHORT_LONG, lag=1),
    "zscore": Kind(zscore),
    "bollinger_position": Kind(bollinger_position),
    "trend_score": Kind(trend_score, lag=1),
    "efficiency_ratio": Kind(efficiency_ratio, lag=1),
    "rsi": Kind(rsi, lag=1),
    "sma_gap": Kind(sma_gap, SHORT_LONG),
    "donchian_position": Kind(donchian_position),
    "channel_break": Kind(channel_break, lag=1),
    "drawdown": Kind(drawdown),
    "atr": Kind(atr, lag=1),
    "atr_ratio": Kind(atr_ratio, SHORT_LONG, lag=1),
    "parkinson": Kind(parkinson),
    "skew": Kind(skew, lag=1, least=3),
    "autocorrelation": Kind(autocorrelation, lag=2),
    "variance_ratio": Kind(variance_ratio, ("step", "bars"), lag=1),
    "volume_zscore": Kind(volume_zscore),
    "volume_ratio": Kind(volume_ratio, SHORT_LONG, least=1),
    "volume_imbalance": Kind(volume_imbalance, lag=1),
    "vwap_gap": Kind(vwap_gap),
    "amihud": Kind(amihud, lag=1),
    "amihud_ratio": Kind(amihud_ratio, SHORT_LONG, lag=1),
    "body": Kind(_of_range(lambda b: b["log_close"] - b["log_open"]), ()),
    "upper_wick": Kind(_of_range(lambda b: b["log_high"] - np.maximum(b["log_open"], b["log_close"])), ()),
    "lower_wick": Kind(_of_range(lambda b: np.minimum(b["log_open"], b["log_close"]) - b["log_low"]), ()),
    "close_location": Kind(_of_range(lambda b: b["log_close"] - b["log_low"]), ()),
    "hour_sin": Kind(_wave(np.sin, HOUR_US, 24), ()),
    "hour_cos": Kind(_wave(np.cos, HOUR_US, 24), ()),
    "weekday_sin": Kind(_wave(np.sin, DAY_US, 7, offset=3), ()),  # the epoch began on a Thursday
    "weekday_cos": Kind(_wave(np.cos, DAY_US, 7, offset=3), ()),
}
FUNCTION_VERSIONS: dict[str, int] = {name: kind.version for name, kind in KINDS.items()}


def _parameters(kind: str, given: Any) -> list[tuple[int, ...]]:
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown feature kind {kind!r}; did you mean {near!r}? Known: {', '.join(KINDS)}")
    if not isinstance(given, list | tuple):
        raise ValueError(f"feature {kind}: parameters are a list, not {given!r}")
    sets = [tuple(item) if isinstance(item, list | tuple) else (item,) for item in given]
    if not sets and not KINDS[kind].parameters:
        sets = [()]
    for values in sets:
        if any(type(value) is not int for value in values):
            raise ValueError(f"feature {kind}: windows are whole numbers of bars, not {list(values)}")
        if fault := KINDS[kind].fault(values):
            raise ValueError(f"feature {kind} {fault}")
    if not sets or len(set(sets)) < len(sets):
        raise ValueError(f"feature {kind}: its list of parameters is empty or repeats itself: {given!r}")
    return sets


class FeatureRecipe(Record):
    """Which features, as kind → parameter sets: `{return: [1, 4], sma_gap: [[8, 24]], hour_sin: []}`.

    Columns come in the order of the table `KINDS`, whatever the order of the keys, so that a JSON round trip keeps them.
    `function_versions` is filled in. Raises pydantic.ValidationError on unknown kinds, on unfit parameters, and on a recipe
    written for other versions of the functions than this program has.
    """

    features: dict[str, tuple[tuple[int, ...], ...]]
    function_versions: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("features"), Mapping):
            return value
        given = {kind: _parameters(kind, sets) for kind, sets in value["features"].items()}
        versions = {kind: FUNCTION_VERSIONS[kind] for kind in given}
        written = value.get("function_versions") or versions
        if written != versions:
            changed = sorted(kind for kind in versions | written if versions.get(kind) != written.get(kind))
            raise ValueError(f"this program computes other versions of {', '.join(changed)}: install the version that wrote the recipe")
        return {**value, "features": {kind: given[kind] for kind in KINDS if kind in given}, "function_versions": versions}

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """The recipe whose columns are `names`: the inverse of `names`, each once."""
        features: dict[str, list[tuple[int, ...]]] = {}
        for name in sorted(set(names)):
            kind = name.rstrip("_0123456789")
            features.setdefault(kind, []).append(tuple(int(part) for part in name[len(kind) :].split("_") if part))
        return cls.model_validate({"features": features})

    @property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Column name → kind and parameters, in column order."""
        return {"_".join((kind, *map(str, values))): (kind, values) for kind, sets in self.features.items() for values in sets}

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order: `return_4`, `sma_gap_8_24`, `hour_sin`."""
        return tuple(self.columns)

    @property
    def warmup_bars(self) -> int:
        """Bars the newest row depends on, its own included."""
        return max((KINDS[kind].warmup_bars(values) for kind, values in self.columns.values()), default=1)


def build(candles: pl.DataFrame, recipe: FeatureRecipe) -> pl.DataFrame:
    """Compute a recipe on one candle series of n bars: `ts` and one Float64 column per name, same rows.

    Causal and of finite memory: a value depends on its own bar and the warm-up before it, to the last bit. Null where undefined
    (before the warm-up, flat or untraded windows, faulty candles); never NaN or infinite. Several series may stand one after
    another in `candles`: then the first `warmup_bars - 1` rows of each mix two of them, and the rest are as if built alone.
    """
    columns = recipe.columns
    built = np.empty((len(columns), candles.height))
    before = recipe.warmup_bars - 1
    for start in range(0, candles.height, CHUNK_ROWS):  # exact, because memory is finite; keeps the windows in the cache
        lead = min(start, before)
        bars = Bars(candles.slice(start - lead, lead + CHUNK_ROWS))
        part = built[:, start : start + CHUNK_ROWS]
        with np.errstate(all="ignore"):
            for column, (kind, values) in zip(part, columns.values(), strict=True):
                column[:] = KINDS[kind].build(bars, *values)[lead:]
    built[~np.isfinite(built)] = np.nan
    series = (pl.Series(name, column, nan_to_null=True) for name, column in zip(columns, built, strict=True))
    return pl.DataFrame([candles.get_column("ts"), *series])
