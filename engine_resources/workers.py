"""What runs in and on workers: a unit with its retries, a task of units as a stream, and one session per backend that submits tasks."""

import errno
import math
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from engine_resources.records import Failure, Unit, failure_of

T = TypeVar("T")
FIRST_BACKOFF_SECONDS = 0.2
NETWORK_ERRNOS = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT})


class Outcome(NamedTuple, Generic[T]):
    """What became of one unit: `value` (fn's return) or `failure`; `seconds` is wall time in the worker, retries included."""

    unit: Unit
    value: T | None
    failure: Failure | None
    seconds: float


def lightgbm_device() -> str:
    """Return LightGBM's `device_type` for this worker: `cuda` or `gpu` if its task holds a GPU and a tiny fit runs there, else `cpu`."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or not ray.get_gpu_ids():  # asked first: an OpenCL CPU passes the probe
        return "cpu"
    return _probed_device()


@lru_cache(maxsize=1)
def _probed_device() -> str:
    import lightgbm as lgb
    import numpy as np

    column = np.arange(64.0).reshape(-1, 1)
    for device in ("cuda", "gpu"):
        params = {"objective": "binary", "device_type": device, "num_leaves": 2, "min_data_in_leaf": 1, "verbosity": -1}
        try:
            lgb.train(params, lgb.Dataset(column, (column[:, 0] > 31).astype(float)), 1)
        except lgb.basic.LightGBMError:
            continue
        return device
    return "cpu"


def _is_transient(error: Exception) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in NETWORK_ERRNOS)


def _run_unit(fn: Callable[..., T], unit: Unit, args: Sequence[Any], retries: int) -> Outcome[T]:
    started = time.perf_counter()
    attempt = 0
    while True:
        try:
            return Outcome(unit, fn(unit, *args), None, time.perf_counter() - started)
        except Exception as error:
            if attempt == retries or not _is_transient(error):
                return Outcome(unit, None, failure_of(error), time.perf_counter() - started)
        time.sleep(FIRST_BACKOFF_SECONDS * 2**attempt)
        attempt += 1


def _work(fn: Callable[..., T], units: Sequence[Unit], args: Sequence[Any], retries: int) -> Iterator[Outcome[T] | None]:
    """Run one task: None once it has started (deadlines count from there), then one outcome per unit as it is done."""
    yield None
    for unit in units:
        yield _run_unit(fn, unit, args, retries)


@dataclass(eq=False, slots=True)
class Task:
    """Units in flight; the first of `left` is the one that runs, or runs next."""

    left: deque[Unit]
    deadline: float = math.inf
    handle: Any = None


class Session(Protocol):
    """One imap's hold on its workers; at most `window` tasks are submitted, of which `workers` run."""

    workers: int
    window: int

    def submit(self, task: Task) -> None:
        """Hand over a task; never blocks."""

    def events(self, live: Set[Task], timeout: float) -> list[tuple[Task, Any]]:
        """Wait up to `timeout` seconds; return what happened to `live`: None (started), an Outcome, or the exception it died of."""

    def cancel(self, task: Task) -> None:
        """Give the task up; its later events are of no interest."""


class ThreadSession:
    """One daemon thread per task."""

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any], retries: int, workers: int) -> None:
        self.workers = self.window = workers
        self._call = (fn, args, retries)
        self._queue = queue.SimpleQueue[tuple[Task, Any]]()

    def submit(self, task: Task) -> None:
        """Start a thread."""
        task.handle = threading.Event()
        threading.Thread(target=self._run, args=(task, list(task.left)), daemon=True, name=f"unit-{task.left[0].symbol}").start()

    def _run(self, task: Task, units: list[Unit]) -> None:
        fn, args, retries = self._call
        try:
            for event in _work(fn, units, args, retries):
                self._queue.put((task, event))
                if task.handle.is_set():
                    return
        except BaseException as error:  # SystemExit in a unit must not leave its task waiting
            self._queue.put((task, error))

    def events(self, live: Set[Task], timeout: float) -> list[tuple[Task, Any]]:
        """Empty the queue that all threads report to."""
        found: list[tuple[Task, Any]] = []
        try:
            found.append(self._queue.get(timeout=timeout))
            while True:
                found.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return [(task, event) for task, event in found if task in live]

    def cancel(self, task: Task) -> None:
        """Stop before the next unit: a running one cannot be stopped."""
        task.handle.set()


class RaySession:
    """One streaming Ray task per task; `args` travel once, through the object store."""

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any], retries: int, workers: int, window: int, num_gpus: float) -> None:
        import ray

        self._ray, self.workers, self.window = ray, workers, window
        self._fn, self._args, self._retries = fn, ray.put(args), retries
        self._remote = _remote_work().options(num_gpus=num_gpus) if num_gpus else _remote_work()

    def submit(self, task: Task) -> None:
        """Queue a Ray task."""
        task.handle = self._remote.remote(self._fn, list(task.left), self._args, self._retries)

    def events(self, live: Set[Task], timeout: float) -> list[tuple[Task, Any]]:
        """Take the next item of every stream that has one."""
        tasks = {task.handle: task for task in live}
        first, _ = self._ray.wait(list(tasks), num_returns=1, timeout=timeout)
        ready = self._ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if first else []
        return [(tasks[handle], self._next(handle)) for handle in ready]

    def _next(self, handle: Any) -> Any:
        try:
            return self._ray.get(next(handle))
        except self._ray.exceptions.RayTaskError as error:  # from _work itself: a result that cannot be pickled
            return error.cause
        except self._ray.exceptions.RayError as error:
            return error
        except StopIteration:
            return self._ray.exceptions.WorkerCrashedError()

    def cancel(self, task: Task) -> None:
        """Kill the worker."""
        if self._ray.is_initialized():
            self._ray.cancel(task.handle, force=True)


@lru_cache(maxsize=1)
def _remote_work() -> Any:
    import ray

    return ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_work)  # one for all: each export costs workers an import
