import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_resources.pool import (
    Outcome,
    Pool,
    PoolSettings,
    RayPool,
    ThreadPool,
    Unit,
    choose_device,
    lightgbm_device,
    open_pool,
)
from hamilton_client.core.contracts import HuracanError


def units(count):
    return [Unit(f"COIN{number:03d}", "1h") for number in range(count)]


def double(unit, *extra):
    return int(unit.symbol[4:]) * 2 + sum(extra)


def sleepy(unit, seconds):
    time.sleep(seconds)
    return os.getpid()


def worst(unit, folder):
    """Every way a unit can go wrong, by its number; each run of a unit leaves a mark."""
    number = int(unit.symbol[4:])
    marks = list(Path(folder).glob(f"{unit.symbol}.*"))
    (Path(folder) / f"{unit.symbol}.{len(marks)}").touch()
    if number == 1:
        raise ValueError("planted")
    if number == 2:
        raise HuracanError("candles of COIN002 end in 2021: ingest them")
    if number == 3 and not marks:
        raise ConnectionResetError("network blinked")
    if number == 4:
        raise TimeoutError("bucket never answers")
    if number == 5:
        sys.exit(3)
    return number


def killer(unit, folder, runs_that_die):
    if unit.symbol == "COIN002":
        mark = Path(folder) / f"{time.time_ns()}"
        mark.touch()
        if len(list(Path(folder).iterdir())) <= runs_that_die:
            os.kill(os.getpid(), signal.SIGKILL)
    return unit.symbol


def hang(unit, folder):
    (Path(folder) / f"{unit.symbol}.{os.getpid()}").touch()
    if unit.symbol == "COIN001":
        time.sleep(600)
    return unit.symbol


def unpicklable(unit):
    return threading.Lock() if unit.symbol == "COIN001" else 1


def worker_environment(unit):
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("POLARS_MAX_THREADS"), lightgbm_device()


@pytest.fixture(scope="module")
def ray_started():
    with RayPool(PoolSettings(num_workers=2)) as pool:
        list(pool.imap(double, units(2)))
        yield


@pytest.fixture(params=["threads", "ray"])
def make_pool(request, monkeypatch):
    """Build a pool with two workers; the Ray behind it is the module's one."""
    monkeypatch.setattr("engine_resources.workers.FIRST_BACKOFF_SECONDS", 0.01)
    if request.param == "ray":
        request.getfixturevalue("ray_started")
    return lambda **settings: open_pool(PoolSettings(**{"backend": request.param, "num_workers": 2, **settings}))


def by_symbol(outcomes):
    found = {outcome.unit.symbol: outcome for outcome in outcomes}
    assert len(found) == len(outcomes), "one outcome per unit"
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


