"""What it costs to register a night's bundle in MLflow."""

import statistics
import time
from datetime import datetime
from pathlib import Path

from bench_figures import Figure
from bench_sizes import FIRST, SECOND, Size, settings_at
from engine_assets.work.promoter import HEADLINES
from engine_resources.registry import BundleVersion, Registry
from hamilton_client.bundle import fetch, open_bundle
from hamilton_client.core import layout
from hamilton_client.core.contracts import ChampionPointer
from hamilton_client.store import ObjectStore, open_store


def registry_figures(home: Path, size: Size) -> list[Figure]:
    """Register every challenger bundle of the nights in `home` in a fresh store; the first of each coin creates its model."""
    store = open_store(str(settings_at(home, size).bucket))
    plot = next(home.glob("mlruns/**/coin.svg")).read_bytes()
    versions = [_version(store, symbol, as_of, plot) for as_of in (FIRST, SECOND) for symbol in size.coins]
    scratch = home.with_name("registry")
    scratch.mkdir()
    registry = Registry(f"sqlite:///{scratch / 'mlflow.db'}", str(scratch / "mlruns"))
    spent = [_registered(registry, version) for version in versions]
    sizes = [sum(map(len, version.files.values())) for version in versions]
    return [
        Figure(
            "registry_ms_per_bundle",
            statistics.median(spent[1:]),
            "CPU-ms per Registry.register",
            "<= 100",
            "90: research/mlflow_ray.md has 80 to 100",
            f"median of {len(spent) - 1} real bundles of {len(versions[-1].files)} files and {statistics.mean(sizes) / 1e6:.2f} MB, "
            f"{len(versions[-1].metrics)} metrics and a plot of {len(plot) / 1e3:.0f} kB, SQLite; the first, "
            "which writes MLflow's template, is left out",
            {"first_ms": spent[0], "second_of_a_coin_ms": statistics.median(spent[len(size.coins) :])},
        )
    ]


def _version(store: ObjectStore, symbol: str, as_of: datetime, plot: bytes) -> BundleVersion:
    pointer = ChampionPointer.from_bytes(store.get(layout.published(symbol, as_of)))
    files = fetch(store, pointer.bucket_path, pointer.sha256, pointer.size)
    metrics = open_bundle(pointer.bucket_path, files).metrics
    return BundleVersion(
        symbol=symbol,
        run_id=layout.run_id(as_of),
        files=files,
        sha256=pointer.sha256,
        metrics={f"{segment}.{name}": getattr(found, name) for segment, found in metrics.items() for name in HEADLINES},
        params={"rounds": "60"},
        tags={"run": layout.run_id(as_of), "kind": "refresh"},
        plots={"coin.svg": plot},
    )


def _registered(registry: Registry, version: BundleVersion) -> float:
    started = time.process_time()
    registry.register(version)
    return 1000 * (time.process_time() - started)
