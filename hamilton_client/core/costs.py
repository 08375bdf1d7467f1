"""What a round trip costs, point in time: fees, spread, square-root impact, funding (stats.md §6). Units: bps of notional, USD."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal, Self

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hamilton_client.core.contracts import CostSnapshot, FloatArray, HuracanError, IntArray
from hamilton_client.core.policy import FeeSchedule, Policy

DAY_MINUTES = 1440
MINUTE_MS = 60_000
FUNDING_MINUTES = 480

Fill = Literal["maker", "taker"]


@dataclass(frozen=True, slots=True, eq=False)
class BarContext:
    """What a decision on n closed bars may know about its market; every array is (n,), NaN where unknown.

    `close_ms` is the UTC instant a bar closes, `regime` codes index `list(Regime)`, `sigma_bps` is the volatility of one base-bar log
    return, `volatility_daily_bps` and `volume_daily_usd` trail; `base_minutes` is the length of a bar.
    """

    close_ms: IntArray
    regime: NDArray[np.int8]
    sigma_bps: FloatArray
    bar_volume_usd: FloatArray
    volatility_daily_bps: FloatArray
    volume_daily_usd: FloatArray
    base_minutes: int = 60

    def __len__(self) -> int:
        return len(self.close_ms)

    def take(self, rows: slice | IntArray | NDArray[np.bool_]) -> Self:
        """Context of some bars, by slice, indices or mask."""
        return type(self)(
            self.close_ms[rows],
            self.regime[rows],
            self.sigma_bps[rows],
            self.bar_volume_usd[rows],
            self.volatility_daily_bps[rows],
            self.volume_daily_usd[rows],
            self.base_minutes,
        )


def context_warmup_bars(base_minutes: int, volatility_bars: int) -> int:
    """Bars, the newest included, after which a row's context no longer depends on where the candles start."""
    return max(volatility_bars + 1, DAY_MINUTES // base_minutes)


CONTEXT_WARMUP_BARS = context_warmup_bars(60, 72)  # under the default policy


def bar_context(candles: pl.DataFrame, regime_codes: NDArray[np.int8], *, base_minutes: int, volatility_bars: int) -> BarContext:
    """Context of every row of base-timeframe `candles` (n rows), from rows up to it and none older than the warm-up.

    Volatility is the standard deviation of the last `volatility_bars` log returns, NaN until that many rows exist or while more than
    half are missing (nulls, non-positive prices, gaps between bars). Volume is `quote_volume`, else volume × close; the day's is
    the sum over the bars of the last 24 hours. Raises HuracanError where `regime_codes` is not (n,).
    """
    if len(regime_codes) != candles.height:
        raise HuracanError(f"{len(regime_codes)} regime codes for {candles.height} candles: classify exactly these candles")
    open_ms = candles["ts"].dt.epoch("ms").to_numpy().astype(np.int64)
    volume = _volume_usd(candles)
    sigma = 1e4 * _trailing_std(_log_returns(candles["close"], open_ms, base_minutes), volatility_bars)
    return BarContext(
        close_ms=open_ms + base_minutes * MINUTE_MS,
        regime=regime_codes,
        sigma_bps=sigma,
        bar_volume_usd=volume,
        volatility_daily_bps=sigma * np.sqrt(DAY_MINUTES / base_minutes),
        volume_daily_usd=_daily_volume(volume, open_ms, DAY_MINUTES // base_minutes),
        base_minutes=base_minutes,
    )


def _numbers(series: pl.Series) -> FloatArray:
    """Float64 values (n,), nulls as NaN."""
    return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _volume_usd(candles: pl.DataFrame) -> FloatArray:
    derived = _numbers(candles["volume"]) * _numbers(candles["close"])
    if "quote_volume" not in candles.columns:
        return derived
    quoted = _numbers(candles["quote_volume"])
    return np.where(np.isfinite(quoted), quoted, derived)


def _log_returns(close: pl.Series, open_ms: IntArray, base_minutes: int) -> FloatArray:
    """ln(c_i / c_{i-1}) (n,), NaN for the first bar, for prices that are none, and across gaps."""
    prices = _numbers(close)
    logs = np.log(np.where(prices > 0, prices, np.nan))
    one_bar = np.diff(open_ms) == base_minutes * MINUTE_MS
    return np.concatenate([[np.nan], np.where(one_bar, np.diff(logs), np.nan)])[: len(prices)]


def _trailing_std(returns: FloatArray, bars: int) -> FloatArray:
    """Per-row recomputation instead of running sums, which would remember every bar before the window."""
    result = np.full(len(returns), np.nan)
    if len(returns) > bars:
        windows = sliding_window_view(returns[1:], bars)
        valid = np.isfinite(windows)
        count = valid.sum(axis=1)
        enough = np.maximum(count, 2)
        mean = np.where(valid, windows, 0.0).sum(axis=1) / enough
        spread = np.where(valid, windows - mean[:, None], 0.0)
        variance = (spread * spread).sum(axis=1) / (enough - 1)
        result[bars:] = np.where(2 * count >= bars, np.sqrt(variance), np.nan)
    return result


def _daily_volume(volume: FloatArray, open_ms: IntArray, bars: int) -> FloatArray:
    """Sum over bars that opened within 24 hours of a bar's close; NaN until a day of rows exists. A missing bar traded nothing."""
    result = np.full(len(volume), np.nan)
    if len(volume) >= bars:
        recent = sliding_window_view(open_ms, bars) > open_ms[bars - 1 :, None] - DAY_MINUTES * MINUTE_MS
        traded = sliding_window_view(np.nan_to_num(volume, nan=0.0), bars)
        result[bars - 1 :] = np.where(recent, traded, 0.0).sum(axis=1)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class CostBreakdown:
    """Cost of a round trip in bps of notional, each (n,); `funding_bps` is negative where it is received.

    `safety_margin_bps` is no cost but a reserve that the edge must cover too; `max_order_usd` (n,) is the participation cap.
    """

    fees_bps: FloatArray
    spread_bps: FloatArray
    impact_bps: FloatArray
    funding_bps: FloatArray
    safety_margin_bps: float
    max_order_usd: FloatArray

    @property
    def total_bps(self) -> FloatArray:
        """Everything paid, without the margin; NaN where any input is missing."""
        return self.fees_bps + self.spread_bps + self.impact_bps + self.funding_bps


def sqrt_impact_bps(
    order_usd: FloatArray, volatility_daily_bps: FloatArray, volume_daily_usd: FloatArray, impact_factor: float
) -> FloatArray:
    """I = Y · σ_D · sqrt(Q / V_D) in bps, the price move when the order is done; NaN where no volume is known."""
    volume = np.where(volume_daily_usd > 0, volume_daily_usd, np.nan)
    return impact_factor * volatility_daily_bps * np.sqrt(order_usd / volume)


def max_order_usd(bar_volume_usd: FloatArray, participation_rate: float) -> FloatArray:
    """Largest order the execution window of one base bar may carry, in USD."""
    return participation_rate * bar_volume_usd


def fees_bps(costs: CostSnapshot, entry: Fill = "taker", exit_: Fill = "taker") -> float:
    """Fees of both sides in bps."""
    fee = {"maker": costs.maker_fee_bps, "taker": costs.taker_fee_bps}
    return fee[entry] + fee[exit_]


def round_trip_costs(
    size_usd: FloatArray, horizon_bars: IntArray, side: NDArray[np.int8], bars: BarContext, snapshot: CostSnapshot, policy: Policy
) -> CostBreakdown:
    """Cost of entering `size_usd` (n,) on `side` (n,) and leaving `horizon_bars` (n,) later.

    Two taker fees, two half-spreads, impact twice and in full (the mean price paid on the way is about two thirds of it: the rest is
    caution), funding pro rata of the horizon: a long pays a positive rate, a short receives it, spot has none. A missing input is NaN
    in its component and in the total.
    """
    n = len(bars)
    impact = sqrt_impact_bps(size_usd, bars.volatility_daily_bps, bars.volume_daily_usd, snapshot.impact_factor)
    rate = snapshot.funding_bps_per_8h if policy.market.instrument == "usdm_perp" else 0.0
    return CostBreakdown(
        fees_bps=np.full(n, fees_bps(snapshot)),
        spread_bps=np.full(n, snapshot.spread_bps),
        impact_bps=2.0 * impact,
        funding_bps=rate * bars.base_minutes / FUNDING_MINUTES * side.astype(np.float64) * horizon_bars,
        safety_margin_bps=policy.cost_model.safety_margin_bps,
        max_order_usd=max_order_usd(bars.bar_volume_usd, snapshot.participation_rate),
    )


def fees_at(schedule: Sequence[FeeSchedule], day: date) -> FeeSchedule:
    """The newest row of a venue's fee schedule that is not after `day`. Raises HuracanError where there is none."""
    valid = [row for row in schedule if date.fromisoformat(row.since) <= day]
    if not valid:
        first = min((row.since for row in schedule), default="nothing")
        raise HuracanError(
            f"no fees are known for {day}: the schedule starts with {first}; add a row dated {day} or earlier to "
            "cost_model.fee_schedule in config/policy.yaml"
        )
    return max(valid, key=lambda row: row.since)


def funding_bps(events: Iterable[tuple[datetime, float]], entry_at: datetime, exit_at: datetime, side: int = 1) -> float:
    """Funding a position of `side` paid, in bps (negative: received), over `events` of (instant, rate as a fraction).

    Only stamps with entry < t ≤ exit count: whoever enters on the stamp does not pay it, whoever is still in does (stats.md §6).
    """
    return side * 1e4 * sum(rate for at, rate in events if entry_at < at <= exit_at)


def breakeven_hit_rate(cost_bps: float, mean_move_bps: float) -> float:
    """Hit rate at which a trade of typical absolute move earns exactly its cost: 0.5 (1 + cost / E|r|), symmetric payoffs."""
    return 0.5 * (1.0 + cost_bps / mean_move_bps)