class TestBothBackends:
    @pytest.mark.parametrize("batch", [1, 4])
    def test_every_unit_has_its_own_outcome(self, make_pool, batch):
        found = by_symbol(list(make_pool().imap(double, units(11), 100, 1000, batch=batch)))
        assert {symbol: outcome.value for symbol, outcome in found.items()} == {unit.symbol: double(unit, 1100) for unit in units(11)}
        assert all(outcome.failure is None and outcome.seconds >= 0 for outcome in found.values())

    def test_no_units_no_outcomes(self, make_pool):
        assert list(make_pool().imap(double, [])) == []

    def test_results_stream_before_the_slow_ones_end(self, make_pool):
        started = time.monotonic()
        stream = make_pool().imap(sleepy, itertools.chain(units(6)), 0.3)
        next(stream)
        first = time.monotonic() - started
        list(stream)
        assert first < (time.monotonic() - started) * 0.7

    @pytest.mark.parametrize("batch", [1, 6])
    def test_one_bad_unit_never_sinks_the_others(self, make_pool, tmp_path, batch):
        found = by_symbol(list(make_pool(retry_attempts=2).imap(worst, iter(units(9)), str(tmp_path), batch=batch)))
        assert {name for name, outcome in found.items() if outcome.failure} == {"COIN001", "COIN002", "COIN004", "COIN005"}
        assert found["COIN000"].value == 0
        assert found["COIN008"].value == 8
        fault = found["COIN001"].failure
        assert (fault.exception_type, fault.message) == ("ValueError", "planted")
        assert "in worst" in fault.traceback
        assert fault.suggestions
        plain = found["COIN002"].failure
        assert plain == ("HuracanError", "candles of COIN002 end in 2021: ingest them", "", ())
        tries = {unit.symbol: len(list(tmp_path.glob(f"{unit.symbol}.*"))) for unit in units(9)}
        assert (tries["COIN001"], tries["COIN002"]) == (1, 1), "what cannot succeed is not tried again"
        assert (tries["COIN003"], tries["COIN004"]) == (2, 3), "the network is, at most retry_attempts times"
        assert tries["COIN000"] == tries["COIN008"] == 1, "a neighbour's fault costs nobody a second run"

    def test_a_hang_fails_at_its_deadline_and_its_batch_goes_on(self, make_pool, tmp_path):
        started = time.monotonic()
        found = by_symbol(list(make_pool(timeout_seconds=1).imap(hang, iter(units(4)), str(tmp_path), batch=4)))
        assert time.monotonic() - started < 12
        assert found["COIN001"].failure.exception_type == "TimeoutError"
        assert "timeout_seconds=1" in found["COIN001"].failure.message
        assert [found[f"COIN{number:03d}"].failure for number in (0, 2, 3)] == [None] * 3
        (mark,) = tmp_path.glob("COIN001.*")  # one: what ran out of time is not tried again
        pid = int(mark.suffix[1:])
        assert pid == os.getpid() or gone(pid), "a hung worker process is ended"

    def test_deadline_counts_from_the_start_not_from_the_queue(self, make_pool):
        found = list(make_pool(timeout_seconds=1.2).imap(sleepy, units(8), 0.5))
        assert [outcome.failure for outcome in found] == [None] * 8

    def test_deadline_is_per_unit_of_a_batch(self, make_pool):
        found = list(make_pool(timeout_seconds=1.2).imap(sleepy, iter(units(4)), 0.5, batch=4))
        assert [outcome.failure for outcome in found] == [None] * 4

    def test_a_slow_consumer_is_no_overrun(self, make_pool):
        found = []
        for outcome in make_pool(timeout_seconds=0.4).imap(sleepy, units(4), 0.05):
            time.sleep(0.45)
            found.append(outcome.failure)
        assert found == [None] * 4

    def test_the_window_bounds_what_is_read_ahead(self, make_pool):
        read = []

        def source():
            for unit in units(30):
                read.append(unit)
                yield unit

        for taken, _ in enumerate(make_pool().imap(double, source()), start=1):
            assert len(read) - taken <= 4 + 4, "two per worker in flight, as many waiting for the consumer"
        assert taken == len(read) == 30

    def test_sequential_runs_one_at_a_time_and_in_order(self, make_pool):
        found = [outcome.unit for outcome in make_pool(mode="sequential").imap(double, units(5), batch=4)]
        assert found == units(5)

    def test_fault_in_the_consumer_passes_through(self, make_pool):
        def consume():
            for _ in make_pool().imap(sleepy, units(6), 0.05):
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            consume()


