"""kill -9 at random moments of a night: what was done is kept, every pointer verifies, resume ends where an undisturbed night ends."""

import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest

from engine_assets.definitions import NIGHT_JOB
from engine_assets.launch import report_dead_runs
from engine_assets.session import PID_TAG, process_mark
from engine_resources.settings import REPOSITORY
from small_world import CLOCK, GOOD, NIGHTS, SYNTHETIC, TIMEFRAMES, World, hamilton, huracan, start

SOAK_KILLS = int(os.environ.get("HURACAN_SOAK_KILLS", "6"))
RAY_AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")  # see within a minute that their node is gone, and do no work
DONE = ("raw", "features", "regimes", "folds", "models", "shadow")  # stages that a resumed run does not repeat


@dataclass
class Killer:
    """Starts nights in one home, kills them, and remembers what each had done."""

    world: World
    as_of: datetime
    coins: tuple[str, ...]
    chance: random.Random
    objects: int
    """Objects that a whole night leaves in the bucket."""
    kills: int = 0
    ended: int = 0
    folds: dict[str, int] = field(default_factory=dict)
    ledger: dict[str, bytes] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        chosen = ["--coins", ",".join(self.coins), "--as-of", f"{self.as_of:%Y-%m-%dT%H:%MZ}"]
        return ["nightly", *chosen, *(["--resume"] if self.kills else [])]

    def kill_once(self, when: Callable[[], bool] | None = None, left: int = 1) -> bool:
        """Run, and kill at once when told, else after a random number of new objects; False where the night ended before.

        `left` kills share what the night has still to write.
        """
        here = self.count()
        wanted = here + self.chance.randint(1, max(1, 2 * (self.objects - here) // (left + 1)))
        process = start(self.world, *self.arguments())
        try:
            while process.poll() is None and not (when() if when else self.count() >= wanted):
                time.sleep(0.005)
        finally:
            alive = process.poll() is None
            process.kill()
            process.wait()
        assert alive or process.returncode == 0, self.world.home.with_suffix(".log").read_text()
        self.kills += alive
        self.ended += not alive
        assert gone(process.pid), "workers outlive their night"
        self.look(after=f"kill {self.kills} at {wanted} of {self.objects} objects")
        return alive

    def finish(self) -> None:
        done = huracan(self.world, *self.arguments(), "--json")
        assert done.returncode == 0, done.stderr
        self.ended += 1
        self.look(after="the end")

    def count(self) -> int:
        return sum(len(files) for _, _, files in os.walk(self.world.bucket))

    def look(self, after: str) -> None:
        """What must hold at any instant: nothing that was done is lost or done twice, and every pointer leads to a sound bundle."""
        folds = {key: stamp for key, (stamp, _) in self.world.files("folds/*/*/*.parquet").items()}
        assert {key: folds.get(key) for key in self.folds} == self.folds, f"{after}: a window was fitted twice or lost"
        lines = self.world.files(f"runs/run_{self.as_of:%Y%m%d_%H%M%S}/ledger/*/*.json")
        ledger = {key: body for key, (_, body) in lines.items() if key.split("/")[-2] in DONE}
        assert {key: ledger.get(key) for key in self.ledger} == self.ledger, f"{after}: a unit was done twice or lost"
        pointers = self.world.pointers()
        generations = {symbol: pointer.generation for symbol, pointer in pointers.items()}
        assert generations.items() >= self.generations.items(), f"{after}: a promotion was lost or doubled"
        assert set(generations.values()) <= {1}, f"{after}: a coin was promoted twice"
        self.folds, self.ledger, self.generations = folds, ledger, generations


def gone(group: int, seconds: float = 20.0) -> bool:
    """Whether the process group of a killed night is empty, at once or soon."""
    end = time.monotonic() + seconds
    while living(group):
        if time.monotonic() > end:
            os.killpg(group, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


def living(group: int) -> list[str]:
    """Processes of a group, or of the session that its leader opened, that may still work."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgrp, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            agent = (folder / "cmdline").read_bytes().startswith(RAY_AGENTS)
        except OSError:
            continue
        if str(group) in (pgrp, session) and state != "Z" and not agent:
            found.append(folder.name)
    return found


def everything_is_told(killer: Killer) -> None:
    """After the end: tables, partitions and Dagster's runs are those of one night."""
    world, night = killer.world, killer.world.night(killer.as_of)
    library = world.library()
    for symbol in killer.coins:
        assert [row.generation for row in library.promotions(symbol)] == [1], "promoted once"
        assert world.pointers()[symbol] == library.champion(symbol).pointer()
        assert len({model.model_id for model in library.models(symbol)}) == len(library.models(symbol))
    units = {f"{symbol}|{timeframe}" for symbol in killer.coins for timeframe in TIMEFRAMES}
    for asset, found in world.partition_states().items():
        assert {key for key, state in found.items() if state == "MATERIALIZED"} == units, asset
    with world.dagster() as instance:
        states = [run.status for run in instance.get_runs()]
    assert states.count(dg.DagsterRunStatus.SUCCESS) == killer.ended
    assert set(states) <= {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}, "a dead run is reported as failed"
    for symbol in killer.coins:
        for timeframe in TIMEFRAMES:
            line = world.ledger(killer.as_of)[f"models/{symbol}.{timeframe}.json"]["detail"]
            stored = len(list(world.bucket.glob(f"folds/{symbol}/{timeframe}/*.parquet")))
            assert line["windows"] == line["fitted"] + line["reused"] == stored, "every window once"
    assert night.store.exists(f"runs/{night.run_id}/manifest.json")
    assert hamilton(world, "check").returncode == 0


def same_champions(killer: Killer, finished: World) -> None:
    """Bit for bit the bundles of a night that nobody disturbed."""
    for symbol in killer.coins:
        undisturbed = finished.library().history(symbol)[0]
        pointer = killer.world.pointers()[symbol]
        assert (pointer.sha256, pointer.segments) == (undisturbed.sha256, undisturbed.segments)


def objects_of_a_night(finished: World) -> int:
    """Objects of the first of two nights."""
    second = f"{NIGHTS[1]:%Y%m%d}"
    names = [str(path.relative_to(finished.bucket)) for path in finished.bucket.rglob("*") if path.is_file()]
    return len([name for name in names if second not in name and not name.startswith("shadow/")])


@pytest.mark.slow
def test_a_night_killed_anywhere_and_then_among_its_champions_resumes_to_the_same_end(finished, tmp_path):
    """The second kill leaves some coins promoted and some not; a pointer that the table is ahead of is made on top."""
    killer = night_to_kill(finished, tmp_path, "threads")
    killer.kill_once()
    killer.kill_once(when=lambda: bool(killer.world.pointers()))
    behind = min(killer.generations)
    (killer.world.bucket / f"champion/{behind}/latest.json").unlink()
    del killer.generations[behind]
    killer.finish()
    everything_is_told(killer)
    same_champions(killer, finished)


@pytest.mark.slow
def test_a_killed_night_on_ray_leaves_no_workers_and_resumes_to_the_same_end(finished, tmp_path):
    killer = night_to_kill(finished, tmp_path, "ray")
    killer.kill_once()
    killer.finish()
    everything_is_told(killer)
    same_champions(killer, finished)


def night_to_kill(finished: World, folder: Path, backend: str) -> Killer:
    seed = time.time_ns() % 10_000
    print(f"seed {seed}")
    world = World(finished.source, finished.config, folder / "home", {"HURACAN_TRAINING__BACKEND": backend})
    return Killer(world, NIGHTS[0], GOOD, random.Random(seed), objects_of_a_night(finished))


@pytest.mark.slow
def test_resuming_some_coins_compares_them_with_the_same_pooled_baseline(told, finished, tmp_path):
    """As if the night had been killed after the models of one coin."""
    world = finished.copy(tmp_path / "home")
    folder = world.bucket / "runs/run_20230701_020000"
    for path in [*folder.glob("ledger/models/*.json"), *folder.glob("ledger/shadow/*.json"), *folder.glob("ledger/champions/*.json")]:
        if not (path.parent.name == "models" and path.name.startswith("BTCUSDT.")):
            path.unlink()
    indices = sorted(folder.glob("parts/POOLED/*/quarters.json"))
    before = [index.read_bytes() for index in indices]
    done = told(world, "nightly", "--resume")
    assert done.code == 0, done.out
    assert len(before) == len(TIMEFRAMES)
    assert [index.read_bytes() for index in indices] == before
    assert world.pointers() == finished.pointers()


@pytest.mark.slow
def test_an_interrupted_night_says_so_and_is_the_one_that_resume_goes_on_with(told, good, tmp_path):
    """Ctrl-C in an older night than the newest tick, over one coin."""
    world = replace(good, home=tmp_path / "home")
    process = start(world, "nightly", "--coins", "BTCUSDT", "--as-of", "2023-06-30T02:00Z")
    while process.poll() is None and not world.files("runs/*/ledger/models/*.json"):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    log = world.home.with_suffix(".log").read_text()
    assert "interrupted; a night that was running goes on with: huracan nightly --resume" in log
    assert "Traceback" not in log
    beat = json.loads((world.bucket / "heartbeats/engine.json").read_bytes())
    assert (beat["phase"], beat["run_id"]) == ("failed", "run_20230630_020000")
    before = world.files("folds/*/*/*.parquet")
    done = told(world, "nightly", "--resume")
    assert done.code == 0, done.out
    assert {path.name for path in (world.bucket / "runs").iterdir()} == {"run_20230630_020000"}
    assert set(world.pointers()) == {"BTCUSDT"}
    assert {key: world.files("folds/*/*/*.parquet")[key] for key in before} == before


@pytest.mark.slow
def test_a_fault_that_stops_the_whole_night_leaves_a_report_and_a_failed_heartbeat(told, finished, tmp_path):
    world = finished.copy(tmp_path / "home")
    with closing(sqlite3.connect(world.home / "huracan.db")) as database:
        database.execute("DROP TABLE trials")
    done = told(world, "nightly", "--coins", SYNTHETIC)
    assert done.code == 1
    assert "no such table: trials" in done.out
    report = json.loads((world.bucket / "runs/run_20230701_020000/failure_report.json").read_bytes())
    assert (report["step"], report["exception_type"]) == ("champions", "OperationalError")
    assert "record_trials" in report["traceback"]
    assert report["suggestions"]
    beat = json.loads((world.bucket / "heartbeats/engine.json").read_bytes())
    assert beat["phase"] == "failed"
    assert "no such table: trials" in beat["last_error"]
    assert world.pointers() == finished.pointers()


def test_a_dead_run_is_known_by_its_process_and_not_by_its_number(finished, tmp_path):
    """A restarted container gives the next night the pid of the dead one; a living night is left alone."""
    world, own = finished.copy(tmp_path / "home"), process_mark(os.getpid())
    pids = {"dead": "4194305.1", "number taken over": f"{os.getpid()}.1", "killed before it signed": None, "alive": own}
    with world.dagster() as instance:
        runs = {}
        for name, mark in pids.items():
            tags = {PID_TAG: mark} if mark else {}
            runs[name] = instance.create_run_for_job(night_job(), status=dg.DagsterRunStatus.STARTED, tags=tags).run_id
        found = report_dead_runs(instance)
        assert set(found) == {runs["dead"], runs["number taken over"]}
        assert {instance.get_run_by_id(run).status for run in found} == {dg.DagsterRunStatus.FAILURE}
        assert instance.get_run_by_id(runs["alive"]).status is dg.DagsterRunStatus.STARTED


def night_job() -> dg.JobDefinition:
    @dg.job(name=NIGHT_JOB)
    def job() -> None: ...

    return job


@pytest.mark.soak
@pytest.mark.skipif("HURACAN_SOAK" not in os.environ, reason="takes minutes: make soak")
def test_the_bundled_coins_survive_many_kills(tmp_path):
    """`make soak`: real recipe, real length, Ray; a night of three coins is killed again and again, beside one that is not."""
    coins = ("BTCUSDT", "NEOUSDT", "SYNTHETICUSDT")
    config = REPOSITORY / "config"
    quiet, world = (
        World(REPOSITORY / "data/quickstart", config, tmp_path / name, {"HURACAN_TRAINING__BACKEND": "ray"}) for name in ("quiet", "home")
    )
    undisturbed = Killer(quiet, CLOCK, coins, random.Random(0), 0)
    undisturbed.finish()
    seed = time.time_ns() % 10_000
    killer = Killer(world, CLOCK, coins, random.Random(seed), undisturbed.count())
    print(f"seed {seed}")
    while killer.kills < SOAK_KILLS and killer.kill_once(left=SOAK_KILLS - killer.kills):
        pass
    killer.finish()
    assert killer.kills >= SOAK_KILLS // 2
    everything_is_told(killer)
    same_champions(killer, quiet)
