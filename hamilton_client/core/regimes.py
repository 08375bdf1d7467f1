"""Regimes: one of TREND, RANGE, PANIC, ILLIQUID per closed bar, causal, with hysteresis, and of finite memory."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hamilton_client.core.contracts import FloatArray, Frozen, Record, Regime
from hamilton_client.core.features import change, efficiency_ratio, volatility
from hamilton_client.core.layout import timeframe_minutes
from hamilton_client.core.windows import Bars, over

REGIME_CODES: tuple[Regime, ...] = tuple(Regime)
PRECEDENCE = (Regime.ILLIQUID, Regime.PANIC, Regime.TREND)
AT_ONCE = frozenset({Regime.ILLIQUID, Regime.PANIC})
DECIMALS = 9  # measures are rounded, so that none sits on a threshold by its last bit

Window = Annotated[int, Field(ge=2)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class RegimeParams(Frozen):
    """Windows in bars of one timeframe, and the levels at which a regime is entered and left (looser).

    TREND: efficiency ratio over `er_bars`. PANIC: return over `return_bars` in standard deviations of the last `z_bars`, and the
    place of volatility over `vol_bars` among its last `vol_rank_bars` values. ILLIQUID: median traded value of `volume_bars` ÷ that
    of `volume_ref_bars`. A regime lasts `dwell_bars` unless PANIC or ILLIQUID cut it short. The state starts afresh every
    `restart_bars` bars of calendar time since the epoch, which is what makes the memory finite.
    """

    er_bars: Count
    vol_bars: Window
    vol_rank_bars: Window
    return_bars: Count
    z_bars: Window
    volume_bars: Count
    volume_ref_bars: Count
    restart_bars: Count
    dwell_bars: Count = 6
    trend_enter: Share = 0.30
    trend_exit: Share = 0.20
    panic_z_enter: float = -3.0
    panic_z_exit: float = -1.5
    panic_vol_enter: Share = 0.97
    panic_vol_exit: Share = 0.90
    illiquid_enter: Share = 0.25
    illiquid_exit: Share = 0.40

    @model_validator(mode="after")
    def _exits_are_looser(self) -> "RegimeParams":
        pairs = {
            "trend": self.trend_exit <= self.trend_enter,
            "panic_z": self.panic_z_exit >= self.panic_z_enter,
            "panic_vol": self.panic_vol_exit <= self.panic_vol_enter,
            "illiquid": self.illiquid_exit >= self.illiquid_enter,
        }
        if tight := [name for name, loose in pairs.items() if not loose]:
            raise ValueError(f"the exit level must be looser than the entry level: {', '.join(tight)}")
        return self

    @property
    def window_bars(self) -> int:
        """Bars the measures of one bar depend on, its own included."""
        moves = max(self.er_bars, self.return_bars, self.z_bars) + 1
        return max(moves, self.vol_bars + self.vol_rank_bars, self.volume_bars, self.volume_ref_bars)

    @property
    def warmup_bars(self) -> int:
        """Bars the newest regime depends on, its own included: the windows of the bar at which the state last started afresh."""
        return self.window_bars + self.restart_bars - 1


class RegimeRecipe(Record):
    """Regime parameters by timeframe; `function_version` names the rule and enters every hash."""

    by_timeframe: dict[str, RegimeParams]
    function_version: Literal[1] = 1


class Measures(NamedTuple):
    """What the rule looks at, each (n,), NaN until its windows are full."""

    efficiency: FloatArray
    return_z: FloatArray
    volatility_rank: FloatArray
    volume_ratio: FloatArray


def measure(candles: pl.DataFrame, params: RegimeParams) -> Measures:
    """Compute the four measures; efficiency of a market that stands still is 0, volume ÷ volume of a dead one is 0."""
    bars = Bars(candles)
    with np.errstate(all="ignore"):
        efficiency = np.where(bars.total("abs_change", params.er_bars) == 0, 0.0, efficiency_ratio(bars, params.er_bars))
        deviation = volatility(bars, params.z_bars) * np.sqrt(params.return_bars)
        return_z = np.where(deviation == 0, 0.0, over(change(bars, params.return_bars), deviation))
        frame = pl.DataFrame({"volatility": volatility(bars, params.vol_bars), "usd": bars["usd"]}).fill_nan(None)
        rank = pl.col("volatility").rolling_rank(params.vol_rank_bars)
        medians = [
            pl.col("usd").rolling_median(width).alias(str(at)) for at, width in enumerate((params.volume_bars, params.volume_ref_bars))
        ]
        ranked = frame.select(*medians, rank=(rank - 1) / (params.vol_rank_bars - 1))
        recent, usual = ranked["0"].to_numpy(), ranked["1"].to_numpy()
        volume_ratio = np.where(usual == 0, 0.0, over(recent, usual))
    measures = (efficiency, return_z, ranked["rank"].to_numpy(), volume_ratio)
    return Measures(*(np.round(values, DECIMALS) for values in measures))


def _successors(measures: Measures, params: RegimeParams) -> list[bytes]:
    """For each previous regime (by code) the regime that each bar calls for: its own exits are looser than the others' entries."""
    efficiency, return_z, rank, volume = measures
    enter = {
        Regime.ILLIQUID: volume < params.illiquid_enter,
        Regime.PANIC: (return_z < params.panic_z_enter) & (rank > params.panic_vol_enter),
        Regime.TREND: efficiency > params.trend_enter,
    }
    keep = {
        Regime.ILLIQUID: volume <= params.illiquid_exit,
        Regime.PANIC: (return_z <= params.panic_z_exit) & (rank >= params.panic_vol_exit),
        Regime.TREND: efficiency >= params.trend_exit,
    }
    codes = [np.int8(REGIME_CODES.index(regime)) for regime in PRECEDENCE]
    tables = []
    for previous in REGIME_CODES:
        holds = [enter[regime] | keep[regime] if regime is previous else enter[regime] for regime in PRECEDENCE]
        tables.append(np.select(holds, codes, np.int8(REGIME_CODES.index(Regime.RANGE))).astype(np.int8).tobytes())
    return tables


