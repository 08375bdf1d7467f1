"""Trade a series of decisions on past candles: one position per coin, entered at the next base bar's open, marked at closes."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from hamilton_client.core.contracts import FloatArray, IntArray, SignArray

DAY_MS = 86_400_000
FUNDING_PERIOD_MS = 8 * 3_600_000
AT_OPEN = ("opposite", "gap")  # exits at the open of their bar

_Row = tuple[int, int, int, float, float, float, float, str]
_TRADES = {
    "entry_ms": pl.Int64,
    "exit_ms": pl.Int64,
    "side": pl.Int8,
    "gross_bps": pl.Float64,
    "cost_bps": pl.Float64,
    "net_bps": pl.Float64,
    "size_usd": pl.Float64,
    "exit_reason": pl.String,
}


@dataclass(frozen=True, slots=True)
class Prices:
    """Base candles as arrays (n,): bar open instants in ms and OHLC prices; `bar_ms` is the bar length."""

    open_ms: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    bar_ms: int

    @classmethod
    def of(cls, candles: pl.DataFrame, bar_ms: int) -> "Prices":
        """Take the arrays of a candles frame."""
        opened, high, low, close = (candles[name].to_numpy() for name in ("open", "high", "low", "close"))
        return cls(candles["ts"].dt.epoch("ms").to_numpy(), opened, high, low, close, bar_ms)


@dataclass(frozen=True, slots=True)
class Orders:
    """What `decide()` wants at the close of each bar (n,): action in -1/0/1, holding time (≥ 1), stop distance, size and trading cost.

    `trading_cost_bps` is the round trip without funding; half is paid on entry, half on exit.
    """

    action: SignArray
    horizon_bars: IntArray
    stop_bps: FloatArray
    size_usd: FloatArray
    trading_cost_bps: FloatArray


class Admit(Protocol):
    """Stateful risk check of one order, given what was closed before."""

    def __call__(self, row: int, at_ms: int) -> bool:
        """Return True to open the position."""
        ...

    def closed(self, at_ms: int, net_bps: float, size_usd: float) -> None:
        """Tell the check what a trade made."""
        ...


@dataclass(frozen=True, slots=True)
class Replay:
    """`trades`: one row each (entry_ms, exit_ms, side, gross_bps, cost_bps, net_bps, size_usd, exit_reason).

    `gross_bps` and `cost_bps` (n,) are P&L per base bar, in bps of the position notional at entry.
    """

    trades: pl.DataFrame
    gross_bps: FloatArray
    cost_bps: FloatArray

    def daily(self, open_ms: IntArray, first_day: int, last_day: int) -> pl.DataFrame:
        """Sum per UTC day over the full calendar [first_day, last_day] (days since the epoch); days without trades are zero.

        Columns date, gross_bps, cost_bps, net_bps (bps of the position notional), trades and wins (counted on the day that
        holds the bar of the exit).
        """
        days = last_day - first_day + 1
        at = open_ms // DAY_MS - first_day
        inside = (at >= 0) & (at < days)
        gross = np.bincount(at[inside], self.gross_bps[inside], minlength=days)
        cost = np.bincount(at[inside], self.cost_bps[inside], minlength=days)
        at_open = self.trades["exit_reason"].is_in(AT_OPEN).to_numpy()
        exit_day = (self.trades["exit_ms"].to_numpy() - ~at_open) // DAY_MS - first_day
        counted = (exit_day >= 0) & (exit_day < days)
        won = counted & (self.trades["net_bps"].to_numpy() > 0)
        return pl.DataFrame(
            {
                "date": pl.Series(np.arange(first_day, last_day + 1, dtype=np.int32)).cast(pl.Date),
                "gross_bps": gross,
                "cost_bps": cost,
                "net_bps": gross - cost,
                "trades": np.bincount(exit_day[counted], minlength=days).astype(np.int64),
                "wins": np.bincount(exit_day[won], minlength=days).astype(np.int64),
            }
        )


def replay(prices: Prices, orders: Orders, *, funding_bps_per_8h: float, admit: Admit) -> Replay:
    """Trade `orders` (n,) on `prices` (n,).

    A decision at the close of bar i enters at the open of bar i+1 if that bar follows at once. The position ends at the close of its
    last horizon bar (`horizon`; if that bar is missing, at the open of the next one: `gap`), at the stop, or at the open after an
    opposite decision, whichever is first. A stop slips: it fills halfway between its price and the bar's extreme, or at the open of a
    bar that gaps through it. Longs pay positive funding pro rata of the time held; a stop is timed at the end of its bar. A position
    open at the end of the data is marked, not closed (`open`).
    """
    gross, cost = np.zeros(len(prices.open_ms)), np.zeros(len(prices.open_ms))
    opposite = {side: np.flatnonzero(orders.action == -side) for side in (1, -1)}
    adjacent = np.append(np.diff(prices.open_ms) == prices.bar_ms, False)
    trades: list[_Row] = []
    free_from = 0
    for row in np.flatnonzero((orders.action != 0) & adjacent).tolist():
        if row < free_from or not admit(row, int(prices.open_ms[row + 1])):
            continue
        side = int(orders.action[row])
        last, exit_price, reason = _exit(prices, orders, row, side, opposite[side])
        steps, fees, exit_ms = _per_bar(prices, row, side, last, exit_price, reason, funding_bps_per_8h)
        fees[0] += orders.trading_cost_bps[row] / 2
        if reason != "open":
            fees[-1] += orders.trading_cost_bps[row] / 2
        gross[row + 1 : last + 1] += steps
        cost[row + 1 : last + 1] += fees
        if reason != "open":
            made, paid, size = float(steps.sum()), float(fees.sum()), float(orders.size_usd[row])
            trades.append((int(prices.open_ms[row + 1]), exit_ms, side, made, paid, made - paid, size, reason))
            admit.closed(exit_ms, made - paid, size)
        free_from = last - 1 if reason in AT_OPEN else last
    return Replay(pl.DataFrame(trades, schema=_TRADES, orient="row"), gross, cost)


def _exit(prices: Prices, orders: Orders, row: int, side: int, against: IntArray) -> tuple[int, float, str]:
    """Last bar of the position, exit price and reason."""
    end_ms = prices.open_ms[row] + orders.horizon_bars[row] * prices.bar_ms
    last = int(np.searchsorted(prices.open_ms, end_ms))
    if last == len(prices.open_ms):
        last, reason = last - 1, "open"
    else:
        reason = "horizon" if prices.open_ms[last] == end_ms else "gap"
    at = int(np.searchsorted(against, row, side="right"))
    if at < len(against) and against[at] < last:
        last, reason = int(against[at]) + 1, "opposite"
    stop = prices.open[row + 1] * (1 - side * orders.stop_bps[row] / 1e4)
    span = slice(row + 1, last if reason in AT_OPEN else last + 1)
    hit = prices.low[span] <= stop if side > 0 else prices.high[span] >= stop
    if hit.any():
        last = row + 1 + int(hit.argmax())
        gapped = side * (prices.open[last] - stop) < 0
        extreme = prices.low[last] if side > 0 else prices.high[last]
        return last, float(prices.open[last] if gapped else (stop + extreme) / 2), "stop"
    return last, float(prices.open[last] if reason in AT_OPEN else prices.close[last]), reason


def _per_bar(
    prices: Prices, row: int, side: int, last: int, exit_price: float, reason: str, funding_bps_per_8h: float
) -> tuple[FloatArray, FloatArray, int]:
    """Gross P&L and funding of the bars row+1..last, marked at closes, and the instant of the exit."""
    entry = prices.open[row + 1]
    held = slice(row + 1, last)
    exit_ms = int(prices.open_ms[last]) + (0 if reason in AT_OPEN else prices.bar_ms)
    marks = np.concatenate([[entry], prices.close[held], [exit_price]])
    instants = np.concatenate([[prices.open_ms[row + 1]], prices.open_ms[held] + prices.bar_ms, [exit_ms]])
    return side * np.diff(marks) / entry * 1e4, side * funding_bps_per_8h * np.diff(instants) / FUNDING_PERIOD_MS, exit_ms
