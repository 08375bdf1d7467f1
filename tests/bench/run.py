"""`make bench`: the ratios of design.md section 6 as one JSON object on stdout; progress and expectations on stderr.

.venv/bin/python tests/bench/run.py [--tiny]
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}  # as in the pool's workers: what runs here is compared with them


def main(arguments: list[str] | None = None) -> None:
    """Measure everything and print it. Raises AssertionError where a part under measurement gives a wrong result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes: shows that it runs, the figures mean nothing")
    options = parser.parse_args(arguments)
    os.environ |= ONE_THREAD  # before polars and LightGBM are imported
    report = measure(tiny=options.tiny)
    json.dump(report, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def measure(*, tiny: bool) -> dict[str, Any]:
    """Run every part in a folder of its own and collect its figures by name."""
    from bench_decisions import decision_figures
    from bench_features import feature_figures
    from bench_figures import CORES, Figure
    from bench_fits import fit_figures
    from bench_nights import night_figures
    from bench_registry import registry_figures
    from bench_sizes import FULL, TINY, settings_at
    from hamilton_client.telemetry import setup_logging

    setup_logging(logging.WARNING)  # on stderr: stdout is for the JSON
    size = TINY if tiny else FULL
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="huracan-bench-") as scratch:
        home = Path(scratch, "home")
        settings = settings_at(home, size)
        parts: dict[str, Callable[[], list[Figure]]] = {
            "features": lambda: feature_figures(settings, size),
            "fits": lambda: fit_figures(settings, size),
            "nights": lambda: night_figures(home, size, _say),
            "registry": lambda: registry_figures(home, size),
            "decisions": lambda: decision_figures(home, size),
        }
        for name, part in parts.items():
            _say(f"{name} …")
            for figure in part():
                verdict = {True: "met", False: "MISSED", None: "none"}[figure.met]
                _say(f"  {figure.name} = {figure.value:.4g} {figure.unit}; target {figure.target} {verdict}; expected {figure.expected}")
                figures.append(figure)
    machine = {"cores": CORES, "platform": platform.platform(), "python": platform.python_version(), "load": os.getloadavg()}
    return {"tiny": tiny, "machine": machine, "figures": {figure.name: figure.to_json() for figure in figures}}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