def _walk(successors: list[bytes], known: NDArray[np.bool_], fresh: NDArray[np.bool_], dwell_bars: int) -> NDArray[np.int8]:
    """Run the state machine over n bars; it starts afresh where `fresh`, and knows nothing until it starts where `known`."""
    unknown, quiet = REGIME_CODES.index(Regime.UNKNOWN), successors[REGIME_CODES.index(Regime.RANGE)]
    urgent = frozenset(REGIME_CODES.index(regime) for regime in AT_ONCE)
    state, age = unknown, 0
    states = bytearray(len(known))
    for at, (sound, restart) in enumerate(zip(known.tolist(), fresh.tolist(), strict=True)):
        if not sound:
            state = unknown
        elif restart:
            state, age = quiet[at], 1
        elif state != unknown:
            called = successors[state][at]
            if called != state and (age >= dwell_bars or called in urgent):
                state, age = called, 0
            age += 1
        states[at] = state
    return np.frombuffer(bytes(states), dtype=np.int8)


def classify(candles: pl.DataFrame, params: RegimeParams, timeframe: str) -> pl.Series:
    """Name the regime of every bar: a String series `regime`, one per row.

    Precedence ILLIQUID > PANIC > TREND > RANGE (research/stats.md section 7). UNKNOWN until a calendar block of `restart_bars`
    begins with full windows, and wherever a window holds a faulty candle; any other value is the same wherever the series begins.
    Raises HuracanError for an unknown timeframe.
    """
    measures = measure(candles, params)
    known = np.isfinite(np.stack(measures).sum(axis=0))
    block = candles.get_column("ts").dt.epoch("us").to_numpy() // (timeframe_minutes(timeframe) * 60_000_000 * params.restart_bars)
    fresh = np.diff(block, prepend=block[:1] - 1) != 0
    states = _walk(_successors(measures, params), known, fresh, params.dwell_bars)
    return pl.Series("regime", [regime.value for regime in REGIME_CODES]).gather(states)


def codes(regimes: pl.Series) -> NDArray[np.int8]:
    """Regime names (n,) as places in `REGIME_CODES`. Raises polars.exceptions.PolarsError on any other name."""
    return regimes.replace_strict([regime.value for regime in REGIME_CODES], range(len(REGIME_CODES)), return_dtype=pl.Int8).to_numpy()
