"""A small world for end-to-end tests: 240 days of three real coins and the synthetic one, a short recipe, and commands run on it.

Worlds and finished nights are made once per pytest run, below its base folder, whichever test module asks first.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import yaml

from engine_assets.partitions import MODEL_KEYS, make_partitions
from engine_assets.work.night import Night
from engine_resources.library import Library
from engine_resources.settings import REPOSITORY, Settings, load_settings
from hamilton_client.bundle import read_bundle
from hamilton_client.core.contracts import ChampionPointer
from hamilton_client.pointer import read_pointer
from hamilton_client.store import LocalStore

QUICKSTART = REPOSITORY / "data/quickstart"
FIRST_DAY, CLOCK = datetime(2022, 11, 1, tzinfo=UTC), datetime(2023, 7, 1, 2, tzinfo=UTC)
NIGHTS = (CLOCK - timedelta(days=1), CLOCK)
SYNTHETIC = "SYNTHETICUSDT"
GOOD = ("BTCUSDT", "ETHUSDT", "SOLUSDT", SYNTHETIC)
TIMEFRAMES = ("1h", "4h", "1d")
REGIMES = ("TREND", "RANGE", "PANIC", "ILLIQUID")
# Test windows end on multiples of test_days since the epoch; 2023-07-01 is day 19539 = 9 · 13 · 167: between the two nights a 4h window
# closes and no other.
GEOMETRY = {
    "15m": {"train_days": 20, "test_days": 5, "purge_days": 2},
    "1h": {"train_days": 40, "test_days": 10, "purge_days": 2},
    "4h": {"train_days": 60, "test_days": 9, "purge_days": 2},
    "1d": {"train_days": 80, "test_days": 14, "purge_days": 4},
}
FEATURES: dict[str, list[Any]] = {
    "return": [1, 4, 8, 24],
    "volatility": [24],
    "zscore": [24],
    "rsi": [14],
    "efficiency_ratio": [12],
    "volume_zscore": [24, 72],
    "volume_ratio": [[4, 48]],
    "hour_sin": [],
}
CUT = pl.col("ts") >= FIRST_DAY
ASSETS = [dg.AssetKey(name) for name in ("raw", "features", "regimes", "folds", "shadow", "champions")] + MODEL_KEYS


@dataclass(frozen=True)
class World:
    """A candle folder, a configuration and a home; `environ` is what a command sees besides."""

    source: Path
    config: Path
    home: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a command in this world, over that of the tests."""
        ours = {"HURACAN_HOME": str(self.home), "HURACAN_CONFIG": str(self.config), "HURACAN_SOURCE__PATH": str(self.source)}
        return ours | {"HURACAN_TRAINING__BACKEND": "threads"} | self.environ

    @property
    def bucket(self) -> Path:
        return self.home / "bucket"

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.bucket)

    def settings(self) -> Settings:
        return load_settings(environ=self.variables)

    def night(self, as_of: datetime = CLOCK) -> Night:
        return Night(self.settings(), as_of)

    def library(self) -> Library:
        return Library(self.settings().database_url)

    @contextmanager
    def dagster(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.home / "dagster")) as instance:
            yield instance

    def partition_states(self) -> dict[str, dict[str, str]]:
        """What the Dagster page shows: asset → partition (`BTCUSDT|1h`) → MATERIALIZED, FAILED, …"""
        partitions = make_partitions(TIMEFRAMES)
        with self.dagster() as instance:
            keys = partitions.get_partition_keys(dynamic_partitions_store=instance)
            found = {asset.to_user_string(): instance.get_status_by_partition(asset, keys, partitions) or {} for asset in ASSETS}
        return {asset: {key: state.value for key, state in states.items() if state} for asset, states in found.items()}

    def ledger(self, as_of: datetime = CLOCK) -> dict[str, dict[str, Any]]:
        """Ledger lines of a night by file name below `ledger/`, such as `raw/BTCUSDT.1h.json`."""
        folder = self.bucket / "runs" / f"run_{as_of:%Y%m%d_%H%M%S}" / "ledger"
        return {str(path.relative_to(folder)): json.loads(path.read_bytes()) for path in sorted(folder.rglob("*.json"))}

    def pointers(self) -> dict[str, ChampionPointer]:
        """Every pointer in the bucket, each with its bundle fetched and verified byte by byte."""
        found = [read_pointer(self.store, path.parent.name) for path in sorted(self.bucket.glob("champion/*/latest.json"))]
        for pointer in found:
            read_bundle(self.store, pointer)
        return {pointer.symbol: pointer for pointer in found}

    def files(self, pattern: str) -> dict[str, tuple[int, bytes]]:
        """Bucket objects by key: when each was written (ns) and what it holds."""
        return {
            str(path.relative_to(self.bucket)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(self.bucket.glob(pattern))
            if path.is_file()
        }

    def copy(self, home: Path) -> "World":
        """The same world with a home of its own that starts as this one is now."""
        shutil.copytree(self.home, home)
        return World(self.source, self.config, home, self.environ)


def huracan(world: World, *arguments: str, program: str = "huracan", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. No command ever shows a traceback."""
    done = subprocess.run(command(program, *arguments), env=environment(world, environ), capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def hamilton(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the thin client to its end."""
    return huracan(world, *arguments, program="hamilton")


def start(world: World, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Start a command as leader of a process group of its own; its output goes to `world.home`.log."""
    world.home.parent.mkdir(parents=True, exist_ok=True)
    with world.home.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            command("huracan", *arguments), env=environment(world, environ), stdout=log, stderr=log, text=True, start_new_session=True
        )


def command(program: str, *arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name(program)), *arguments]


def environment(world: World, more: dict[str, str]) -> dict[str, str]:
    """The tests' own environment without what belongs to another Huracan."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HURACAN_", "DAGSTER_", "MLFLOW_"))}
    return plain | world.variables | {"COLUMNS": "200"} | more


def make_config(folder: Path) -> Path:
    """`config/` with a short recipe; all else is as shipped."""
    shutil.copytree(REPOSITORY / "config", folder)
    path = folder / "engine.yaml"
    engine = yaml.safe_load(path.read_text())
    recipe = engine["recipes"]["definitions"]["base"]
    recipe["features"] = FEATURES
    recipe["model"] |= {"rounds": 20, "min_data_in_leaf": 20}
    recipe["calibration"] = {"knots": 8, "min_effective_rows": 60, "shrinkage_rows": 40}
    engine["validation"]["walk_forward"]["geometry"] = GEOMETRY
    path.write_text(yaml.safe_dump(engine, sort_keys=False))
    return folder


def make_source(folder: Path, candles: dict[str, pl.DataFrame | bytes]) -> Path:
    """A candle folder laid out like `data/quickstart`; bytes are written as they are."""
    (folder / "candles/1h").mkdir(parents=True)
    shutil.copy(QUICKSTART / "market.json", folder)
    for name, content in candles.items():
        path = folder / f"candles/1h/{name}.parquet"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.write_parquet(path)
    quotes = pl.read_csv(QUICKSTART / "spreads.csv", infer_schema=False)
    known = set(quotes["symbol"])
    others = pl.DataFrame({"symbol": [name for name in candles if name not in known]}, schema={"symbol": pl.String})
    made_up = others.with_columns(spread_bps=pl.lit("2.0"), source=pl.lit("made up for a test"), as_of=pl.lit("2023-06-30T00:00:00Z"))
    pl.concat([quotes.filter(pl.col("symbol").is_in(list(candles))), made_up], how="diagonal").write_csv(folder / "spreads.csv")
    return folder


def quickstart(symbol: str) -> pl.DataFrame:
    """The newest 240 days of a bundled coin."""
    return pl.read_parquet(QUICKSTART / f"candles/1h/{symbol}.parquet").filter(CUT).sort("ts")


def good_world(base: Path) -> World:
    """Four good coins; no night has run."""
    folder = base / "good"
    if not folder.exists():
        make_source(folder / "source", {symbol: quickstart(symbol) for symbol in GOOD})
        make_config(folder / "config")
    return World(folder / "source", folder / "config", folder / "never")


def finished_world(base: Path) -> World:
    """The good world after two nights. Look, do not touch: take a `copy` to change something."""
    fresh = good_world(base)
    world = World(fresh.source, fresh.config, base / "good/home")
    if not world.home.exists():
        done = huracan(world, "nightly", "--nights", "2", "--json")
        assert done.returncode == 0, done.stderr
        (base / "good/nights.json").write_text(done.stdout)
    return world
