"""The Brain Library: models, metrics, trials, trades, and the champion table that decides what is champion."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import ColumnElement, Connection, RowMapping, Table, distinct, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from engine_resources import tables
from engine_resources.tables import ChampionRow, EquityRow, ModelRow, PromotionRow, TradeRow, TrialRow, values
from hamilton_client.core.contracts import HuracanError, Regime, SegmentMetrics, SegmentPointer
from hamilton_client.core.layout import check_symbol, segment

MIGRATION_LOCK = 0x48555241  # one advisory lock key per PostgreSQL database


class Library:
    """The tables of one database. Threads may share one; a forked process makes its own."""

    def __init__(self, url: str) -> None:
        self.engine = tables.open_engine(url)
        self._insert = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert

    def migrate(self) -> None:
        """Bring the schema up to date: concurrent callers wait for each other, a current schema is only looked at.

        Raises HuracanError when the database was written by a newer version.
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self.engine.connect() as connection:
            if MigrationContext.configure(connection).get_current_revision() == ScriptDirectory.from_config(config).get_current_head():
                return
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as unknown:
                where = self.engine.url.render_as_string()
                raise HuracanError(f"library {where} was made by a newer huracan ({unknown}): upgrade this installation") from None
            connection.commit()

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def champion(self, symbol: str) -> ChampionRow | None:
        """The current champion of `symbol`, or None before its first."""
        row = tables.CHAMPION
        return next(iter(map(_champion, self._read(row, row.c.symbol == symbol))), None)

    def champions(self) -> dict[str, ChampionRow]:
        """Every current champion, by symbol in order."""
        return {row["symbol"]: _champion(row) for row in self._read(tables.CHAMPION)}

    def history(self, symbol: str) -> tuple[ChampionRow, ...]:
        """Every generation `symbol` ever had, oldest first: what a rollback may go back to."""
        row = tables.CHAMPION_HISTORY
        return tuple(map(_champion, self._read(row, row.c.symbol == symbol)))

    def promotions(self, symbol: str) -> tuple[PromotionRow, ...]:
        """Every move of the champion of `symbol`, oldest first, with its reason and evidence."""
        row = tables.PROMOTIONS
        return tuple(PromotionRow(**found) for found in self._read(row, row.c.symbol == symbol))

    def promote(self, new: ChampionRow, expected_generation: int, reason: str, kind: str, snapshot: Mapping[str, Any]) -> bool:
        """Make `new` the champion iff the table still stands at `expected_generation` (0: no champion yet).

        One transaction writes the champion row, its history row and the promotions row, or nothing. Returns False when somebody
        else was faster: read again, test again. Raises HuracanError when the generation would not grow.
        """
        check_symbol(new.symbol)
        if new.generation <= expected_generation:
            raise HuracanError(
                f"{new.symbol}: generation {new.generation} does not follow {expected_generation}; every promotion and every "
                f"rollback takes a new one, here {expected_generation + 1}"
            )
        pointer = values(new) | {"segments": {key: value.model_dump(mode="json") for key, value in new.segments.items()}}
        with self.engine.begin() as connection:
            if not self._swap(connection, pointer, expected_generation):
                return False
            history = tables.CHAMPION_HISTORY
            connection.execute(history.insert().values(pointer))
            replaced = (history.c.symbol == new.symbol) & (history.c.generation == expected_generation)
            move = PromotionRow(
                symbol=new.symbol,
                generation=new.generation,
                from_model_id=connection.scalar(select(history.c.model_id).where(replaced)),
                to_model_id=new.model_id,
                kind=kind,
                reason=reason,
                at=new.promoted_at,
                snapshot=dict(snapshot),
            )
            connection.execute(tables.PROMOTIONS.insert().values(values(move)))
        return True

    def _swap(self, connection: Connection, pointer: dict[str, Any], expected_generation: int) -> bool:
        row = tables.CHAMPION.c
        if expected_generation == 0:
            return connection.execute(self._insert(tables.CHAMPION).values(pointer).on_conflict_do_nothing()).rowcount == 1
        unchanged = (row.symbol == pointer["symbol"]) & (row.generation == expected_generation)
        return connection.execute(update(tables.CHAMPION).where(unchanged).values(pointer)).rowcount == 1

    def restore_generation(self, symbol: str, bucket_generation: int, at: datetime) -> ChampionRow:
        """Lift the champion to generation max(table, bucket) + 1 after the database came back from a backup.

        Readers never accept a smaller generation, so they would ignore the restored table otherwise. Returns the row as it now
        stands. Raises HuracanError when the table has no champion of `symbol`.
        """
        while True:
            row = self.champion(symbol)
            if row is None:
                raise HuracanError(f"{symbol} has no champion row to lift; promote the bucket's pointer with expected_generation=0")
            lifted = replace(row, generation=max(row.generation, bucket_generation) + 1, promoted_at=at)
            reason = f"restored: table at generation {row.generation}, bucket at {bucket_generation}"
            if self.promote(lifted, row.generation, reason, "restore", {}):
                return lifted

    def record_models(self, rows: Sequence[ModelRow]) -> None:
        """Insert models, or refresh them by `model_id`; the `created_at`, `lineage` and `status` of a known model stay.

        Raises HuracanError, writing nothing, when an id is already taken by another lineage.
        """
        lineages = {row.model_id: row.lineage for row in rows}
        table = tables.MODELS
        with self.engine.begin() as connection:
            self._upsert(connection, table, map(values, rows), keep=("created_at", "lineage", "status"))
            taken = select(table.c.model_id, table.c.lineage).where(table.c.model_id.in_(lineages))
            for model_id, lineage in connection.execute(taken):
                if lineages[model_id] != lineage:
                    raise HuracanError(
                        f"model id {model_id} belongs to lineage {lineage[:16]}, not {lineages[model_id][:16]}; "
                        "two lineages of one segment in one night need two ids"
                    )

    def record_metrics(self, metrics: Mapping[str, SegmentMetrics]) -> None:
        """Insert or replace the out-of-sample metrics of recorded models, by `model_id`."""
        with self.engine.begin() as connection:
            self._upsert(connection, tables.MODEL_METRICS, (_metric_columns(*item) for item in metrics.items()))

    def models(self, symbol: str) -> tuple[ModelRow, ...]:
        """Every model of `symbol`, oldest night first."""
        row = tables.MODELS
        found = self._read(row, row.c.symbol == symbol, order=(row.c.as_of, row.c.model_id))
        return tuple(map(_model, found))

    def model(self, model_id: str) -> ModelRow | None:
        """One model, or None when the library does not know it."""
        row = tables.MODELS
        return next(iter(map(_model, self._read(row, row.c.model_id == model_id))), None)

    def metrics(self, model_ids: Iterable[str]) -> dict[str, SegmentMetrics]:
        """The recorded metrics of those models, by `model_id`."""
        row = tables.MODEL_METRICS
        found = self._read(row, row.c.model_id.in_(tuple(model_ids)))
        return {item["model_id"]: SegmentMetrics.model_validate(item["detail"], extra="ignore") for item in found}

    def set_active(self, symbol: str, model_ids: Iterable[str]) -> None:
        """Make exactly `model_ids` the active models of `symbol`; all its others become inactive."""
        row = tables.MODELS
        chosen = tuple(model_ids)
        with self.engine.begin() as connection:
            for status, condition in (("active", row.c.model_id.in_(chosen)), ("inactive", row.c.model_id.not_in(chosen))):
                connection.execute(update(row).where(row.c.symbol == symbol, condition).values(status=status))

    def segment_versions(self, symbol: str, before: datetime | None = None) -> dict[str, int]:
        """Count each segment's nights (distinct `as_of`, earlier than `before` where given), keyed `1h.TREND`.

        A night passes its own as_of: its resume would count itself otherwise.
        """
        row = tables.MODELS.c
        query = select(row.timeframe, row.regime, func.count(distinct(row.as_of))).where(row.symbol == symbol)
        if before is not None:
            query = query.where(row.as_of < before)
        with self.engine.connect() as connection:
            found = connection.execute(query.group_by(row.timeframe, row.regime)).all()
        return {segment(timeframe, Regime(regime)): nights for timeframe, regime, nights in found}

    def record_trials(self, rows: Sequence[TrialRow]) -> None:
        """Enter trials, once per recipe × segment; the first sight and the first known Sharpe stay, so a resume changes nothing."""
        table = tables.TRIALS
        with self.engine.begin() as connection:
            self._upsert(connection, table, map(values, rows), keep=("first_seen",), final_once="sharpe")

    def trial_count(self) -> int:
        """How many configurations were ever looked at."""
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(tables.TRIALS)) or 0

    def trial_sharpes(self) -> tuple[float, ...]:
        """The annualised Sharpe ratios of all trials that have one, in a fixed order."""
        return tuple(row["sharpe"] for row in self._read(tables.TRIALS, tables.TRIALS.c.sharpe.is_not(None)))

    def record_trades(self, rows: Sequence[TradeRow]) -> None:
        """Insert trades, or update open ones by `trade_id`; a closed trade is final, so an older journal part never reopens it."""
        with self.engine.begin() as connection:
            self._upsert(connection, tables.LIVE_TRADES, map(values, rows), final_once="exit")

    def record_equity(self, rows: Sequence[EquityRow]) -> None:
        """Insert or replace days of account equity."""
        with self.engine.begin() as connection:
            self._upsert(connection, tables.DAILY_EQUITY, map(values, rows))

    def trades(self, symbol: str) -> tuple[TradeRow, ...]:
        """The live trades of `symbol`, oldest first."""
        row = tables.LIVE_TRADES
        return tuple(TradeRow(**found) for found in self._read(row, row.c.symbol == symbol, order=(row.c.time, row.c.trade_id)))

    def equity(self) -> tuple[EquityRow, ...]:
        """Daily account equity, oldest first."""
        return tuple(EquityRow(**found) for found in self._read(tables.DAILY_EQUITY))

    def _read(self, table: Table, *where: ColumnElement[bool], order: Sequence[ColumnElement[Any]] = ()) -> Sequence[RowMapping]:
        """Whole rows, by primary key unless told otherwise."""
        query = select(table).where(*where).order_by(*(order or table.primary_key))
        with self.engine.connect() as connection:
            return connection.execute(query).mappings().all()

    def _upsert(
        self,
        connection: Connection,
        table: Table,
        rows: Iterable[Mapping[str, Any]],
        *,
        keep: Sequence[str] = (),
        final_once: str | None = None,
    ) -> None:
        """Insert rows or update known ones, except their `keep` columns; a row whose `final_once` column is set stays as it is."""
        found = list(rows)
        if not found:
            return
        statement = self._insert(table)
        fixed = {column.name for column in table.primary_key} | set(keep)
        statement = statement.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={name: value for name, value in statement.excluded.items() if name not in fixed},
            where=None if final_once is None else table.c[final_once].is_(None),
        )
        connection.execute(statement, found)


def _champion(row: RowMapping) -> ChampionRow:
    segments = {key: SegmentPointer.model_validate(value, extra="ignore") for key, value in row["segments"].items()}
    return ChampionRow(**{**row, "segments": segments})


def _model(row: RowMapping) -> ModelRow:
    return ModelRow(**{**row, "regime": Regime(row["regime"]), "features_used": tuple(row["features_used"])})


def _metric_columns(model_id: str, metrics: SegmentMetrics) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "sharpe": metrics.sharpe,
        "hit_rate": metrics.hit_rate,
        "drawdown": metrics.max_drawdown_pct,
        "net_bps": metrics.net_bps,
        "window": None if metrics.window is None else "/".join(metrics.window),
        "cost_bps": metrics.cost_bps,
        "promoted": metrics.promoted,
        "sample_size": metrics.sample_size,
        "detail": metrics.model_dump(mode="json"),
    }
