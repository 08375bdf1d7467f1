"""A night with one coin that fails, and the pages that `huracan ui` serves over it, asked through GraphQL and looked at in Chromium."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from dagster._core.test_utils import create_run_for_test
from playwright.sync_api import BrowserContext, sync_playwright

from engine_assets.session import PID_TAG
from small_world import QUICKSTART, SYNTHETIC, World, huracan, make_config, make_source, quickstart, start

T = TypeVar("T")
BROKEN, REAL = "SOLUSDT", "ETHUSDT"
STAGES = ("raw", "features", "regimes", "folds", "models", "shadow", "champions")
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=http://127.0.0.1:9",  # nobody listens there, and only loopback goes past it: what leaves this machine fails
]
PROMOTIONS_SEEN = {  # MLflow's own advertisements, which a person clicks away once
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.workflowType_v1": '"machine_learning"',
}


def failed_night(base: Path) -> World:
    """Two good coins and one whose file is cut off, after one night; a run that died without a word stands in the page's way."""
    folder = base / "pages"
    broken = (QUICKSTART / f"candles/1h/{BROKEN}.parquet").read_bytes()[:20_000]
    make_source(folder / "source", {REAL: quickstart(REAL), SYNTHETIC: quickstart(SYNTHETIC), BROKEN: broken})
    world = World(folder / "source", make_config(folder / "config"), folder / "home")
    night = huracan(world, "nightly")
    assert night.returncode == 1, night.stderr
    with world.dagster() as instance:
        create_run_for_test(instance, job_name="__ASSET_JOB", status=dg.DagsterRunStatus.STARTED, tags={PID_TAG: "999999.1"})
    return world


def broken_file(world: World) -> Path:
    return world.source / f"candles/1h/{BROKEN}.parquet"


@dataclass(frozen=True)
class Pages:
    """Running web servers and the daemon behind them."""

    world: World
    process: subprocess.Popen[str]
    dagster: str
    mlflow: str

    def ask(self, query: str, **variables: Any) -> Any:
        """Data of a GraphQL query or mutation, sent as the pages send theirs."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.dagster}/graphql", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert not found.get("errors"), found["errors"]
        return found["data"]

    def runs(self) -> list[dict[str, Any]]:
        """Every run, newest first: runId, status, tags as a dict."""
        found = self.ask("{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }")["runsOrError"]["results"]
        return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def run(self, run_id: str) -> dict[str, Any]:
        (found,) = (run for run in self.runs() if run["runId"] == run_id)
        return found

    def ended(self, run_id: str, seconds: float = 120) -> dict[str, Any]:
        """The run once it has ended."""

        def probe() -> dict[str, Any] | None:
            run = self.run(run_id)
            return run if run["status"] in {"SUCCESS", "FAILURE", "CANCELED"} else None

        return wait_for(f"the end of run {run_id}", seconds, probe)

    def ready(self) -> bool:
        """Whether both servers answer, the code is loaded and the daemon has reported; fails where a program has ended."""
        log = self.world.home.with_suffix(".log").read_text()[-3000:]
        assert self.process.poll() is None, f"huracan ui ended with {self.process.returncode}:\n{log}"
        with suppress(OSError):
            urllib.request.urlopen(f"{self.mlflow}/health", timeout=5).close()
            query = '{ instance { daemonHealth { daemonStatus(daemonType: "SCHEDULER") { healthy } } } repositoriesOrError { __typename } }'
            found = self.ask(query)
            healthy = found["instance"]["daemonHealth"]["daemonStatus"]["healthy"]
            return bool(healthy and found["repositoriesOrError"]["__typename"] == "RepositoryConnection")
        return False


@contextmanager
def pages_of(world: World) -> Iterator[Pages]:
    """Start `huracan ui` on free ports, with the default backend (Ray), and end whatever it started, run workers included."""
    port, mlflow_port = free_port(), free_port()
    process = start(world, "ui", "--port", str(port), "--mlflow-port", str(mlflow_port), HURACAN_TRAINING__BACKEND="ray")
    pages = Pages(world, process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{mlflow_port}")
    try:
        wait_for("the pages", 180, pages.ready)
        yield pages
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        wait_for("the end of every process", 30, lambda: not [os.kill(pid, signal.SIGKILL) for pid in processes_of(world)])


def processes_of(world: World) -> dict[int, str]:
    """Living processes that work on this world's home, by pid: their command lines."""
    mine, found = f"HURACAN_HOME={world.home}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mine in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, seconds: float, probe: Callable[[], T]) -> T:
    """The first true answer of `probe`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.3)
    return found


@contextmanager
def chromium() -> Iterator[tuple[BrowserContext, list[str]]]:
    """A browser of a person who has seen MLflow before, and the addresses off this machine that its pages asked for."""
    elsewhere: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1500, "height": 950})
        context.add_init_script(f"Object.assign(localStorage, {json.dumps(PROMOTIONS_SEEN)})")
        context.set_default_timeout(30_000)
        context.on("request", lambda request: None if is_local(request.url) else elsewhere.append(request.url))
        try:
            yield context, elsewhere
        finally:
            browser.close()


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))
