"""The champion pointer: one small object per coin that names the bundle in force, its history, and the index over all coins."""

import json
import os
import re
from pathlib import Path

from pydantic import ValidationError

from hamilton_client.core import layout
from hamilton_client.core.contracts import ChampionIndex, ChampionPointer, HuracanError
from hamilton_client.store import NotFound, ObjectStore

SHA256 = re.compile(r"[0-9a-f]{64}")


class BadPointer(HuracanError):  # noqa: N818  (it names what was met, as NotFound does)
    """A pointer that must not be followed."""


def read_pointer(store: ObjectStore, symbol: str) -> ChampionPointer:
    """The pointer in force for a coin. Raises NotFound where it has none, BadPointer where it is damaged or another coin's."""
    key = layout.champion_pointer(symbol)
    try:
        body = store.get(key)
    except NotFound:
        raise NotFound(f"{symbol} has no champion in {store.url}; make one with: huracan nightly --coins {symbol}") from None
    try:
        pointer = ChampionPointer.from_bytes(body)
    except ValidationError as fault:
        raise BadPointer(f"{key} in {store.url} is damaged ({_first(fault)}); repair it with: huracan reconcile") from None
    whole = SHA256.fullmatch(pointer.sha256) and pointer.generation > 0 and pointer.bucket_path.startswith(("models/", "challengers/"))
    if pointer.symbol != symbol or not whole:
        raise BadPointer(f"{key} in {store.url} is not a pointer of {symbol} to a bundle; repair it with: huracan reconcile")
    return pointer


def write_pointer(store: ObjectStore, pointer: ChampionPointer) -> None:
    """Write the history object, then `latest.json`. Raises HuracanError where that would go back, or change what a generation means."""
    history = layout.champion_history(pointer.symbol, pointer.generation)
    if not store.put(history, pointer.to_bytes(), if_absent=True):
        held = ChampionPointer.from_bytes(store.get(history))
        if (held.bucket_path, held.sha256) != (pointer.bucket_path, pointer.sha256):
            raise HuracanError(f"{history} already names {held.bucket_path}; give {pointer.bucket_path} the next generation")
    try:
        current = read_pointer(store, pointer.symbol).generation
    except (NotFound, BadPointer):
        current = 0
    if current > pointer.generation:
        raise HuracanError(
            f"{pointer.symbol}: generation {current} is in force, {pointer.generation} would go back; a rollback is a new generation"
        )
    store.put(layout.champion_pointer(pointer.symbol), pointer.to_bytes())


def read_index(store: ObjectStore) -> ChampionIndex:
    """All pointers in one object; empty where there is none yet. Raises BadPointer where it is damaged."""
    try:
        return ChampionIndex.from_bytes(store.get(layout.CHAMPION_INDEX))
    except NotFound:
        return ChampionIndex(champions={})
    except ValidationError as fault:
        raise BadPointer(
            f"{layout.CHAMPION_INDEX} in {store.url} is damaged ({_first(fault)}); repair it with: huracan reconcile"
        ) from None


def write_index(store: ObjectStore, index: ChampionIndex) -> None:
    """Replace the index."""
    store.put(layout.CHAMPION_INDEX, index.to_bytes())


def _first(fault: ValidationError) -> str:
    problem = fault.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ")


class PointerWatch:
    """Remembers the greatest generation seen of every coin, in `file` where given, and refuses to go back."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.seen: dict[str, int] = {}
        if file is not None and file.exists():
            try:
                self.seen = {str(symbol): int(generation) for symbol, generation in json.loads(file.read_text()).items()}
            except (ValueError, TypeError, AttributeError):
                raise HuracanError(f"{file} is damaged; delete it if you trust the bucket as it is now") from None

    def check(self, pointer: ChampionPointer) -> None:
        """Raise BadPointer where `pointer` is older than one that was accepted."""
        seen = self.seen.get(pointer.symbol, 0)
        if pointer.generation < seen:
            advice = f", or delete {self.file} if the bucket was rebuilt on purpose" if self.file else ""
            raise BadPointer(
                f"{pointer.symbol}: the bucket offers generation {pointer.generation}, this client has used {seen}: "
                f"the bucket was set back. Run huracan reconcile{advice}"
            )

    def accept(self, pointer: ChampionPointer) -> None:
        """Check, then remember; the file is replaced atomically."""
        self.check(pointer)
        if self.seen.get(pointer.symbol) == pointer.generation:
            return
        self.seen[pointer.symbol] = pointer.generation
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            partial.write_text(json.dumps(self.seen, sort_keys=True))
            partial.replace(self.file)
