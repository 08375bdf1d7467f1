"""The bench runs from end to end and says what it should; how fast this machine is today is nobody's failure."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from bench_figures import Figure, Meter, process_tree, tree_cpu_seconds

FIGURES = {
    "features_rows_per_second",
    "features_vs_pandas",
    "features_linearity",
    "fit_cpu_seconds",
    "orchestration_efficiency",
    "cores_busy",
    "cpu_seconds_per_model",
    "second_night_ratio",
    "peak_rss_mb",
    "registry_ms_per_bundle",
    "decide_p50_ms",
    "decide_p99_ms",
    "features_and_decision_ms",
    "decide_once_ms",
    "decide_once_cold_ms",
}


def test_every_figure_appears_and_is_finite() -> None:
    run = subprocess.run([sys.executable, Path(__file__).with_name("run.py"), "--tiny"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    figures = json.loads(run.stdout)["figures"]
    assert set(figures) == FIGURES
    for name, figure in figures.items():
        assert {"target", "value", "unit", "expected", "note", "met"} <= set(figure), name
        assert math.isfinite(figure["value"]), name
        assert figure["value"] > 0, name
        assert figure["expected"], name
        assert figure["unit"], name
    stages = figures["second_night_ratio"]["detail"]["stages"]
    assert list(stages) == ["raw", "features", "regimes", "folds", "models", "shadow", "champions"]


@pytest.mark.parametrize(("target", "met"), [("<= 2", True), ("<= 1", False), (">= 2", True), (">= 2.5", False), ("", None)])
def test_a_target_is_met_or_missed(target: str, met: bool | None) -> None:
    assert Figure("name", 2.0, "s", target, "2", "").met is met


def test_the_meter_counts_children_that_live_and_children_that_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\n"
    with Meter() as ended:
        subprocess.run([sys.executable, "-c", burn], check=True, stdout=subprocess.DEVNULL)
    assert ended.spent.cpu > 0.25
    with Meter() as alive, subprocess.Popen([sys.executable, "-c", f"{burn}input()"], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in {process.pid for process in process_tree(os.getpid())}
        assert tree_cpu_seconds() > 0.25
        child.communicate(b"\n")
    assert alive.spent.cpu > 0.25
