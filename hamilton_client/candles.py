"""The candle lake in the bucket: one series per symbol and timeframe, closed months as one file, the open month as one file a day."""

import io
import re
from datetime import UTC, datetime, timedelta

import polars as pl

from hamilton_client.core import bars, layout
from hamilton_client.core.contracts import Frozen, HuracanError, Market, Record
from hamilton_client.store import NotFound, ObjectStore

SERIES_KEY = re.compile(r"candles/([^/]+)/([^/]+)/(\d{6}(?:\d{2})?)\.parquet")
READ_ATTEMPTS = 5
DAMAGE = (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException)
"""What polars raises on bytes that are no whole parquet file."""


class Written(Frozen):
    """What one `CandleStore.write` changed: objects put and deleted, bars that are new and bars whose values changed."""

    put: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    new_bars: int = 0
    restated_bars: int = 0


class LakeCard(Record):
    """`lake.json`: the one market this lake holds, whose candles they are, and which symbols are synthetic."""

    market: Market
    note: str = ""
    synthetic: tuple[str, ...] = ()
    provenance: str = ""

    @classmethod
    def read(cls, store: ObjectStore) -> "LakeCard | None":
        """The lake's card, or None where nothing was ingested yet. Raises HuracanError on a card that cannot be read."""
        try:
            return cls.from_bytes(store.get(layout.LAKE_CARD))
        except NotFound:
            return None
        except ValueError as fault:
            raise HuracanError(
                f"{layout.LAKE_CARD} in {store.url} is damaged ({fault}); restore it from a backup before the next ingest"
            ) from fault

    def ensure(self, store: ObjectStore) -> "LakeCard":
        """Claim the lake for this card's market, or join one of the same market; returns the card that now holds.

        Raises HuracanError where the lake holds another market: two markets in one lake would train one model on both.
        """
        if store.put(layout.LAKE_CARD, self.to_bytes(), if_absent=True):
            return self
        held = LakeCard.read(store) or self
        if held.market != self.market:
            raise HuracanError(
                f"the lake {store.url} holds {_name(held.market)}; {_name(self.market)} is refused. "
                "Give the other market a lake of its own (another HURACAN_HOME or bucket)"
            )
        joined = held.model_copy(update={"synthetic": tuple(sorted({*held.synthetic, *self.synthetic}))})
        if joined != held:
            store.put(layout.LAKE_CARD, joined.to_bytes())
        return joined


def _name(market: Market) -> str:
    return f"{market.venue} {market.instrument} (priced by {market.candles} candles)"


