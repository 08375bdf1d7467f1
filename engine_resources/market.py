"""Where candles come from: one protocol, and the source every machine has, a folder of bundled candles."""

import difflib
from datetime import datetime
from pathlib import Path
from typing import Protocol

import polars as pl
import structlog
from pydantic import AwareDatetime, ValidationError

from hamilton_client.candles import parse_parquet
from hamilton_client.core import bars, layout
from hamilton_client.core.contracts import Frozen, HuracanError, Market, Record

CARD = "market.json"
SPREADS = "spreads.csv"
SPREAD_COLUMNS = ("symbol", "spread_bps", "source", "as_of")

log = structlog.get_logger(__name__)


class SpreadQuote(Frozen):
    """Full bid-ask spread of one coin: `(ask - bid) / mid` in bps, where it comes from and when it was seen."""

    spread_bps: float
    source: str
    as_of: str


class CandleSource(Protocol):
    """A place to fetch raw candles from. What it returns may be dirty: `bars.check_candles` comes next."""

    market: Market
    note: str

    def symbols(self) -> list[str]:
        """Every symbol on offer, sorted."""
        ...

    def fetch(self, symbol: str, timeframe: str, since: datetime | None, until: datetime | None) -> pl.DataFrame:
        """Raw bars with `since <= ts < until` (None: no bound), as the source gives them. Raises HuracanError."""
        ...

    def spread(self, symbol: str) -> SpreadQuote:
        """The coin's spread. Raises HuracanError where none is known."""
        ...

    def now(self) -> datetime:
        """The source's clock: nothing that ends after it is closed."""
        ...

    def is_synthetic(self, symbol: str) -> bool:
        """Say whether the coin was made up: it may be trained on, never traded."""
        ...


class SourceCard(Record):
    """`market.json` of a candle folder: whose prices these are, the instant the folder stands at, and what in it is made up."""

    market: Market
    note: str
    provenance: str = ""
    clock: AwareDatetime
    synthetic: tuple[str, ...] = ()


class BundledSource:
    """A folder `candles/{timeframe}/{SYMBOL}.parquet` + `spreads.csv` + `market.json`, such as `data/quickstart`.

    Its clock stands still at the card's `clock`. Raises HuracanError where the folder is not of that layout.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            self.card = SourceCard.from_bytes((self.root / CARD).read_bytes())
        except OSError as fault:
            raise HuracanError(
                f"{self.root} is no candle folder: {CARD} cannot be read ({fault.strerror}). "
                "Point at a folder laid out like data/quickstart (its README shows how)"
            ) from fault
        except ValidationError as fault:
            raise HuracanError(f"{self.root / CARD} is damaged: {fault}. Compare it with data/quickstart/{CARD}") from fault
        self.market, self.note = self.card.market, self.card.note
        self._spreads = self._read_spreads()

    def symbols(self) -> list[str]:
        """Every symbol with a candle file of any timeframe, sorted; a file whose name is no symbol is left out with a warning."""
        names = {path.stem for path in self.root.glob("candles/*/*.parquet")}
        refused = sorted(name for name in names if not layout.SYMBOL_PATTERN.fullmatch(name))
        if refused:
            log.warning("candle_files_ignored", names=refused, folder=str(self.root), reason="the name is no symbol such as BTCUSDT")
        return sorted(names.difference(refused))

    def fetch(self, symbol: str, timeframe: str, since: datetime | None = None, until: datetime | None = None) -> pl.DataFrame:
        """Raw bars with `since <= ts < until`, defects included. Raises HuracanError for an unknown coin or a file that cannot be used."""
        path = self.root / "candles" / timeframe / f"{self._known(symbol)}.parquet"
        layout.timeframe_minutes(timeframe)
        try:
            raw = parse_parquet(path.read_bytes(), str(path))
        except FileNotFoundError:
            have = sorted(other.parent.name for other in self.root.glob(f"candles/*/{symbol}.parquet"))
            raise HuracanError(f"{self.root} has no {timeframe} candles of {symbol}, only {', '.join(have)}") from None
        except OSError as fault:
            raise HuracanError(f"{path} cannot be read: {fault.strerror}. Check its permissions") from fault
        frame = bars.conform(raw, str(path))
        return frame.filter(*([pl.col("ts") >= since] if since else []), *([pl.col("ts") < until] if until else []))

    def spread(self, symbol: str) -> SpreadQuote:
        """The coin's quote in `spreads.csv`. Raises HuracanError for an unknown coin or one without a quote."""
        quote = self._spreads.get(self._known(symbol))
        if quote is None:
            raise HuracanError(f"{self.root / SPREADS} has no spread of {symbol}; add a line with {', '.join(SPREAD_COLUMNS)}")
        return quote

    def now(self) -> datetime:
        """The instant the folder stands at, always the same."""
        return self.card.clock

    def is_synthetic(self, symbol: str) -> bool:
        """Say whether the card names the coin as made up."""
        return symbol in self.card.synthetic

    def _known(self, symbol: str) -> str:
        layout.check_symbol(symbol)
        known = self.symbols()
        if symbol not in known:
            near = difflib.get_close_matches(symbol, known, n=3, cutoff=0.5)
            hint = f"; nearest: {', '.join(near)}" if near else f"; known: {', '.join(known[:20]) or 'none'}"
            raise HuracanError(f"{self.root} has no candles of {symbol}{hint}")
        return symbol

    def _read_spreads(self) -> dict[str, SpreadQuote]:
        path = self.root / SPREADS
        try:
            table = pl.read_csv(path, infer_schema=False)
            lines = table.select(SPREAD_COLUMNS).rows(named=True)
            quotes = {line["symbol"]: SpreadQuote.model_validate(line, extra="ignore") for line in lines}
        except OSError as fault:
            raise HuracanError(f"{path} cannot be read: {fault.strerror or fault}. A candle folder needs a spread per coin") from fault
        except (pl.exceptions.PolarsError, ValidationError) as fault:
            raise HuracanError(f"{path} is no table of {', '.join(SPREAD_COLUMNS)} with numbers in spread_bps: {fault}") from fault
        odd = [symbol for symbol, quote in quotes.items() if not 0 <= quote.spread_bps < 10_000]
        if odd:
            raise HuracanError(f"{path}: the spreads of {', '.join(odd)} are not between 0 and 10,000 bps")
        return quotes
