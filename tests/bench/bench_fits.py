"""Training alone: weighted LightGBM fits on synthetic rows, through the function that the night calls."""

import time

import numpy as np

from bench_figures import Figure
from bench_sizes import Size
from engine_assets.logic.fit import TrainingFrame, fit_regimes
from engine_resources.settings import Settings
from hamilton_client.core.contracts import TRAINED_REGIMES

FEATURES = 40
HOUR_MS = 3_600_000
STEP_ROWS = 480


def fit_figures(settings: Settings, size: Size) -> list[Figure]:
    """CPU-seconds of one fit per regime and window; the four regimes of a window share one binned dataset."""
    recipe = settings.recipe()
    frame = _frame(size.fit_rows + STEP_ROWS * (size.fit_windows - 1))
    regimes = list(TRAINED_REGIMES)
    fit_regimes(frame, np.arange(200), regimes, recipe)
    started = time.process_time()
    fitted = sum(
        len(fit_regimes(frame, np.arange(start, start + size.fit_rows), regimes, recipe))
        for start in range(0, STEP_ROWS * size.fit_windows, STEP_ROWS)
    )
    seconds = time.process_time() - started
    assert fitted == len(regimes) * size.fit_windows
    model = recipe.model
    return [
        Figure(
            "fit_cpu_seconds",
            seconds,
            "CPU-seconds",
            "<= 3.5",
            "2.6: research/mlflow_ray.md has 0.32 for 200 such trees, so 60 cost 0.1, and 6 x 0.07 for binning",
            f"{fitted} weighted fits at {size.fit_rows} rows x {FEATURES} features, {model.rounds} rounds, {model.num_leaves} leaves, "
            f"{model.max_bin} bins, synthetic, one thread",
            {"cpu_seconds_per_fit": seconds / fitted},
        )
    ]


def _frame(rows: int) -> TrainingFrame:
    """Noise with a little signal, regimes in runs, labels of four bars that overlap."""
    generator = np.random.default_rng(7)
    x = generator.normal(size=(rows, FEATURES))
    gross_bps = 20 * (0.1 * x[:, :4].sum(axis=1) + generator.standard_t(4, rows))
    regime = np.repeat(generator.integers(0, len(TRAINED_REGIMES), rows // 24 + 1), 24)[:rows].astype(np.int8)
    open_ms = np.arange(rows, dtype=np.int64) * HOUR_MS
    return TrainingFrame(open_ms, open_ms + HOUR_MS, x, regime, gross_bps, open_ms + 5 * HOUR_MS, np.full(rows, 0.25))
