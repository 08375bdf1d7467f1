"""Where units of work run: Ray tasks (default) or threads, one streaming protocol, one failed unit never sinks another."""

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set, Sized
from itertools import islice
from typing import Any, Literal, NamedTuple, Self, TypeVar

import structlog
from pydantic import Field, PositiveFloat, PositiveInt

from engine_resources.records import Failure, Unit, failure_of
from engine_resources.workers import Outcome, RaySession, Session, Task, ThreadSession, lightgbm_device
from hamilton_client.core.contracts import Frozen, HuracanError

__all__ = [
    "Device",
    "Failure",
    "Outcome",
    "Pool",
    "PoolSettings",
    "RayPool",
    "ThreadPool",
    "Unit",
    "choose_device",
    "lightgbm_device",
    "open_pool",
]

T = TypeVar("T")
POLL_SECONDS = 1.0
START_SECONDS = 120.0  # for a new worker to import us, on top of its turn in the queue; then nobody will ever take the task
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}  # two OpenMP threads on one busy core cost four times the CPU
DIED = frozenset({"WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError"})
log = structlog.get_logger(__name__)


class PoolSettings(Frozen):
    """How units run. `retry_attempts` are tries after the first; `timeout_seconds` counts from a unit's start."""

    backend: Literal["ray", "threads"] = "ray"
    mode: Literal["sequential", "parallel", "hybrid"] = "hybrid"
    max_concurrent: PositiveInt = 12
    retry_attempts: int = Field(default=3, ge=0)
    timeout_seconds: PositiveFloat = 1800.0
    num_workers: PositiveInt | None = None
    address: str | None = None
    gpus_per_worker: PositiveFloat = 1.0
    coins_per_gpu: PositiveInt = 12
    gpu_min_rows: PositiveInt = 200_000  # below, a GPU tree costs more in kernel launches than a CPU tree in all
    object_store_mb: PositiveInt = 200


class Device(NamedTuple):
    """Where a fit runs, the share of a GPU it asks for, and why."""

    name: Literal["cpu", "gpu"]
    num_gpus: float
    reason: str


def choose_device(rows: int, cluster_resources: Mapping[str, float], settings: PoolSettings) -> Device:
    """Ask for `gpus_per_worker / coins_per_gpu` of a GPU iff the cluster has one and a fit has `gpu_min_rows` rows or more."""
    if cluster_resources.get("GPU", 0.0) <= 0:
        return Device("cpu", 0.0, "the cluster has no GPU")
    if rows < settings.gpu_min_rows:
        return Device("cpu", 0.0, f"fits of fewer than {settings.gpu_min_rows} rows are faster on a CPU")
    return Device("gpu", settings.gpus_per_worker / settings.coins_per_gpu, f"fits have {settings.gpu_min_rows} rows or more")


