"""The Brain Library's schema: its tables (created by `migrations/`), their rows, and how to open the database that holds them."""

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.types import TypeDecorator

from hamilton_client.core.contracts import ChampionPointer, HuracanError, Regime, SegmentPointer, canonical_json

METADATA = sa.MetaData()
BUSY_TIMEOUT_SECONDS = 60
DATABASE_ADVICE = "use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant, always UTC: SQLite has no time zones and would hand back a naive one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Refuse naive instants; store the rest as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive instant {value!r}: the library stores aware instants only")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Give back an aware UTC instant."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


MODELS = sa.Table(
    "models",
    METADATA,
    sa.Column("model_id", sa.String(80), primary_key=True),
    sa.Column("parent_id", sa.String(80)),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("s3_path", sa.String(300), nullable=False),
    sa.Column("features_used", sa.JSON, nullable=False),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("symbol", sa.String(20), nullable=False, index=True),
    sa.Column("timeframe", sa.String(4), nullable=False),
    sa.Column("regime", sa.String(8), nullable=False),
    sa.Column("lineage", sa.String(64), nullable=False),
    sa.Column("as_of", UtcDateTime, nullable=False),
    sa.Column("status", sa.String(8), sa.CheckConstraint("status in ('active', 'inactive')", name="model_status"), nullable=False),
)