@pytest.mark.usefixtures("ray_started")
class TestRay:
    def test_a_killed_worker_is_retried(self, tmp_path):
        found = by_symbol(list(RayPool(PoolSettings()).imap(killer, iter(units(5)), str(tmp_path), 1, batch=5)))
        assert [outcome.failure for outcome in found.values()] == [None] * 5
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_unit_that_kills_every_worker_fails_alone(self, tmp_path):
        found = by_symbol(list(RayPool(PoolSettings(retry_attempts=1)).imap(killer, iter(units(3)), str(tmp_path), 99, batch=3)))
        assert {name for name, outcome in found.items() if outcome.failure} == {"COIN002"}
        assert found["COIN002"].failure.exception_type == "WorkerCrashedError"
        assert any("dmesg" in advice for advice in found["COIN002"].failure.suggestions)
        assert len(list(tmp_path.iterdir())) in (2, 3), "one try and one retry, and one more if its neighbours' outcomes died with it"

    def test_closing_the_stream_ends_what_is_in_flight(self, tmp_path):
        stream = RayPool(PoolSettings()).imap(hang, units(2), str(tmp_path))
        next(stream)
        end = time.monotonic() + 10
        while not (marks := list(tmp_path.glob("COIN001.*"))) and time.monotonic() < end:
            time.sleep(0.05)
        stream.close()
        assert gone(int(marks[0].suffix[1:]))

    def test_a_result_that_cannot_travel_fails_its_unit_only(self):
        found = by_symbol(list(RayPool(PoolSettings()).imap(unpicklable, iter(units(3)), batch=3)))
        assert [found[f"COIN{number:03d}"].value for number in (0, 2)] == [1, 1]
        assert found["COIN001"].failure.exception_type == "TypeError"
        assert "pickle" in found["COIN001"].failure.message

    def test_workers_have_one_thread_and_no_gpu(self):
        (outcome,) = RayPool(PoolSettings()).imap(worker_environment, units(1))
        assert outcome.value == ("1", "1", "cpu")

    def test_only_who_started_ray_stops_it(self):
        import ray

        with RayPool(PoolSettings()) as pool:
            list(pool.imap(double, units(1)))
        assert ray.is_initialized()

    def test_device_is_said_once(self, capsys):
        pool = RayPool(PoolSettings())
        for _ in range(2):
            list(pool.imap(double, units(1), rows=10**7))
        said = capsys.readouterr()
        assert (said.out + said.err).count("the cluster has no GPU") == 1  # whichever of the two another test set the logs to


def test_a_cluster_that_does_not_answer_is_explained(monkeypatch):
    import ray

    def refuse(**_):
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(HuracanError, match=r"no Ray cluster answers at 10\.0\.0\.9:6379.*RAY_AUTH_TOKEN_PATH"):
        list(RayPool(PoolSettings(address="10.0.0.9:6379")).imap(double, units(1)))


class TestDevice:
    settings = PoolSettings(gpu_min_rows=1000, coins_per_gpu=12)

    @pytest.mark.parametrize(
        ("rows", "resources", "name", "num_gpus"),
        [
            (10**6, {"CPU": 8.0}, "cpu", 0.0),
            (10**6, {"CPU": 8.0, "GPU": 0.0}, "cpu", 0.0),
            (999, {"CPU": 8.0, "GPU": 1.0}, "cpu", 0.0),
            (1000, {"CPU": 8.0, "GPU": 1.0}, "gpu", 1 / 12),
        ],
    )
    def test_a_gpu_only_where_there_is_one_and_it_pays(self, rows, resources, name, num_gpus):
        device = choose_device(rows, resources, self.settings)
        assert (device.name, device.num_gpus) == (name, pytest.approx(num_gpus))
        assert device.reason

    @given(st.integers(0, 10**8), st.floats(0, 64), st.integers(1, 64))
    def test_never_more_than_the_share(self, rows, gpus, coins):
        device = choose_device(rows, {"GPU": gpus}, PoolSettings(coins_per_gpu=coins))
        assert (device.num_gpus > 0) == (device.name == "gpu")
        assert device.num_gpus <= 1 / coins
        assert device.name == "cpu" or gpus > 0

    def test_this_process_has_none(self):
        assert lightgbm_device() == "cpu"


@given(st.integers(0, 400), st.integers(1, 32), st.integers(1, 64), st.booleans())
def test_a_batch_never_idles_a_worker(count, batch, workers, hybrid):
    pool = Pool(PoolSettings(mode="hybrid" if hybrid else "parallel"))
    size = pool._batch_size(units(count), batch, workers)
    assert 1 <= size <= batch
    assert size == 1 or (hybrid and -(-count // size) >= min(count, workers))


def test_settings_refuse_nonsense():
    for wrong in ({"max_concurrent": 0}, {"retry_attempts": -1}, {"backend": "dask"}, {"timeout_seconds": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PoolSettings(**wrong)


def test_thread_pool_is_bounded_by_max_concurrent():
    running, peak, guard = 0, 0, threading.Lock()

    def count(unit):
        nonlocal running, peak
        with guard:
            running += 1
            peak = max(peak, running)
        time.sleep(0.01)
        with guard:
            running -= 1

    outcomes: list[Outcome[None]] = list(ThreadPool(PoolSettings(num_workers=8, max_concurrent=3)).imap(count, units(20)))
    assert len(outcomes) == 20
    assert peak == 3
