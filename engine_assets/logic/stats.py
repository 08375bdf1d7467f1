"""Sharpe statistics of daily net P&L on a 365-day calendar, false-discovery control, and the metrics of a segment."""

import math
from collections.abc import Mapping
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from hamilton_client.core.contracts import FloatArray, HuracanError, SegmentMetrics

DAYS_PER_YEAR = 365
MIN_DAYS = 3
DAILY_COLUMNS = ("net_bps", "gross_bps", "cost_bps", "trades", "wins")


def sharpe_daily(daily: FloatArray) -> float | None:
    """Mean ÷ standard deviation (ddof 1) of daily P&L (n,), per day. None for fewer than 3 days or a constant series."""
    if daily.size < MIN_DAYS:
        return None
    deviation = float(daily.std(ddof=1))
    if deviation <= 1e-12 * float(np.abs(daily).max()):
        return None
    return float(daily.mean()) / deviation


def sharpe_annual(daily: FloatArray) -> float | None:
    """`sharpe_daily` · sqrt(365): markets never close. `daily` holds every calendar day, zero days included."""
    sharpe = sharpe_daily(daily)
    return None if sharpe is None else sharpe * math.sqrt(DAYS_PER_YEAR)


def sharpe_se_daily(daily: FloatArray) -> float | None:
    """Standard error of `sharpe_daily` under any iid law: sqrt((1 - g3·SR + (g4-1)/4·SR²)/T), g4 non-excess (Mertens 2002)."""
    sharpe = sharpe_daily(daily)
    if sharpe is None:
        return None
    from skfolio.measures import kurtosis, skew

    variance = (1 - float(skew(daily)) * sharpe + (float(kurtosis(daily)) - 1) / 4 * sharpe**2) / daily.size
    return math.sqrt(variance) if variance > 0 else None


def psr(daily: FloatArray, benchmark_daily: float = 0.0) -> float | None:
    """Probability that the true daily Sharpe exceeds `benchmark_daily` (Bailey & Lopez de Prado 2012); None where undefined."""
    if sharpe_daily(daily) is None:
        return None
    from skfolio.measures import probabilistic_sharpe_ratio

    value = float(probabilistic_sharpe_ratio(daily, benchmark_sharpe_ratio=benchmark_daily))
    return value if math.isfinite(value) else None


def expected_max_sharpe(n_trials: float, trial_sharpe_var: float) -> float:
    """Expected best Sharpe of `n_trials` zero-skill trials whose Sharpes have variance `trial_sharpe_var`, in its period.

    `n_trials` may be an effective (fractional) number; 1 gives 0. Bailey & Lopez de Prado 2014. Raises HuracanError otherwise.
    """
    if not (math.isfinite(n_trials) and n_trials >= 1 and math.isfinite(trial_sharpe_var) and trial_sharpe_var >= 0):
        raise HuracanError(f"n_trials must be at least 1 and trial_sharpe_var at least 0, not {n_trials} and {trial_sharpe_var}")
    from skfolio.measures import expected_max_sharpe_ratio

    # The closed form is negative for 1 < n_trials < 1.28: unclipped, it would raise a Sharpe instead of deflating it.
    return max(0.0, float(expected_max_sharpe_ratio(n_trials, math.sqrt(trial_sharpe_var))))


def dsr(daily: FloatArray, n_trials: float, trial_sharpe_var: float) -> float | None:
    """Deflated Sharpe: `psr` against the best Sharpe that luck gives `n_trials` trials; `trial_sharpe_var` of daily Sharpes."""
    return psr(daily, expected_max_sharpe(n_trials, trial_sharpe_var))


def max_drawdown_pct(daily_bps: FloatArray) -> float:
    """Deepest fall of cumulative P&L below its peak (start included), in percent of a constant position notional, not compounded."""
    equity = np.concatenate([[0.0], np.cumsum(daily_bps)])
    return float((np.maximum.accumulate(equity) - equity).max()) / 100


