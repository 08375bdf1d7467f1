"""Make `data/quickstart`: real hourly candles cut from a collected data set, one synthetic coin, and a dated spread table.

    python tools/make_quickstart.py --shared ../shared

`--shared` is the folder that holds `data/` (with `quickstart_20.txt`) and `fixtures/`. The same input gives the same rows; the
parquet bytes also depend on the version of pyarrow.
"""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SINCE, CLOCK = datetime(2021, 1, 1, tzinfo=UTC), datetime(2023, 7, 1, 2, tzinfo=UTC)
UNTIL = datetime(2023, 7, 1, tzinfo=UTC)
BOOKS = "fixtures/binance_rest/bookTicker_20260715/{}-bookTicker-full.json.gz"
BOOKS_AT = "2026-07-15T06:51:58Z"
RENAMED = {"MATICUSDT": "POLUSDT"}

SYNTHETIC = "SYNTHETICUSDT"
SEED = 9
STEPS = 12  # prices inside an hour
NOISE = 50e-4  # log return per hour
TREND_DRIFT, RANGE_DRIFT = 30e-4, 60e-4  # log return per hour at full signal
SIGNAL_BARS, SIGNAL_SCALE = 8, 60e-4
PULL = 2e-4  # of the distance from the first price, per hour: keeps the coin within a decade
LAST_PHASE_BARS = 36
HOURLY_USD = 2_500_000.0