MODEL_METRICS = sa.Table(
    "model_metrics",
    METADATA,
    sa.Column("model_id", sa.String(80), sa.ForeignKey("models.model_id", name="metrics_of_model", ondelete="CASCADE"), primary_key=True),
    sa.Column("sharpe", sa.Float),
    sa.Column("hit_rate", sa.Float),
    sa.Column("drawdown", sa.Float, nullable=False),
    sa.Column("net_bps", sa.Float),
    sa.Column("window", sa.String(24), quote=True),
    sa.Column("cost_bps", sa.Float),
    sa.Column("promoted", sa.Boolean, nullable=False),
    sa.Column("sample_size", sa.Integer, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)


def _pointer_columns() -> list[sa.Column[object]]:
    """The champion pointer, as both `champion` and `champion_history` hold it."""
    return [
        sa.Column("bundle", sa.String(300), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("model_id", sa.String(80), nullable=False),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("as_of", UtcDateTime, nullable=False),
        sa.Column("promoted_at", UtcDateTime, nullable=False),
        sa.Column("previous", sa.String(300)),
        sa.Column("synthetic", sa.Boolean, nullable=False),
    ]


CHAMPION = sa.Table(
    "champion",
    METADATA,
    sa.Column("symbol", sa.String(20), primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    *_pointer_columns(),
)

CHAMPION_HISTORY = sa.Table(
    "champion_history",
    METADATA,
    sa.Column("symbol", sa.String(20), primary_key=True),
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    *_pointer_columns(),
)

PROMOTIONS = sa.Table(
    "promotions",
    METADATA,
    sa.Column("symbol", sa.String(20), primary_key=True),
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("from_model_id", sa.String(80)),
    sa.Column("to_model_id", sa.String(80), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("snapshot", sa.JSON, nullable=False),
)

LIVE_TRADES = sa.Table(
    "live_trades",
    METADATA,
    sa.Column("trade_id", sa.String(80), primary_key=True),
    sa.Column("time", UtcDateTime, nullable=False, index=True),
    sa.Column("symbol", sa.String(20), nullable=False, index=True),
    sa.Column("side", sa.String(5), sa.CheckConstraint("side in ('long', 'short')", name="trade_side"), nullable=False),
    sa.Column("size", sa.Float, nullable=False),
    sa.Column("entry", sa.Float, nullable=False),
    sa.Column("exit", sa.Float),
    sa.Column("fees", sa.Float, nullable=False),
    sa.Column("net_pnl", sa.Float),
    sa.Column("model_id", sa.String(80)),
    sa.Column("decision_id", sa.String(80), index=True),
    sa.Column("closed_at", UtcDateTime),
    sa.Column("attribution", sa.JSON),
)

DAILY_EQUITY = sa.Table(
    "daily_equity",
    METADATA,
    sa.Column("date", sa.Date, primary_key=True),
    sa.Column("nav", sa.Float, nullable=False),
    sa.Column("max_dd", sa.Float, nullable=False),
    sa.Column("turnover", sa.Float, nullable=False),
    sa.Column("fees_bps", sa.Float, nullable=False),
)

TRIALS = sa.Table(
    "trials",
    METADATA,
    sa.Column("recipe_hash", sa.String(64), primary_key=True),
    sa.Column("segment", sa.String(40), primary_key=True),
    sa.Column("first_seen", UtcDateTime, nullable=False),
    sa.Column("sharpe", sa.Float),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChampionRow:
    """One generation of one coin's champion: the row of `champion` and of `champion_history`."""

    symbol: str
    generation: int
    bundle: str
    sha256: str
    size: int
    model_id: str
    segments: Mapping[str, SegmentPointer]
    as_of: datetime
    promoted_at: datetime
    previous: str | None = None
    synthetic: bool = False

    def pointer(self) -> ChampionPointer:
        """The pointer file that projects this row into the bucket."""
        return ChampionPointer(bucket_path=self.bundle, **_without(values(self), "bundle"))

    @classmethod
    def from_pointer(cls, pointer: ChampionPointer) -> Self:
        """Inverse of `pointer`: what a lost table is rebuilt from."""
        stored = {name: getattr(pointer, name) for name in ChampionPointer.model_fields}
        return cls(bundle=pointer.bucket_path, **_without(stored, "bucket_path", "schema_version"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One trained segment model. `kind` is refresh, challenger, rollback or rules_only; `created_at` is the first recording."""

    model_id: str
    parent_id: str | None
    kind: str
    created_at: datetime
    s3_path: str
    features_used: tuple[str, ...]
    params: Mapping[str, Any]
    symbol: str
    timeframe: str
    regime: Regime
    lineage: str
    as_of: datetime
    status: Literal["active", "inactive"] = "inactive"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRow:
    """One move of a champion; `snapshot` is the evidence it was decided on."""

    symbol: str
    generation: int
    from_model_id: str | None
    to_model_id: str
    kind: str
    reason: str
    at: datetime
    snapshot: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeRow:
    """One live or paper trade. `size` in base asset, `fees` and `net_pnl` in quote currency; open while `exit` is None.

    `attribution` shares `net_pnl` among the engines that voted its way.
    """

    trade_id: str
    time: datetime
    symbol: str
    side: Literal["long", "short"]
    size: float
    entry: float
    exit: float | None
    fees: float
    net_pnl: float | None
    model_id: str | None
    decision_id: str | None = None
    closed_at: datetime | None = None
    attribution: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EquityRow:
    """The account at the end of one UTC day: `nav` and `turnover` in quote currency, `max_dd` in percent."""

    date: date
    nav: float
    max_dd: float
    turnover: float
    fees_bps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One configuration looked at: a recipe on one segment (`BTCUSDT_TREND_1h`). `sharpe` is annualised, None when undefined."""

    recipe_hash: str
    segment: str
    first_seen: datetime
    sharpe: float | None


def values(row: Any) -> dict[str, Any]:
    """The column values of a row record, not recursing into them."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


def database_url(url: str) -> URL:
    """Parse a database URL; PostgreSQL gets the psycopg2 driver (SQLAlchemy 2.1 would pick psycopg 3, which Dagster cannot use).

    Raises HuracanError for anything but SQLite and PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise HuracanError(f"the database URL cannot be parsed; {DATABASE_ADVICE}") from None
    if parsed.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        parsed = parsed.set(drivername="postgresql+psycopg2")
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg2"}:
        raise HuracanError(f"database {parsed.render_as_string()} is not supported; {DATABASE_ADVICE}")
    return parsed


def open_engine(url: str) -> sa.Engine:
    """Make the SQLAlchemy engine of `url`; SQLite gets WAL, a busy timeout and foreign keys.

    Raises HuracanError for an unsupported URL or a missing driver.
    """
    parsed = database_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = sa.create_engine(
            parsed,
            json_serializer=lambda value: canonical_json(value).decode(),
            pool_pre_ping=not is_sqlite,
            connect_args={"timeout": BUSY_TIMEOUT_SECONDS} if is_sqlite else {},
        )
    except ModuleNotFoundError as missing:
        raise HuracanError(f"database {parsed.render_as_string()} needs {missing.name}: pip install psycopg2-binary") from None
    if is_sqlite:
        sa.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    for wait_seconds in (*(0.05 * n for n in range(1, 20)), None):  # SQLite's busy timeout does not cover this one statement
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if wait_seconds is None:
                raise
            time.sleep(wait_seconds)
    connection.execute("PRAGMA foreign_keys=ON")
