"""How large a run is: `FULL` is what counts, `TINY` is for the smoke test."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine_resources.settings import Settings, load_settings

FIRST = datetime(2023, 6, 30, 2, tzinfo=UTC)
SECOND = datetime(2023, 7, 1, 2, tzinfo=UTC)  # the bundled candles end with the day before it


@dataclass(frozen=True)
class Size:
    """`warm_coins` run a small night first, so that workers have imported everything; `rounds` None is the recipe's own."""

    backend: str
    coins: tuple[str, ...]
    warm_coins: tuple[str, ...]
    timeframes: tuple[str, ...]
    rounds: int | None
    serial_runs: int
    feature_rows: tuple[int, ...]
    repeats: int
    batch_coins: int
    fit_rows: int
    fit_windows: int


FULL = Size(
    backend="ray",
    coins=("BTCUSDT", "ETHUSDT", "XRPUSDT", "LTCUSDT", "DOGEUSDT"),
    warm_coins=("SYNTHETICUSDT", "XTZUSDT"),
    timeframes=("1h", "4h", "1d"),
    rounds=None,
    serial_runs=2,
    feature_rows=(2000, 21850),
    repeats=15,
    batch_coins=400,
    fit_rows=8760,
    fit_windows=6,
)
TINY = Size(
    backend="threads",
    coins=("BTCUSDT", "ETHUSDT"),
    warm_coins=(),
    timeframes=("1h",),
    rounds=1,
    serial_runs=1,
    feature_rows=(300, 600),
    repeats=1,
    batch_coins=3,
    fit_rows=400,
    fit_windows=1,
)


def settings_at(home: Path, size: Size) -> Settings:
    """The repository's configuration in a home of its own; nothing of the caller's environment enters."""
    rounds = {} if size.rounds is None else {"HURACAN_RECIPES__DEFINITIONS__BASE__MODEL__ROUNDS": str(size.rounds)}
    return load_settings(environ={"HURACAN_HOME": str(home), "HURACAN_TIMEFRAMES__TRAIN": json.dumps(size.timeframes), **rounds})
