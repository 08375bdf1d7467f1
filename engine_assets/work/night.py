"""A night: the instant it stands for, what it is told, and where it reads and writes. Small and picklable, for Ray workers."""

import importlib.metadata
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import polars as pl

from engine_assets.logic.plan import library_versions
from engine_resources.market import BundledSource, CandleSource
from engine_resources.settings import Settings
from hamilton_client.candles import CandleStore
from hamilton_client.core import layout
from hamilton_client.core.bars import closed
from hamilton_client.core.contracts import HuracanError
from hamilton_client.core.policy import Policy
from hamilton_client.core.recipe import Recipe
from hamilton_client.store import NotFound, ObjectStore, open_store

STAGES = ("raw", "features", "regimes", "folds", "models", "shadow", "champions")


@dataclass(frozen=True)
class Night:
    """Everything a unit needs. Cached parts are made where they are used and never travel."""

    settings: Settings
    as_of: datetime

    def __getstate__(self) -> tuple[Settings, datetime]:
        return self.settings, self.as_of

    def __setstate__(self, state: tuple[Settings, datetime]) -> None:
        object.__setattr__(self, "settings", state[0])
        object.__setattr__(self, "as_of", state[1])

    @property
    def run_id(self) -> str:
        """`run_20230701_020000`: the same instant is the same run."""
        return layout.run_id(self.as_of)

    @property
    def as_of_ms(self) -> int:
        """The instant in epoch ms."""
        return int(self.as_of.timestamp() * 1000)

    @property
    def base(self) -> str:
        """The stored base timeframe."""
        return self.settings.timeframes.base

    @property
    def published_at(self) -> datetime:
        """When the night's versions start to act. The bundled source has no clock that moves, so there it is `as_of` itself."""
        return self.as_of

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions that models depend on, for their `config.json`."""
        return library_versions() | {"huracan": importlib.metadata.version("huracan")}

    @property
    def evidence(self) -> str:
        """`point_in_time`, or `simulated` for a night recomputed more than a day after the source's clock passed it."""
        return "simulated" if self.source.now() - self.as_of > timedelta(days=1) else "point_in_time"

    @cached_property
    def store(self) -> ObjectStore:
        """The bucket."""
        return open_store(str(self.settings.bucket))

    @cached_property
    def candles(self) -> CandleStore:
        """Candle series in the bucket."""
        return CandleStore(self.store)

    @cached_property
    def source(self) -> CandleSource:
        """Where candles come from."""
        return BundledSource(self.settings.source_path)

    @cached_property
    def recipe(self) -> Recipe:
        """The champion recipe."""
        return self.settings.recipe()

    @cached_property
    def policy(self) -> Policy:
        """What is frozen into bundles."""
        return self.settings.policy()

    def recent(self, symbol: str) -> pl.DataFrame:
        """The last 40 days of closed base candles: what a cost snapshot is taken from."""
        candles = self.candles.read(symbol, self.base, since=self.as_of - timedelta(days=40), until=self.as_of)
        return closed(candles, self.base, self.as_of)

    def days(self, symbol: str) -> dict[str, str]:
        """Day hashes of the base candles this run reads of a coin, pinned by its raw stage. Raises HuracanError where raw did not run."""
        try:
            pinned: dict[str, str] = json.loads(self.store.get(layout.inputs(self.run_id, symbol)))
        except NotFound:
            raise HuracanError(f"{symbol}: the raw stage of {self.run_id} left no candles; materialize raw for this coin first") from None
        return pinned
