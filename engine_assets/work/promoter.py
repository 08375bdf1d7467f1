"""Move the champion pointer: one compare-and-swap in the table, then its projections — MLflow aliases first, the pointer file last."""

from dataclasses import replace

from engine_assets.work.night import Night
from engine_assets.work.prepare import Detail
from engine_assets.work.publish import CoinBundles, CoinPlan
from engine_resources.library import Library
from engine_resources.records import environment
from engine_resources.registry import BundleVersion, Registry
from engine_resources.tables import ChampionRow, ModelRow
from hamilton_client.bundle import MODEL, PackedBundle, fetch
from hamilton_client.core import layout
from hamilton_client.core.contracts import ChampionIndex, ChampionPointer, HuracanError, SegmentMetrics, content_hash
from hamilton_client.pointer import read_index, read_pointer, write_index, write_pointer

HEADLINES = ("sharpe", "hit_rate", "net_bps", "max_drawdown_pct", "sample_size", "psr", "dsr")
ATTEMPTS = 5


class Promoter:
    """Publishes composed bundles. Running it again for the same night changes nothing and repairs what a kill left behind."""

    def __init__(self, night: Night, library: Library, registry: Registry) -> None:
        self.night, self.library, self.registry = night, library, registry
        self.environment = environment()

    def publish(self, plan: CoinPlan, bundles: CoinBundles) -> Detail:
        """Record models, move the pointer of one coin, and project it. Raises HuracanError when others keep winning the swap."""
        self._record(plan)
        kind = "refresh" if any(pointer.model_id for pointer in bundles.segments.values()) else "rules_only"
        row = self._swap(plan, bundles, kind)
        if not _is(row, bundles):
            why = "an old night never promotes" if row.as_of > self.night.as_of else "this night's bundle was rolled back"
            return {"kind": "kept", "generation": row.generation, "note": f"{row.bundle} stays champion: {why}"}
        versions = self._register(plan, bundles, kind)
        self.library.set_active(plan.symbol, [pointer.model_id for pointer in row.segments.values() if pointer.model_id])
        write_pointer(self.night.store, row.pointer())
        champions = sorted(key for key, pointer in row.segments.items() if pointer.model_id)
        return {"kind": kind, "generation": row.generation, "champions": ", ".join(champions) or "none", **versions}

    def _record(self, plan: CoinPlan) -> None:
        night, path = self.night, layout.bundle(plan.symbol, self.night.as_of, challenger=True)
        rows, metrics = [], {}
        for key, pointer in plan.candidates.items():
            if pointer.model_id is None:
                continue
            timeframe, regime = layout.split_segment(key)
            old = plan.champion.segments.get(key) if plan.champion else None
            rows.append(
                ModelRow(
                    model_id=pointer.model_id,
                    parent_id=old.model_id if old else None,
                    kind="refresh",
                    created_at=night.published_at,
                    s3_path=f"{path}/{key}/model.txt",
                    features_used=night.recipe.features.names,
                    params=night.recipe.model.model_dump(),
                    symbol=plan.symbol,
                    timeframe=timeframe,
                    regime=regime,
                    lineage=night.recipe.hash,
                    as_of=night.as_of,
                )
            )
            metrics[pointer.model_id] = plan.metrics[key]
        self.library.record_models(rows)
        self.library.record_metrics(metrics)

    def _swap(self, plan: CoinPlan, bundles: CoinBundles, kind: str) -> ChampionRow:
        """Write the next generation, unless this bundle was champion already or a later night's is."""
        for _ in range(ATTEMPTS):
            current = self.library.champion(plan.symbol)
            if current is not None and (current.as_of > self.night.as_of or self._was_champion(plan.symbol, bundles)):
                return current
            generation = current.generation if current else 0
            row = ChampionRow(
                symbol=plan.symbol,
                generation=generation + 1,
                bundle=bundles.champion_path,
                sha256=bundles.champion.sha256,
                size=bundles.champion.size,
                model_id=layout.bundle(plan.symbol, self.night.as_of).replace("/", "_"),
                segments=bundles.segments,
                as_of=self.night.as_of,
                promoted_at=self.night.published_at,
                previous=current.bundle if current else None,
                synthetic=self.night.source.is_synthetic(plan.symbol),
            )
            reason = ", ".join(f"{key}: {pointer.state}" for key, pointer in sorted(bundles.segments.items()))
            snapshot = {key: value.model_dump(mode="json") for key, value in plan.metrics.items()} | {"refused": list(bundles.refused)}
            if self.library.promote(row, generation, reason, kind, snapshot):
                return row
        raise HuracanError(f"{plan.symbol}: {ATTEMPTS} promotions in a row were overtaken by another writer; end it and resume")

    def _was_champion(self, symbol: str, bundles: CoinBundles) -> bool:
        return any(_is(row, bundles) for row in self.library.history(symbol))

    def _register(self, plan: CoinPlan, bundles: CoinBundles, kind: str) -> Detail:
        """Champion bundle first, the night's bundle last, so that the alias `challenger` ends on the newest version."""
        tags = self._tags(plan, bundles)
        found: Detail = {}
        if any(pointer.model_id for pointer in bundles.segments.values()):
            version = self._version(plan, bundles.champion, bundles, tags | {"kind": kind})
            self.registry.register(version)
            found["champion_version"] = self.registry.set_champion(plan.symbol, bundles.champion.sha256)
        if any(pointer.model_id for pointer in plan.candidates.values()):
            version = self._version(plan, bundles.challenger, bundles, tags | {"kind": "refresh"})
            found["challenger_version"] = self.registry.register(version)
        return found

    def _version(self, plan: CoinPlan, packed: PackedBundle, bundles: CoinBundles, tags: dict[str, str]) -> BundleVersion:
        return BundleVersion(
            symbol=plan.symbol,
            run_id=self.night.run_id,
            files=packed.files,
            sha256=packed.sha256,
            metrics=_headlines(plan.metrics),
            params={name: str(value) for name, value in self.night.recipe.model.model_dump().items()},
            tags=tags,
            plots={"coin.svg": bundles.page} if bundles.page else {},
            description=self._description(plan.symbol, packed),
        )

    def _description(self, symbol: str, packed: PackedBundle) -> str:
        models = ", ".join(sorted(name.removesuffix(f"/{MODEL}") for name in packed.files if name.endswith(f"/{MODEL}")))
        synthetic = " — SYNTHETIC coin, never traded" if self.night.source.is_synthetic(symbol) else ""
        return f"models: {models}. {self.night.policy.market.proxy_note}{synthetic}"

    def _tags(self, plan: CoinPlan, bundles: CoinBundles) -> dict[str, str]:
        return {
            "run": self.night.run_id,
            "recipe": self.night.recipe.name,
            "recipe_hash": self.night.recipe.hash,
            "data_hash": content_hash(self.night.days(plan.symbol)),
            "code_version": self.environment.git_commit,
            "evidence": self.night.evidence,
            "market": self.night.policy.market.proxy_note or self.night.policy.market.instrument,
        }

    def write_index(self) -> None:
        """Project the whole champion table into the one object that clients poll."""
        write_index(self.night.store, _index_of(self.library))


