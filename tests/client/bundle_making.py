"""A whole bundle of real parts for tests: quick-start candles, the configured recipe, LightGBM models fitted in a second."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import lightgbm as lgb
import numpy as np
import polars as pl

from engine_resources.settings import load_settings
from hamilton_client.bundle import BundleCard, PackedBundle, SegmentCard, SegmentFiles, compose, write_bundle
from hamilton_client.candles import CandleStore, LakeCard
from hamilton_client.core.bars import derive
from hamilton_client.core.combine import Combiner
from hamilton_client.core.contracts import Calibration, CalibrationTable, ChampionPointer, CostSnapshot, SegmentMetrics, SegmentPointer
from hamilton_client.core.engines import ENGINES
from hamilton_client.core.features import build
from hamilton_client.core.layout import bundle as bundle_path
from hamilton_client.pointer import write_pointer

ROOT = Path(__file__).parents[2]
SETTINGS = load_settings(ROOT / "config", {})
RECIPE, POLICY = SETTINGS.recipe(), SETTINGS.policy()
AS_OF = datetime(2023, 7, 1, 2, tzinfo=UTC)
SEGMENTS = ("1h.TREND", "1h.RANGE", "4h.TREND", "4h.RANGE")
CALIBRATION = Calibration(
    edge_bps=CalibrationTable(scores=(0.3, 0.7), values=(-60.0, 60.0)),
    probability=CalibrationTable(scores=(0.3, 0.7), values=(0.2, 0.8)),
    rows=500,
)
METRICS = SegmentMetrics(
    sharpe=1.2, hit_rate=0.53, max_drawdown_pct=4.0, net_pnl_pct=6.0, net_bps=5.0, cost_bps=10.0, gross_bps=15.0, edge_after_cost_bps=5.0,
    sample_size=200, effective_sample=150.0, windows=6, window=("2023-01-01", "2023-06-30"), psr=0.97, dsr=0.96,
)  # fmt: skip


@cache
def candles(symbol: str = "BTCUSDT") -> pl.DataFrame:
    return pl.read_parquet(ROOT / f"data/quickstart/candles/1h/{symbol}.parquet").tail(6000)


@cache
def series(timeframe: str) -> pl.DataFrame:
    return candles() if timeframe == "1h" else derive(candles(), "1h", timeframe)


@cache
def model_text(timeframe: str, seed: int) -> bytes:
    frame = series(timeframe)
    x = build(frame, RECIPE.features).select(RECIPE.features.names).fill_null(np.nan).to_numpy()
    rises = (frame["close"].shift(-4) > frame["close"]).fill_null(value=False).to_numpy().astype(float)
    parameters = RECIPE.model.model_copy(update={"seed": seed}).lightgbm("cpu")
    return lgb.train(parameters, lgb.Dataset(x, rises), num_boost_round=15).model_to_string().encode()


@cache
def packed(symbol: str = "BTCUSDT", segments: tuple[str, ...] = SEGMENTS, version: int = 1, *, synthetic: bool = False) -> PackedBundle:
    models = {segment: model_text(segment.partition(".")[0], version + at) for at, segment in enumerate(segments)}
    entries = {
        segment: SegmentCard(
            model_id=f"{symbol}_{segment}_v{version}" if segment in models else None,
            promoted_at=AS_OF if segment in models else None,
            state="champion" if segment in models else "insufficient_data",
            lineage=RECIPE.hash,
            horizon_bars=RECIPE.horizon_bars[segment.partition(".")[0]],
        )
        for segment in (f"{timeframe}.{regime}" for timeframe in ("1h", "4h", "1d") for regime in ("TREND", "RANGE", "PANIC", "ILLIQUID"))
    }
    card = BundleCard(
        symbol=symbol, model_id=f"{symbol}_{version}", as_of=AS_OF, run_id="run_20230701_020000", market=POLICY.market,
        recipe=RECIPE.name, lineage=RECIPE.hash, segments=entries, synthetic=synthetic,
    )  # fmt: skip
    body = METRICS.to_bytes()
    return compose(
        card,
        features=RECIPE.features,
        regimes=RECIPE.regimes,
        combiner=combiner(),
        costs=costs(symbol),
        policy=POLICY,
        segments={segment: SegmentFiles(text, b"{}", body, CALIBRATION.to_bytes()) for segment, text in models.items()},
        candles={timeframe: series(timeframe) for timeframe in ("1h", "4h", "1d")},
    )


def combiner() -> Combiner:
    names = tuple(ENGINES)
    identity = tuple(tuple(float(a == b) for b in names) for a in names)
    return Combiner(
        engines=names, reliability=dict.fromkeys(names, 0.6), outcomes=dict.fromkeys(names, 50), correlation=identity, rows=500,
        as_of=AS_OF.isoformat(), soft_weights={},
    )  # fmt: skip


def costs(symbol: str) -> CostSnapshot:
    return CostSnapshot(
        symbol=symbol, maker_fee_bps=2.0, taker_fee_bps=4.0, spread_bps=0.5, spread_source="static", impact_factor=0.5,
        participation_rate=0.1, funding_bps_per_8h=1.0, volatility_daily_bps=300.0, volume_daily_usd=1e9, as_of={"fees": "2023-07-01"},
    )  # fmt: skip


def pointer_to(bundle: PackedBundle, symbol: str = "BTCUSDT", generation: int = 1, at: datetime = AS_OF) -> ChampionPointer:
    card = BundleCard.from_bytes(bundle.files["bundle.json"])
    return ChampionPointer(
        symbol=symbol,
        generation=generation,
        bucket_path=bundle_path(symbol, at),
        size=bundle.size,
        sha256=bundle.sha256,
        model_id=card.model_id,
        segments={name: SegmentPointer(**entry.model_dump(exclude={"horizon_bars"})) for name, entry in card.segments.items()},
        as_of=AS_OF,
        promoted_at=AS_OF,
        synthetic=card.synthetic,
    )


def publish(store, bundle: PackedBundle, symbol: str = "BTCUSDT", generation: int = 1) -> ChampionPointer:
    """Write bundle and pointer; each generation has a folder of its own."""
    pointer = pointer_to(bundle, symbol, generation, AS_OF + timedelta(seconds=generation))
    write_bundle(store, pointer.bucket_path, bundle)
    write_pointer(store, pointer)
    return pointer


def fill_lake(store, symbol: str = "BTCUSDT") -> None:
    LakeCard(market=POLICY.market).ensure(store)
    CandleStore(store).write(symbol, "1h", candles(symbol))


def edited(bundle: PackedBundle, **changes: bytes | None) -> PackedBundle:
    """The same sums over other bytes: what a damaged bucket holds."""
    files = {name: changes.get(name, body) for name, body in bundle.files.items()}
    return replace(bundle, files={name: body for name, body in files.items() if body is not None})
