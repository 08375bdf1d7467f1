"""What a night has to do, as pure functions: chunks and windows are content-addressed, so that resuming is a set difference."""

import importlib.metadata
import math
from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import cache
from typing import NamedTuple

from engine_assets.logic.fit import FIT_VERSION
from engine_assets.logic.labels import LABEL_VERSION
from engine_assets.logic.splits import SPLIT_VERSION, Fold
from hamilton_client.core.contracts import content_hash
from hamilton_client.core.layout import timeframe_minutes
from hamilton_client.core.recipe import Recipe

DAY_MS = 86_400_000
DayHashes = Mapping[str, str]


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that fold results depend on."""
    return {name: importlib.metadata.version(name) for name in ("lightgbm", "polars", "numpy")}


class YearChunk(NamedTuple):
    """One calendar year of features or regimes: rows in [start, end), computed from candles in [padded_start, end)."""

    year: int
    padded_start: datetime
    start: datetime
    end: datetime
    key: str


def reach(days: DayHashes, start: date, warmup_bars: int, timeframe: str) -> date:
    """First day of candles that rows from `start` on look back on.

    Windows count bars, not hours, so an outage stretches them: days without a candle do not count, and a fifth of the bars of the
    others may be missing (one missing base bar costs a derived day).
    """
    wanted = math.ceil(1.25 * warmup_bars * timeframe_minutes(timeframe) / 1440) + 2
    ordered = sorted(days)
    before = bisect_left(ordered, f"{start:%Y%m%d}")
    return date.fromisoformat(ordered[max(0, before - wanted)]) if before else start


def feature_chunks(days: DayHashes, recipe: Recipe, timeframe: str) -> list[YearChunk]:
    """Yearly chunks of features that cover all days."""
    return _chunks(days, recipe.features.warmup_bars, timeframe, recipe.features.hash)


def regime_chunks(days: DayHashes, recipe: Recipe, timeframe: str) -> list[YearChunk]:
    """Yearly chunks of regimes that cover all days."""
    parameters = recipe.regimes.by_timeframe[timeframe]
    return _chunks(days, parameters.warmup_bars, timeframe, content_hash([parameters.hash, recipe.regimes.function_version]))


def _chunks(days: DayHashes, warmup_bars: int, timeframe: str, made_by: str) -> list[YearChunk]:
    """A chunk's key changes iff a candle day it reads, its parameters and their function versions, or a library changes."""
    chunks = []
    for year in sorted({int(day[:4]) for day in days}):
        start = datetime(year, 1, 1, tzinfo=UTC)
        first = reach(days, start.date(), warmup_bars, timeframe)
        end = datetime(year + 1, 1, 1, tzinfo=UTC)
        key = content_hash([timeframe, made_by, library_versions(), _between(days, first, end.date())])
        chunks.append(YearChunk(year, datetime(first.year, first.month, first.day, tzinfo=UTC), start, end, key))
    return chunks


def fold_key(fold: Fold, days: DayHashes, recipe: Recipe, timeframe: str, device: str) -> str:
    """Address of one window's scores: the candle days of the window and its warm-up, recipe, function and library versions, device."""
    first = reach(days, _utc(fold.train_start_ms).date(), recipe.warmup_bars(timeframe), timeframe)
    basis = {
        "days": _between(days, first, _utc(fold.test_end_ms).date()),
        "window": [fold.train_start_ms, fold.train_end_ms, fold.test_start_ms, fold.test_end_ms],
        "recipe": recipe.hash,
        "timeframe": timeframe,
        "device": device,
        "versions": library_versions() | {"fit": FIT_VERSION, "label": LABEL_VERSION, "split": SPLIT_VERSION},
    }
    return content_hash(basis)


def _between(days: DayHashes, first: date, until: date) -> dict[str, str]:
    ordered = sorted(days)
    chosen = slice(bisect_left(ordered, f"{first:%Y%m%d}"), bisect_left(ordered, f"{until:%Y%m%d}"))
    return {day: days[day] for day in ordered[chosen]}


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, tz=UTC)
