"""The features of the recipe the way they are usually written: pandas, one function and one rolling call or two per feature.

Each takes a DataFrame with a UTC DatetimeIndex and open, high, low, close, volume, and returns a Series; windows are in bars.
"""

from collections.abc import Callable

import numpy as np
from pandas import DataFrame, Index, Series


def log_return(df: DataFrame, bars: int = 1) -> Series:
    return np.log(df["close"]).diff(bars)


def volatility(df: DataFrame, bars: int) -> Series:
    return log_return(df).rolling(bars).std()


def zscore(df: DataFrame, bars: int) -> Series:
    close = np.log(df["close"])
    return (close - close.rolling(bars).mean()) / close.rolling(bars).std()


def efficiency_ratio(df: DataFrame, bars: int) -> Series:
    return df["close"].diff(bars).abs() / df["close"].diff().abs().rolling(bars).sum()


def rsi(df: DataFrame, bars: int) -> Series:
    change = log_return(df)
    return 100 * change.clip(lower=0).rolling(bars).sum() / change.abs().rolling(bars).sum()


def sma_gap(df: DataFrame, short: int, long: int) -> Series:
    close = np.log(df["close"])
    return close.rolling(short).mean() - close.rolling(long).mean()


def donchian_position(df: DataFrame, bars: int) -> Series:
    low, high = np.log(df["low"]).rolling(bars).min(), np.log(df["high"]).rolling(bars).max()
    return (np.log(df["close"]) - low) / (high - low)


def drawdown(df: DataFrame, bars: int) -> Series:
    return np.log(df["close"] / df["high"].rolling(bars).max())


def atr(df: DataFrame, bars: int) -> Series:
    previous = df["close"].shift()
    return np.log(np.maximum(df["high"], previous) / np.minimum(df["low"], previous)).where(previous.notna()).rolling(bars).mean()


def parkinson(df: DataFrame, bars: int) -> Series:
    return np.sqrt((np.log(df["high"] / df["low"]) ** 2).rolling(bars).mean() / (4 * np.log(2)))


def skew(df: DataFrame, bars: int) -> Series:
    return log_return(df).rolling(bars).skew() * (bars - 1) * (bars - 2) / bars**2


def autocorrelation(df: DataFrame, bars: int) -> Series:
    change = log_return(df)
    return ((change * change.shift()).rolling(bars).sum() / (change**2).rolling(bars).sum()).clip(-1, 1)


def variance_ratio(df: DataFrame, step: int, bars: int) -> Series:
    return (log_return(df, step) ** 2).rolling(bars - step + 1).mean() / (step * (log_return(df) ** 2).rolling(bars).mean())


def volume_zscore(df: DataFrame, bars: int) -> Series:
    root = np.sqrt(df["close"] * df["volume"])
    return (root - root.rolling(bars).mean()) / root.rolling(bars).std()


def volume_ratio(df: DataFrame, short: int, long: int) -> Series:
    usd = df["close"] * df["volume"]
    return usd.rolling(short).mean() / usd.rolling(long).mean()


def volume_imbalance(df: DataFrame, bars: int) -> Series:
    usd = df["close"] * df["volume"]
    return (usd * np.sign(log_return(df))).rolling(bars).sum() / usd.rolling(bars).sum()


def vwap_gap(df: DataFrame, bars: int) -> Series:
    usd, close = df["close"] * df["volume"], np.log(df["close"])
    return close - (usd * close).rolling(bars).sum() / usd.rolling(bars).sum()


def amihud(df: DataFrame, bars: int) -> Series:
    usd = df["close"] * df["volume"]
    return (log_return(df).abs() / usd).rolling(bars).mean()


def part_of_range(part: Series, df: DataFrame) -> Series:
    return part / np.log(df["high"] / df["low"])


def wave(function: Callable[[Series], Series], phase: Index, steps: int, df: DataFrame) -> Series:
    return function(Series(2 * np.pi * phase / steps, index=df.index))


PANDAS: dict[str, Callable[..., Series]] = {
    "return": log_return,
    "volatility": volatility,
    "volatility_ratio": lambda df, short, long: np.log(volatility(df, short) / volatility(df, long)),
    "zscore": zscore,
    "trend_score": lambda df, bars: log_return(df, bars) / (volatility(df, bars) * np.sqrt(bars)),
    "efficiency_ratio": efficiency_ratio,
    "rsi": rsi,
    "sma_gap": sma_gap,
    "donchian_position": donchian_position,
    "drawdown": drawdown,
    "atr_ratio": lambda df, short, long: atr(df, short) / atr(df, long),
    "parkinson": parkinson,
    "skew": skew,
    "autocorrelation": autocorrelation,
    "variance_ratio": variance_ratio,
    "volume_zscore": volume_zscore,
    "volume_ratio": volume_ratio,
    "volume_imbalance": volume_imbalance,
    "vwap_gap": vwap_gap,
    "amihud_ratio": lambda df, short, long: np.log(amihud(df, short) / amihud(df, long)),
    "body": lambda df: part_of_range(np.log(df["close"] / df["open"]), df),
    "upper_wick": lambda df: part_of_range(np.log(df["high"] / df[["open", "close"]].max(axis=1)), df),
    "lower_wick": lambda df: part_of_range(np.log(df[["open", "close"]].min(axis=1) / df["low"]), df),
    "close_location": lambda df: part_of_range(np.log(df["close"] / df["low"]), df),
    "hour_sin": lambda df: wave(np.sin, df.index.hour, 24, df),
    "hour_cos": lambda df: wave(np.cos, df.index.hour, 24, df),
    "weekday_sin": lambda df: wave(np.sin, df.index.day_of_week, 7, df),
    "weekday_cos": lambda df: wave(np.cos, df.index.day_of_week, 7, df),
}