def phases(bars: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Alternate trending (True) and ranging phases of 30 to 90 bars, counted from the end, which lies in a trending one."""
    marks, trending = [True] * LAST_PHASE_BARS, False
    while len(marks) < bars:
        marks += [trending] * int(rng.integers(30, 91))
        trending = not trending
    return np.array(marks[:bars][::-1])


def synthetic_coin() -> pl.DataFrame:
    """One made-up coin with a law that a model must find: the last 8-bar return goes on in busy hours and comes back in quiet ones.

    Log drift per hour = +30 bps · tanh(r8 / 60 bps) while volume is high, -60 bps · tanh(r8 / 60 bps) while it is low, on noise of
    50 bps. Volume switches between the two levels (ratio 2) every 30 to 90 hours, so a volume z-score shows which holds.
    """
    rng = np.random.default_rng(SEED)
    stamps = pl.datetime_range(SINCE, UNTIL, "1h", closed="left", time_unit="us", eager=True)
    bars = len(stamps)
    trending = phases(bars, rng)
    shocks = rng.standard_normal((bars, STEPS)) * NOISE / np.sqrt(STEPS)
    closes = np.zeros(bars + 1)
    drift = np.zeros(bars)
    for bar in range(bars):
        signal = np.tanh((closes[bar] - closes[max(0, bar - SIGNAL_BARS)]) / SIGNAL_SCALE)
        drift[bar] = (TREND_DRIFT if trending[bar] else -RANGE_DRIFT) * signal - PULL * closes[bar]
        closes[bar + 1] = closes[bar] + drift[bar] + shocks[bar].sum()
    inside = closes[:-1, None] + np.cumsum(shocks + drift[:, None] / STEPS, axis=1)
    path = np.round(100 * np.exp(np.column_stack([closes[:-1], inside])), 3)
    level = np.where(trending, 0.35, -0.35) + 0.2 * np.sin(np.arange(bars) * 2 * np.pi / 24)
    activity = 0.15 * (np.abs(np.diff(closes)) / NOISE - 1) + 0.2 * rng.standard_normal(bars)
    return pl.DataFrame(
        {
            "ts": stamps,
            "open": path[:, 0],
            "high": path.max(axis=1),
            "low": path.min(axis=1),
            "close": path[:, -1],
            "volume": np.round(HOURLY_USD * np.exp(level + activity) / path[:, -1], 2),
            "synthetic": True,
        }
    )


def real_series(shared: Path) -> dict[str, pl.DataFrame]:
    """The series `quickstart_20.txt` names, cut to [SINCE, UNTIL); nothing else is changed."""
    names = (shared / "data/quickstart_20.txt").read_text().split()
    cut = pl.col("ts").is_between(SINCE, UNTIL, closed="left")
    return {
        Path(name).stem: pl.read_parquet(shared / "data" / name).filter(cut).select("ts", "open", "high", "low", "close", "volume")
        for name in names
    }


def spread_table(shared: Path, symbols: list[str]) -> pl.DataFrame:
    """Best bid and ask of each coin in one dated snapshot: the perpetual's, else the spot pair's; `source` says which."""
    perpetual, spot = _books(shared, "fapi-v1-ticker"), _books(shared, "api-v3-ticker")
    rows: list[dict[str, Any]] = []
    for symbol in symbols:
        quoted = RENAMED.get(symbol, symbol)
        book, market, source = (
            (perpetual, "usdm_perp", "binance usdm_perp book ticker") if quoted in perpetual else (spot, "spot", "binance spot book ticker")
        )
        bid, ask = book[quoted]
        note = f" of {quoted} (the coin's name since 2024)" if quoted != symbol else ""
        spread_bps = round((ask - bid) / ((ask + bid) / 2) * 1e4, 4)
        rows.append(
            {
                "symbol": symbol,
                "bid": bid,
                "ask": ask,
                "spread_bps": spread_bps,
                "market": market,
                "source": source + note,
                "as_of": BOOKS_AT,
            }
        )
    made_up = {
        "symbol": SYNTHETIC,
        "bid": None,
        "ask": None,
        "spread_bps": 1.0,
        "market": "usdm_perp",
        "source": "synthetic",
        "as_of": BOOKS_AT,
    }
    return pl.DataFrame([*rows, made_up]).sort("symbol")


def _books(shared: Path, name: str) -> dict[str, tuple[float, float]]:
    with gzip.open(shared / BOOKS.format(name)) as file:
        quotes = json.load(file)
    return {quote["symbol"]: (float(quote["bidPrice"]), float(quote["askPrice"])) for quote in quotes if float(quote["bidPrice"]) > 0}


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write small: zstd 19, stamps delta-encoded, prices by dictionary."""
    prices = ["open", "high", "low", "close"]
    pq.write_table(
        pa.table(frame.to_arrow(compat_level=pl.CompatLevel.oldest())),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=prices,
        dictionary_pagesize_limit=1 << 22,
        column_encoding={"ts": "DELTA_BINARY_PACKED"},
        store_schema=False,
    )


def card() -> dict[str, Any]:
    """`market.json`."""
    return {
        "schema_version": 1,
        "market": {"venue": "binance", "instrument": "usdm_perp", "candles": "spot"},
        "note": "20 Binance spot series stand in for USD-M perpetuals; spreads are of 2026-07-15; SYNTHETICUSDT is made up",
        "provenance": "see README.md beside this file; made by tools/make_quickstart.py",
        "clock": CLOCK.isoformat().replace("+00:00", "Z"),
        "synthetic": [SYNTHETIC],
    }


@click.command()
@click.option(
    "--shared", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Folder with data/ and fixtures/."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parents[1] / "data/quickstart", help="Folder to write.")
def main(shared: Path, out: Path) -> None:
    """Write candles, spreads.csv and market.json. Example: python tools/make_quickstart.py --shared ../shared."""
    folder = out / "candles/1h"
    folder.mkdir(parents=True, exist_ok=True)
    series = real_series(shared)
    for symbol, frame in {**series, SYNTHETIC: synthetic_coin()}.items():
        path = folder / f"{symbol}.parquet"
        write_parquet(frame, path)
        span = f"{frame['ts'][0]:%Y-%m-%d} to {frame['ts'][-1]:%Y-%m-%d %H:%M}"
        click.echo(f"{symbol:14} {frame.height:6} rows  {span}  {path.stat().st_size:8} bytes")
    spread_table(shared, sorted(series)).write_csv(out / "spreads.csv", float_scientific=False)
    (out / "market.json").write_text(json.dumps(card(), indent=1) + "\n")


if __name__ == "__main__":
    main()
