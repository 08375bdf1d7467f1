"""One night, stage by stage: hand units to the pool, write the ledger as they finish, publish champions, keep the run's records."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engine_assets.work.night import STAGES, Night
from engine_assets.work.prepare import Detail, features_unit, folds_unit, raw_unit, regimes_unit
from engine_assets.work.promoter import Promoter
from engine_assets.work.publish import bundles_unit, plan_key
from engine_assets.work.shadow import shadow_unit
from engine_assets.work.train import POOLED, models_unit, pooled_unit
from engine_assets.work.verdicts import judge
from engine_resources.library import Library
from engine_resources.pool import Outcome, Pool
from engine_resources.records import Failure, Heart, NightRecords, Unit, failure_of, read_ledger, utc_now
from engine_resources.registry import Registry
from hamilton_client.candles import LakeCard
from hamilton_client.core import layout
from hamilton_client.core.contracts import LedgerLine
from hamilton_client.core.layout import timeframe_minutes

UNIT_WORK: dict[str, Callable[..., Detail]] = {
    "raw": raw_unit,
    "features": features_unit,
    "regimes": regimes_unit,
    "folds": folds_unit,
    "models": models_unit,
    "shadow": shadow_unit,
}
RESUMABLE = ("raw", "features", "regimes", "folds", "models", "shadow")
HYBRID_BATCH = 8
UPSTREAM = "UpstreamMissing"  # failure type of a unit that was not tried, because what it needs is not there


@dataclass(frozen=True)
class StageEvent:
    """What became of one unit in one stage: shown as one event of its partition."""

    unit: Unit
    error: str | None
    detail: Detail


class NightRun:
    """The stages of one night over chosen units; every stage streams its events as they happen."""

    def __init__(self, night: Night, pool: Pool, library: Library, registry: Registry, heart: Heart, *, resume: bool = False) -> None:
        self.night, self.pool, self.library, self.registry, self.heart, self.resume = night, pool, library, registry, heart, resume
        self.records = NightRecords(night.store, night.run_id)
        self.started = utc_now()

    def stage(self, name: str, units: Sequence[Unit]) -> Iterator[StageEvent]:
        """Run one stage. A unit whose earlier stage did not end well in this run fails here with that reason; others go on."""
        self.heart.update(name)
        ready, blocked = self._split(name, units)
        for unit, reason in blocked.items():
            yield self._note(name, unit, Failure(UPSTREAM, reason), {})
        done = self._done(name, ready) if self.resume and name in RESUMABLE else {}
        todo = [unit for unit in ready if unit not in done]
        for unit, detail in done.items():
            yield StageEvent(unit, None, detail | {"resumed": True})
        finished = len(done) + len(blocked)
        for unit, failure, detail in self._work(name, todo):
            finished += 1
            self.heart.update(name, symbol=unit.symbol, progress=finished / max(1, len(units)), error=failure.message if failure else None)
            yield self._note(name, unit, failure, detail)

    def _split(self, name: str, units: Sequence[Unit]) -> tuple[list[Unit], dict[Unit, str]]:
        if name == STAGES[0]:
            self._claim_lake()
            return list(units), {}
        upstream = STAGES[STAGES.index(name) - 1]
        lines = {Unit(line.symbol, line.timeframe): line for line in read_ledger(self.night.store, self.night.run_id, upstream)}
        blocked = {}
        for unit in units:
            line = lines.get(unit)
            if line is None:
                blocked[unit] = (
                    f"stage {upstream} has not run for {unit.symbol}|{unit.timeframe} in {self.night.run_id}: materialize it first"
                )
            elif not line.ok:
                blocked[unit] = _root_cause(line)
        return [unit for unit in units if unit not in blocked], blocked

    def _claim_lake(self) -> None:
        source = self.night.source
        synthetic = tuple(symbol for symbol in source.symbols() if source.is_synthetic(symbol))
        LakeCard(market=source.market, note=source.note, synthetic=synthetic).ensure(self.night.store)

    def _done(self, name: str, units: Sequence[Unit]) -> dict[Unit, Detail]:
        """Units that a killed attempt of this run finished: resuming is a set difference."""
        lines = read_ledger(self.night.store, self.night.run_id, name)
        wanted = set(units)
        return {unit: line.detail for line in lines if line.ok and (unit := Unit(line.symbol, line.timeframe)) in wanted}

    def _work(self, name: str, units: Sequence[Unit]) -> Iterator[tuple[Unit, Failure | None, Detail]]:
        if name == "champions":
            yield from self._champions(units)
            return
        if name == "models" and units:
            self._pooled({unit.timeframe for unit in units})
        lost: dict[str, str] = {}
        for group in self._groups(name, units):
            for unit in (each for each in group if each.symbol in lost):
                yield unit, Failure(UPSTREAM, lost[unit.symbol]), {}
            ready = [unit for unit in group if unit.symbol not in lost]
            rows = max(self._train_rows(unit.timeframe) for unit in ready) if name == "models" and ready else 0
            for outcome in self.pool.imap(UNIT_WORK[name], ready, self.night, batch=1 if name == "models" else HYBRID_BATCH, rows=rows):
                if outcome.failure:
                    lost[outcome.unit.symbol] = f"{outcome.unit.timeframe} failed: {outcome.failure.message}"
                yield outcome.unit, outcome.failure, (outcome.value or {}) | {"seconds": round(outcome.seconds, 3)}

    def _groups(self, name: str, units: Sequence[Unit]) -> list[list[Unit]]:
        """Derived timeframes are resampled from the stored base, so `raw` brings in the base of every coin first."""
        if name != "raw":
            return [list(units)]
        is_base = [unit.timeframe == self.night.base for unit in units]
        return [[unit for unit, base in zip(units, is_base, strict=True) if base is wanted] for wanted in (True, False)]

    def _train_rows(self, timeframe: str) -> int:
        """Rows of one fit: what decides whether it is worth a share of a GPU."""
        return self.night.recipe.folds[timeframe].train_days * 1440 // timeframe_minutes(timeframe)

    def _pooled(self, timeframes: Set[str]) -> None:
        """Fit the pooled baseline before the coins are scored beside it; without it they are scored all the same.

        Over all real coins of this night, not those asked for now: a resumed night compares with what the whole one would have.
        """
        folded = {line.symbol for line in read_ledger(self.night.store, self.night.run_id, "folds") if line.ok}
        real = sorted(symbol for symbol in folded if not self.night.source.is_synthetic(symbol))
        if len(real) < 2:
            return
        units = [Unit(POOLED, timeframe) for timeframe in sorted(timeframes)]
        for outcome in self.pool.imap(pooled_unit, units, self.night, real, rows=self.night.settings.validation.pooled_max_rows):
            self._note("pooled", outcome.unit, outcome.failure, outcome.value or {})

    def _champions(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Failure | None, Detail]]:
        plans = judge(units, self.night, self.library)
        for unit in (each for each in units if each.symbol not in plans):
            yield (
                unit,
                Failure(UPSTREAM, f"{self.night.run_id} has no models of {unit.symbol} by this recipe: materialize models first"),
                {},
            )
        for symbol, plan in plans.items():
            self.night.store.put(plan_key(symbol, self.night), plan.to_bytes())
        promoter = Promoter(self.night, self.library, self.registry)
        by_coin = {symbol: [unit for unit in units if unit.symbol == symbol] for symbol in plans}
        for outcome in self.pool.imap(bundles_unit, [Unit(symbol, self.night.base) for symbol in plans], self.night):
            failure, detail = self._published(outcome, promoter, plans)
            for unit in by_coin[outcome.unit.symbol]:
                judged = ((*layout.split_segment(key), pointer.state) for key, pointer in plans[unit.symbol].candidates.items())
                states = {regime.value: state for timeframe, regime, state in judged if timeframe == unit.timeframe}
                yield unit, failure, detail | states
        promoter.write_index()

    def _published(self, outcome: Outcome[Any], promoter: Promoter, plans: dict[str, Any]) -> tuple[Failure | None, Detail]:
        if outcome.failure or outcome.value is None:
            return outcome.failure, {}
        try:
            return None, promoter.publish(plans[outcome.unit.symbol], outcome.value)
        except Exception as error:  # one coin's registry or table fault is that coin's failure, never the night's
            return failure_of(error), {}

    def _note(self, name: str, unit: Unit, failure: Failure | None, detail: Detail) -> StageEvent:
        error = f"{failure.exception_type}: {failure.message}" if failure else None
        self.records.ledger(name, unit, failure is None, error, detail)
        if failure is not None and failure.exception_type != UPSTREAM:
            self.records.failure(f"{name}.{unit.timeframe}", unit.symbol, failure)
        return StageEvent(unit, error, detail)

    def stopped(self, name: str, error: BaseException) -> None:
        """Record what stopped the whole night in one of its stages, an interrupt included."""
        self.heart.update("failed", error=f"{type(error).__name__}: {error}")
        self.records.failure(name, None, failure_of(error))

    @property
    def as_of(self) -> datetime:
        """The instant this night stands for."""
        return self.night.as_of


def _root_cause(line: LedgerLine) -> str:
    """Why the stage of a failed line failed, told once however many stages lie between."""
    kind, _, reason = (line.error or "").partition(": ")
    return reason if kind == UPSTREAM else f"stage {line.stage} failed: {line.error}"