class CandleStore:
    """Reads and writes candle series in a bucket. One writer per series at a time; any number of readers."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def symbols(self) -> list[str]:
        """Every symbol that has candles, sorted; names that are no symbols are not looked at."""
        found = {match[1] for key in self.store.list("candles/") if (match := SERIES_KEY.fullmatch(key))}
        return sorted(name for name in found if layout.SYMBOL_PATTERN.fullmatch(name))

    def read(self, symbol: str, timeframe: str, *, since: datetime | None = None, until: datetime | None = None) -> pl.DataFrame:
        """Bars with `since <= ts < until`, clean and sorted; no rows where there are none. Opens only the files the span needs.

        Raises HuracanError naming the object that is empty, truncated, of another schema or out of order.
        """
        for _ in range(READ_ATTEMPTS):
            parts = self._parts(symbol, timeframe)
            wanted = [part for part in _live(parts) if _overlaps(part, since, until)]
            try:
                frame = self._load(layout.candles(symbol, timeframe), wanted)
            except NotFound:  # a month was compacted between the listing and the read …
                continue
            if self._parts(symbol, timeframe) != parts:  # … or while its days were being listed
                continue
            return frame.filter(*([pl.col("ts") >= since] if since else []), *([pl.col("ts") < until] if until else []))
        raise HuracanError(
            f"{layout.candles(symbol, timeframe)} in {self.store.url} changes faster than it can be read; end the other writers"
        )

    def write(self, symbol: str, timeframe: str, frame: pl.DataFrame) -> Written:
        """Merge clean bars into a series: a bar of the same `ts` is replaced, nothing else is removed; a repeated write changes nothing.

        A month is complete once its last bar came or a later month began; then its day files become one month file. Killed at any
        point, the series stays whole and the next write finishes the work. Raises HuracanError on bars that are not clean.
        """
        prefix, parts = layout.candles(symbol, timeframe), self._parts(symbol, timeframe)
        fresh = _refuse_defects(frame, symbol, timeframe)
        months = {part[:6] for part in parts if len(part) == 8} | _months(fresh["ts"])
        newest = max([*(_span(part)[0] for part in parts), *fresh["ts"].tail(1)], default=datetime.min.replace(tzinfo=UTC))
        bar_ends = fresh["ts"] + timedelta(minutes=layout.timeframe_minutes(timeframe))
        written = Written()
        for month in sorted(months):
            here = [part for part in parts if part.startswith(month)]
            end = _span(month)[1]
            if month in here or newest >= end or bool((bar_ends == end).any()):
                written = self._merge(prefix, month, _live(here), fresh, written)
                written = self._drop(prefix, [part for part in here if part != month], written)
                continue
            for day in sorted(_days(_within(fresh, month)["ts"])):
                written = self._merge(prefix, day, [part for part in here if part == day], fresh, written)
        return written

    def _merge(self, prefix: str, part: str, sources: list[str], fresh: pl.DataFrame, written: Written) -> Written:
        """Put one file made of `sources` and the fresh bars of its span, unless it is there already with these very bars."""
        stored, new = self._load(prefix, sources), _within(fresh, part)
        merged = pl.concat([stored, new], how="diagonal").unique("ts", keep="last", maintain_order=True).sort("ts")
        key = f"{prefix}{part}.parquet"
        put = written.put
        if part not in sources or not merged.equals(stored):
            body = io.BytesIO()
            merged.write_parquet(body, compression="zstd")
            self.store.put(key, body.getvalue())
            put = (*put, key)
        same = new.join(stored, on=list(bars.CANDLE_SCHEMA), how="semi").height
        fresh_bars = merged.height - stored.height
        return written.model_copy(
            update={
                "put": put,
                "new_bars": written.new_bars + fresh_bars,
                "restated_bars": written.restated_bars + new.height - same - fresh_bars,
            }
        )

    def _drop(self, prefix: str, parts: list[str], written: Written) -> Written:
        keys = tuple(f"{prefix}{part}.parquet" for part in parts)
        for key in keys:
            self.store.delete(key)
        return written.model_copy(update={"deleted": (*written.deleted, *keys)})

    def _parts(self, symbol: str, timeframe: str) -> list[str]:
        keys = self.store.list(layout.candles(symbol, timeframe))
        return [match[3] for key in keys if (match := SERIES_KEY.fullmatch(key))]

    def _load(self, prefix: str, parts: list[str]) -> pl.DataFrame:
        bodies = {f"{prefix}{part}.parquet": self.store.get(f"{prefix}{part}.parquet") for part in parts}
        try:
            frame = bars.conform(pl.read_parquet(list(bodies.values()))) if parts else bars.empty_candles()
            if _in_order(frame["ts"]) and _names_of(frame["ts"], parts) <= set(parts):
                return frame
        except (*DAMAGE, HuracanError):
            pass  # one by one is five times slower, and says which object it is
        return pl.concat([self._load_one(key, body) for key, body in bodies.items()], how="diagonal")

    def _load_one(self, key: str, body: bytes) -> pl.DataFrame:
        where, advice = f"{key} in {self.store.url}", "Delete that object and ingest its span again"
        try:
            frame = bars.conform(parse_parquet(body, where), where)
        except HuracanError as fault:
            raise HuracanError(f"{fault}. {advice}") from fault
        start, end = _span(key.rpartition("/")[2].removesuffix(".parquet"))
        if not _in_order(frame["ts"]) or not frame["ts"].is_between(start, end, closed="left").all():
            raise HuracanError(f"{where} holds stamps out of order, twice, or outside the span its name says. {advice}")
        return frame


def parse_parquet(body: bytes, where: str) -> pl.DataFrame:
    """Parse a parquet object. Raises HuracanError naming `where` if it is empty, truncated or something else."""
    if not body:
        raise HuracanError(f"{where} is empty (0 bytes)")
    try:
        return pl.read_parquet(io.BytesIO(body))
    except DAMAGE as fault:
        raise HuracanError(f"{where} is no whole parquet file ({str(fault).splitlines()[0]})") from fault


def _refuse_defects(frame: pl.DataFrame, symbol: str, timeframe: str) -> pl.DataFrame:
    checked = bars.check_candles(frame, timeframe, as_of=None)
    defects = {name: n for name, n in checked.counts.items() if n and bars.DEFECT_RULES[name] != "kept"}
    if defects:
        raise HuracanError(
            f"{symbol} {timeframe}: these candles are not clean ({defects}); store what check_candles returns, not the raw frame"
        )
    return checked.frame


def _in_order(stamps: pl.Series) -> bool:
    return not stamps.null_count() and bool((stamps.diff().slice(1) > timedelta(0)).all())


def _months(stamps: pl.Series) -> set[str]:
    return {f"{month:%Y%m}" for month in stamps.dt.truncate("1mo").unique()}


def _days(stamps: pl.Series) -> set[str]:
    return {f"{day:%Y%m%d}" for day in stamps.dt.date().unique()}


def _names_of(stamps: pl.Series, parts: list[str]) -> set[str]:
    """The files that bars with these stamps belong to, where `parts` says which months are one file."""
    return {day[:6] if day[:6] in parts else day for day in _days(stamps)}


def _span(part: str) -> tuple[datetime, datetime]:
    """First instant of the month or day a file name stands for, and first instant after it. Raises HuracanError on no date."""
    try:
        start = datetime.strptime(part, "%Y%m%d" if len(part) == 8 else "%Y%m").replace(tzinfo=UTC)
    except ValueError:
        raise HuracanError(
            f"candle file {part}.parquet is named after no date; names are YYYYMM or YYYYMMDD. Move it out of the lake"
        ) from None
    return start, start + timedelta(days=1) if len(part) == 8 else (start + timedelta(days=32)).replace(day=1)


def _within(frame: pl.DataFrame, part: str) -> pl.DataFrame:
    start, end = _span(part)
    return frame.filter((pl.col("ts") >= start) & (pl.col("ts") < end))


def _live(parts: list[str]) -> list[str]:
    """Files to read: a month file holds all of its days, so day files left beside it by a killed compaction do not count."""
    return [part for part in parts if len(part) == 6 or part[:6] not in parts]


def _overlaps(part: str, since: datetime | None, until: datetime | None) -> bool:
    start, end = _span(part)
    return (since is None or end > since) and (until is None or start < until)