def rollback(night: Night, library: Library, registry: Registry, symbol: str, generation: int | None) -> ChampionRow:
    """Make an earlier bundle champion again, as a new generation (default: the one before). Raises HuracanError where there is none."""
    history = {row.generation: row for row in library.history(symbol)}
    current = library.champion(symbol)
    earlier = sorted(number for number, row in history.items() if current is not None and row.sha256 != current.sha256)
    if current is None or not earlier:
        raise HuracanError(f"{symbol} has no earlier champion to roll back to; see: huracan champions history {symbol}")
    chosen = history.get(earlier[-1] if generation is None else generation)
    if chosen is None:
        raise HuracanError(f"{symbol} has no generation {generation}; it has {', '.join(map(str, history))}")
    fetch(night.store, chosen.bundle, chosen.sha256, chosen.size)  # a bundle that does not verify is no way back
    row = replace(chosen, generation=current.generation + 1, promoted_at=night.published_at, as_of=current.as_of, previous=current.bundle)
    reason = f"rollback to generation {chosen.generation}"
    if not library.promote(row, current.generation, reason, "rollback", {"from_generation": current.generation}):
        raise HuracanError(f"{symbol}: another writer promoted meanwhile; look again: huracan champions show {symbol}")
    reconcile(night, library, registry)
    return row