def benjamini_hochberg(p_values: ArrayLike) -> FloatArray:
    """Benjamini-Hochberg adjusted p-values (n,): reject where <= q. NaN was not tested: it stays NaN and does not count in m."""
    from scipy.stats import false_discovery_control

    p = np.asarray(p_values, dtype=np.float64)
    tested = np.isfinite(p)
    adjusted = np.full(p.shape, np.nan)
    if tested.any():
        adjusted[tested] = false_discovery_control(p[tested], method="bh")
    return adjusted


def segment_metrics(
    daily: pl.DataFrame,
    *,
    windows: int,
    effective_sample: float,
    n_trials: float,
    trial_sharpe_var: float,
    window: tuple[date, date] | None = None,
    baselines: Mapping[str, float | None] | None = None,
) -> SegmentMetrics:
    """Sum up a segment's out-of-sample days.

    `daily` has one row per day that has any: `date` Date, `net_bps`, `gross_bps`, `cost_bps` (sums over the day, bps of the position
    notional, costs positive), `trades`, `wins` (closed that day). Days of `window` (first and last test day, inclusive; by default
    those of the frame) without a row count as zero. `net_pnl_pct` and `max_drawdown_pct` are sums of daily bps ÷ 100: percent of a constant
    position notional. `net_bps`, `gross_bps`, `cost_bps` are per trade, `edge_after_cost_bps` is gross less cost, `p_value` is
    one-sided for a positive Sharpe, 1 - PSR(0). `n_trials` and `trial_sharpe_var` (of daily Sharpes) deflate `dsr`.
    Raises HuracanError for duplicate days, days outside `window` and values that are not finite.
    """
    full, span = _full_calendar(daily, window)
    net = full[:, 0]
    total = dict(zip(DAILY_COLUMNS, full.sum(axis=0).tolist(), strict=True))
    trades = round(total["trades"])
    per_trade = {name: value / trades if trades else None for name, value in total.items()}
    gross, cost, probability = per_trade["gross_bps"], per_trade["cost_bps"], psr(net)
    return SegmentMetrics(
        sharpe=sharpe_annual(net),
        hit_rate=per_trade["wins"],
        max_drawdown_pct=max_drawdown_pct(net),
        net_pnl_pct=total["net_bps"] / 100,
        net_bps=per_trade["net_bps"],
        cost_bps=cost,
        gross_bps=gross,
        edge_after_cost_bps=None if gross is None or cost is None else gross - cost,
        sample_size=trades,
        effective_sample=effective_sample,
        windows=windows,
        window=None if span is None else (span[0].isoformat(), span[1].isoformat()),
        psr=probability,
        dsr=dsr(net, n_trials, trial_sharpe_var),
        p_value=None if probability is None else 1 - probability,
        baselines=dict(baselines or {}),
    )


def _full_calendar(daily: pl.DataFrame, window: tuple[date, date] | None) -> tuple[FloatArray, tuple[date, date] | None]:
    """(days of the window, DAILY_COLUMNS), zeros where `daily` has no row."""
    values = daily.select(pl.col(DAILY_COLUMNS).cast(pl.Float64)).to_numpy()
    if not np.isfinite(values).all() or daily["date"].null_count():
        raise HuracanError("daily P&L holds a missing or infinite value: a day without trades is 0, never empty")
    days = daily["date"].cast(pl.Date)
    if window is None:
        if days.is_empty():
            return values, None
        ordered = days.sort().to_list()
        window = ordered[0], ordered[-1]
    position = days.cast(pl.Int64).to_numpy() - (window[0] - date(1970, 1, 1)).days
    length = (window[1] - window[0]).days + 1
    if np.unique(position).size < position.size or ((position < 0) | (position >= length)).any():
        raise HuracanError(f"daily P&L has a day twice, or one outside {window[0]} to {window[1]}")
    full = np.zeros((length, len(DAILY_COLUMNS)))
    full[position] = values
    return full, window
