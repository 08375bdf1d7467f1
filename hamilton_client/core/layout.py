"""Every path in the bucket and every identifier, written and parsed in this one place."""

import re
from datetime import UTC, date, datetime

from hamilton_client.core.contracts import HuracanError, Regime

SYMBOL_PATTERN = re.compile(r"[A-Z0-9]{2,20}")
TIMEFRAME_MINUTES = {"1m": 1, "5m": 5, "15m": 15, "30m": 30, "1h": 60, "2h": 120, "4h": 240, "8h": 480, "12h": 720, "1d": 1440}
CHAMPION_INDEX = "champion/index.json"
LAKE_CARD = "lake.json"
ENGINE_HEARTBEAT = "heartbeats/engine.json"


def check_symbol(symbol: str) -> str:
    """Return `symbol` if it may become part of a path, key or SQL; raise HuracanError otherwise."""
    if not SYMBOL_PATTERN.fullmatch(symbol):
        hint = symbol.upper().replace("/", "").split(":")[0]
        advice = f"; did you mean {hint}?" if SYMBOL_PATTERN.fullmatch(hint) else ""
        raise HuracanError(f"symbol {symbol!r} is refused: symbols are 2 to 20 of A-Z and 0-9, such as BTCUSDT{advice}")
    return symbol


def timeframe_minutes(timeframe: str) -> int:
    """Length of one bar in minutes. Raises HuracanError for an unknown timeframe."""
    try:
        return TIMEFRAME_MINUTES[timeframe]
    except KeyError:
        raise HuracanError(f"unknown timeframe {timeframe!r}; known: {', '.join(TIMEFRAME_MINUTES)}") from None


def timeframe_ms(timeframe: str) -> int:
    """Length of one bar in milliseconds."""
    return timeframe_minutes(timeframe) * 60_000


def stamp(as_of: datetime) -> str:
    """`20250101_020000`, as run ids and model versions carry it."""
    return as_of.astimezone(UTC).strftime("%Y%m%d_%H%M%S")


def run_id(as_of: datetime) -> str:
    """`run_20250101_020000`."""
    return f"run_{stamp(as_of)}"


def as_of_from_run_id(run: str) -> datetime:
    """Inverse of `run_id`. Raises HuracanError on anything else."""
    try:
        return datetime.strptime(run, "run_%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise HuracanError(f"{run!r} is no run id; it looks like run_20230701_020000") from None


def segment(timeframe: str, regime: Regime) -> str:
    """`1h.TREND`: the key of a segment inside a coin."""
    return f"{timeframe}.{regime.value}"


def split_segment(key: str) -> tuple[str, Regime]:
    """Inverse of `segment`."""
    timeframe, _, regime = key.partition(".")
    return timeframe, Regime(regime)


def segment_model_id(symbol: str, timeframe: str, regime: Regime, version: int, as_of: datetime) -> str:
    """`BTCUSDT_TREND_1h_v3_20250115_020000`."""
    return f"{check_symbol(symbol)}_{regime.value}_{timeframe}_v{version}_{stamp(as_of)}"


def bundle(symbol: str, as_of: datetime, *, challenger: bool = False) -> str:
    """`models/BTCUSDT/20250101_020000Z`, or the same under `challengers/`."""
    return f"{'challengers' if challenger else 'models'}/{check_symbol(symbol)}/{stamp(as_of)}Z"


def published(symbol: str, as_of: datetime | None = None) -> str:
    """Prefix of, or record of one night's published challenger bundle: `challengers/BTCUSDT/20250101_020000Z.json`."""
    return f"challengers/{check_symbol(symbol)}/" if as_of is None else f"{bundle(symbol, as_of, challenger=True)}.json"


def champion_pointer(symbol: str) -> str:
    """`champion/BTCUSDT/latest.json`."""
    return f"champion/{check_symbol(symbol)}/latest.json"


def champion_history(symbol: str, generation: int) -> str:
    """`champion/BTCUSDT/history/000003.json`."""
    return f"champion/{check_symbol(symbol)}/history/{generation:06d}.json"


def candles(symbol: str, timeframe: str) -> str:
    """Prefix of one candle series: `candles/BTCUSDT/1h/`."""
    return f"candles/{check_symbol(symbol)}/{timeframe}/"


def chunk(stage: str, recipe_hash: str, symbol: str, timeframe: str, year: int, key: str) -> str:
    """One year of the `features` or `regimes` of one series under one recipe; `key` addresses what it was made from."""
    return f"{stage}/{recipe_hash[:16]}/{check_symbol(symbol)}/{timeframe}/{year}.{key[:16]}.parquet"


def fold(symbol: str, timeframe: str, key: str) -> str:
    """Content-addressed out-of-fold scores of one window."""
    return f"folds/{check_symbol(symbol)}/{timeframe}/{key}.parquet"


def pooled_fold(timeframe: str, key: str) -> str:
    """Content-addressed pooled baseline model of one quarter."""
    return f"folds/pooled/{timeframe}/{key}.txt"


def night_part(run: str, symbol: str, timeframe: str, name: str) -> str:
    """A file one unit of the night leaves for the stages after it."""
    return f"runs/{run}/parts/{check_symbol(symbol)}/{timeframe}/{name}"


def shadow(lineage: str, symbol: str, timeframe: str, day: date) -> str:
    """Point-in-time daily P&L of one lineage: `shadow/…/20230630.parquet`."""
    return f"shadow/{lineage[:16]}/{check_symbol(symbol)}/{timeframe}/{day:%Y%m%d}.parquet"


def manifest(run: str) -> str:
    """`runs/{run_id}/manifest.json`."""
    return f"runs/{run}/manifest.json"


def inputs(run: str, symbol: str) -> str:
    """Day hashes of the base candles one run reads of a coin."""
    return f"runs/{run}/inputs/{check_symbol(symbol)}.json"


def ledger_line(run: str, stage: str, symbol: str, timeframe: str) -> str:
    """One small object per stage and unit: object stores cannot append."""
    return f"runs/{run}/ledger/{stage}/{check_symbol(symbol)}.{timeframe}.json"


def failure_report(run: str, symbol: str | None = None, step: str | None = None) -> str:
    """`runs/{run_id}/failure_report.json`, or one per failed coin beside it."""
    return f"runs/{run}/failure_report.json" if symbol is None else f"runs/{run}/failures/{check_symbol(symbol)}.{step}.json"


def daily_summary(day: date) -> str:
    """`summaries/daily/2025-01-01.json`."""
    return f"summaries/daily/{day:%Y-%m-%d}.json"


def live_decisions(day: date, part: int) -> str:
    """`live_logs/decisions/20250101/000001.parquet`."""
    return f"live_logs/decisions/{day:%Y%m%d}/{part:06d}.parquet"