def reconcile(night: Night, library: Library, registry: Registry) -> list[str]:
    """Make every projection follow the champion table: pointer files, MLflow alias, index. Returns what was repaired, a line each.

    Raises HuracanError for coins that cannot be repaired, once all others and the index are.
    """
    repaired, faults = [], []
    for symbol in library.champions():
        try:
            repaired += _repair(symbol, night, library, registry)
        except HuracanError as fault:
            faults.append(str(fault) if str(fault).startswith(symbol) else f"{symbol}: {fault}")
    index = _index_of(library)
    try:
        sound = read_index(night.store) == index
    except HuracanError:
        sound = False
    if not sound:
        write_index(night.store, index)
        repaired.append(f"index now names {len(index.champions)} champions")
    if faults:
        raise HuracanError("\n".join([*repaired, *faults]))
    return repaired


def _index_of(library: Library) -> ChampionIndex:
    return ChampionIndex(champions={row.symbol: row.pointer() for row in library.champions().values()})


def _repair(symbol: str, night: Night, library: Library, registry: Registry) -> list[str]:
    repaired = []
    try:
        pointer = read_pointer(night.store, symbol)
    except HuracanError as fault:
        pointer = None
        repaired.append(f"{symbol}: pointer was unusable ({fault})")
    row = library.champion(symbol)
    assert row is not None
    if pointer is not None and _is_ahead(pointer, row):
        row = library.restore_generation(symbol, pointer.generation, night.published_at)
        repaired.append(f"{symbol}: table was behind the bucket, now generation {row.generation}")
    if pointer != row.pointer():
        write_pointer(night.store, row.pointer())
        repaired.append(f"{symbol}: pointer now generation {row.generation}")
    if any(entry.model_id for entry in row.segments.values()):
        repaired += _project(row, night, registry)
    return repaired


def _is_ahead(pointer: ChampionPointer, row: ChampionRow) -> bool:
    """Whether clients have seen a generation that this table does not know, or knows as another bundle: it came from a backup."""
    return pointer.generation > row.generation or (pointer.generation == row.generation and pointer.sha256 != row.sha256)


def _project(row: ChampionRow, night: Night, registry: Registry) -> list[str]:
    """Move the MLflow alias; a version that MLflow lost, or that a kill came before, is registered again from the bucket."""
    try:
        return [f"{row.symbol}: MLflow alias champion moved"] if registry.project(row.symbol, row.sha256) else []
    except HuracanError:
        files = fetch(night.store, row.bundle, row.sha256, row.size)
        run_id = layout.run_id(row.as_of)
        registry.register(
            BundleVersion(symbol=row.symbol, run_id=run_id, files=files, sha256=row.sha256, tags={"run": run_id, "kind": "restored"})
        )
        registry.project(row.symbol, row.sha256)
        return [f"{row.symbol}: {row.bundle} registered with MLflow again"]


def _is(row: ChampionRow, bundles: CoinBundles) -> bool:
    return (row.sha256, row.bundle) == (bundles.champion.sha256, bundles.champion_path)


def _headlines(metrics: dict[str, SegmentMetrics]) -> dict[str, float | None]:
    return {f"{key}.{name}": getattr(found, name) for key, found in metrics.items() for name in HEADLINES}
