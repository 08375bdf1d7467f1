"""What the stages leave in the bucket beside candles: parquet frames, yearly chunks, and content-addressed fold results."""

import io
from collections.abc import Iterator, MutableMapping

import polars as pl

from hamilton_client.core import layout
from hamilton_client.core.contracts import HuracanError
from hamilton_client.store import NotFound, ObjectStore


def read_frame(store: ObjectStore, key: str) -> pl.DataFrame:
    """Read one parquet object. Raises NotFound, or HuracanError where the object is damaged."""
    body = store.get(key)
    try:
        return pl.read_parquet(io.BytesIO(body))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:  # some damaged footers make the reader panic
        raise HuracanError(f"{key} in {store.url} is not readable parquet ({error}); delete it, the next night makes it again") from None


def write_frame(store: ObjectStore, key: str, frame: pl.DataFrame, *, if_absent: bool = False) -> bool:
    """Write one frame as parquet, atomically. Returns False where `if_absent` found an object."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=3, statistics=False)
    return store.put(key, buffer.getvalue(), if_absent=if_absent)


class StoredFolds(MutableMapping[str, pl.DataFrame]):
    """Fold results of one series in the bucket, by content address; a key that exists was fitted and is never fitted again."""

    def __init__(self, store: ObjectStore, symbol: str, timeframe: str) -> None:
        self._store, self._symbol, self._timeframe = store, symbol, timeframe
        folder = layout.fold(symbol, timeframe, "").removesuffix(".parquet")
        self._known = {key.removeprefix(folder).removesuffix(".parquet") for key in store.list(folder)}

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> pl.DataFrame:
        try:
            return read_frame(self._store, layout.fold(self._symbol, self._timeframe, key))
        except NotFound:
            raise KeyError(key) from None

    def __setitem__(self, key: str, frame: pl.DataFrame) -> None:
        write_frame(self._store, layout.fold(self._symbol, self._timeframe, key), frame)
        self._known.add(key)

    def __delitem__(self, key: str) -> None:
        self._store.delete(layout.fold(self._symbol, self._timeframe, key))
        self._known.discard(key)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))

    def __len__(self) -> int:
        return len(self._known)