class Pool:
    """The loop that both backends share: a bounded window, deadlines, and retries of the one unit that killed its worker."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings

    def imap(
        self, fn: Callable[..., T], units: Iterable[Unit], *args: Any, batch: int = 1, rows: int = 0
    ) -> Generator[Outcome[T], None, None]:
        """Yield one Outcome per unit as each finishes, in no order; `units` is read only as the window frees up.

        `fn(unit, *args)` is a picklable top-level function that may run twice. In hybrid mode `batch` neighbouring units share a task.
        `rows` is the size of a unit's largest fit, for the device choice. Closing the generator cancels what is in flight.
        """
        session = self._open(fn, args, rows)
        size = self._batch_size(units, batch, session.workers)
        patience = START_SECONDS + self.settings.timeout_seconds * size * (1 + session.window // session.workers)
        source, again, crashes = iter(units), deque[list[Unit]](), Counter[Unit]()
        live: set[Task] = set()
        done: list[Outcome[T]] = []
        try:
            while True:
                while len(live) < session.window and (chunk := again.popleft() if again else list(islice(source, size))):
                    task = Task(deque(chunk), time.monotonic() + patience)
                    session.submit(task)
                    live.add(task)
                yield from done  # after the refill, so that a slow consumer does not idle the workers
                if not live:
                    return
                done = [outcome for task, event in self._turn(session, live) for outcome in self._settle(task, event, again, crashes)]
                live = {task for task in live if task.left}
        finally:
            for task in live:
                session.cancel(task)

    def _turn(self, session: Session, live: Set[Task]) -> Iterator[tuple[Task, Any]]:
        """Wait for something to happen; yield every event at hand, then a TimeoutError for each task past its deadline."""
        nearest = min(task.deadline for task in live) - time.monotonic()
        yield from session.events(live, max(0.0, min(POLL_SECONDS, nearest)))
        for task in live:
            if task.left and task.deadline <= time.monotonic():
                session.cancel(task)
                yield task, TimeoutError(f"no result within timeout_seconds={self.settings.timeout_seconds:g}")

    def _settle(self, task: Task, event: Any, again: deque[list[Unit]], crashes: Counter[Unit]) -> list[Outcome[Any]]:
        """Apply one event; return the outcomes it settles. Units that a dead task had not reached are queued again."""
        if not task.left:
            return []
        unit = task.left[0]
        if not isinstance(event, BaseException):
            task.deadline = time.monotonic() + self.settings.timeout_seconds
            if event is None:
                return []
            task.left.popleft()
            return [event]
        rest = list(task.left)
        task.left.clear()
        if type(event).__name__ in DIED:  # a dying worker takes finished outcomes with it, so only a task of one unit tells who did it
            crashes[unit] += len(rest) == 1
            if crashes[unit] <= self.settings.retry_attempts:
                again.extend([each] for each in rest)
                return []
        again.extend([rest[1:]] if rest[1:] else [])
        return [Outcome(unit, None, failure_of(event), 0.0)]

    def _batch_size(self, units: Iterable[Unit], batch: int, workers: int) -> int:
        if self.settings.mode != "hybrid":
            return 1
        fair = math.ceil(len(units) / (2 * workers)) if isinstance(units, Sized) else batch  # no worker idles behind a long last batch
        return max(1, min(batch, fair))

    def _limit(self, cores: int) -> int:
        return 1 if self.settings.mode == "sequential" else min(self.settings.num_workers or cores, self.settings.max_concurrent)

    def _open(self, fn: Callable[..., Any], args: Sequence[Any], rows: int) -> Session:
        raise NotImplementedError

    def close(self) -> None:
        """Release the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ThreadPool(Pool):
    """Daemon threads in this process. A unit past its deadline is given up, not stopped: nothing can stop a thread."""

    def _open(self, fn: Callable[..., Any], args: Sequence[Any], rows: int) -> Session:
        return ThreadSession(fn, args, self.settings.retry_attempts, self._limit(len(os.sched_getaffinity(0))))


class RayPool(Pool):
    """Ray tasks of one core each, on a local Ray started at first use or on the cluster at `settings.address`."""

    def __init__(self, settings: PoolSettings) -> None:
        super().__init__(settings)
        self._started = False
        self._said: set[str] = set()

    def _open(self, fn: Callable[..., Any], args: Sequence[Any], rows: int) -> Session:
        import ray

        if not ray.is_initialized():
            self._start()
        resources = ray.cluster_resources()
        device = choose_device(rows, resources, self.settings)
        if device.reason not in self._said:
            self._said.add(device.reason)
            log.info("device", device=device.name, num_gpus=device.num_gpus, reason=device.reason)
        slots = int(resources.get("GPU", 0) // device.num_gpus) if device.num_gpus else int(resources.get("CPU", 1))
        workers = max(1, min(slots, self._limit(slots)))
        queued = (
            workers if workers == slots and self.settings.mode != "sequential" else 0
        )  # Ray's slots bound what runs; a queue keeps them busy
        return RaySession(fn, args, self.settings.retry_attempts, workers, workers + queued, device.num_gpus)

    def _start(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.settings.address:
            where: dict[str, Any] = {"address": self.settings.address, "runtime_env": {"env_vars": ONE_THREAD}}
        else:
            here = os.pathsep.join(part for part in sys.path if part)  # workers import what this process can import
            where = {
                "address": "local",  # left out, Ray joins whatever cluster it finds on the machine
                "num_cpus": self._limit(len(os.sched_getaffinity(0))),
                "object_store_memory": self.settings.object_store_mb * 1_000_000,
                "include_dashboard": False,
                "runtime_env": {"env_vars": {**ONE_THREAD, "PYTHONPATH": here}},
            }
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise HuracanError(
                f"no Ray cluster answers at {self.settings.address}: {error}. Check RAY_ADDRESS, that the head node is up, "
                "and that RAY_AUTH_TOKEN_PATH names the cluster's token; without RAY_ADDRESS a local Ray is started"
            ) from error
        self._started = True

    def close(self) -> None:
        """Shut Ray down if this pool started it."""
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


def open_pool(settings: PoolSettings) -> Pool:
    """Return the pool that `settings.backend` names; nothing is started before the first `imap`."""
    return RayPool(settings) if settings.backend == "ray" else ThreadPool(settings)
