"""What a measurement is, and how CPU time is counted: of this process, and of its whole tree of processes."""

import operator
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

CORES = len(os.sched_getaffinity(0))
TICKS = os.sysconf("SC_CLK_TCK")
COMPARE = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Figure:
    """One measured number: `target` is "" where there is none, else `<= x` or `>= x`; `expected` was written before measuring."""

    name: str
    value: float
    unit: str
    target: str
    expected: str
    note: str
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Is the target reached? None without a target."""
        if not self.target:
            return None
        sign, _, limit = self.target.partition(" ")
        return bool(COMPARE[sign](self.value, float(limit)))

    def to_json(self) -> dict[str, Any]:
        """The figure with its verdict."""
        return asdict(self) | {"met": self.met}


class Process(NamedTuple):
    """One line of the process table; `cpu_seconds` includes children that ended and were reaped."""

    pid: int
    parent: int
    cpu_seconds: float


class Spent(NamedTuple):
    """CPU-seconds of a process tree, wall seconds, and CPU-seconds that everybody else on the machine used meanwhile."""

    cpu: float
    wall: float
    others: float


class Meter:
    """Counts what this process and all of its descendants spend inside the `with`. Ray's workers are never reaped, hence the table."""

    def __enter__(self) -> Self:
        self._before = tree_cpu_seconds(), time.perf_counter(), machine_cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        cpu, wall, machine = (
            now - then for now, then in zip((tree_cpu_seconds(), time.perf_counter(), machine_cpu_seconds()), self._before, strict=True)
        )
        self.spent = Spent(cpu, wall, max(0.0, machine - cpu))


def process_tree(root: int) -> list[Process]:
    """The process `root` and everything below it."""
    table = {process.pid: process for process in _processes()}
    found = [table[root]]
    for process in found:  # grows while it is walked: children of children come after their parents
        found.extend(other for other in table.values() if other.parent == process.pid)
    return found


def _processes() -> Iterator[Process]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended between the listing and the read
            continue
        yield Process(int(folder.name), int(fields[1]), sum(map(int, fields[11:15])) / TICKS)


def tree_cpu_seconds() -> float:
    """CPU-seconds this process and all of its descendants have used so far."""
    return sum(process.cpu_seconds for process in process_tree(os.getpid()))


def machine_cpu_seconds() -> float:
    """CPU-seconds that were not idle on any core since boot."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / TICKS


def peak_rss_mb() -> list[float]:
    """Peak resident memory in MB of this process, then of each of its descendants."""
    peaks = []
    for process in process_tree(os.getpid()):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peaks += [int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")]
    return peaks


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of one call in ms, after one call that is not counted."""
    return cpu_ms_each([work], repeats)[0]


def cpu_ms_each(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median CPU time of one call of each in ms, in turns, so that a slow moment of the machine hits all of them."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, spent in zip(works, times, strict=True):
            started = time.process_time()
            work()
            spent.append(1000 * (time.process_time() - started))
    return [statistics.median(spent[1:]) for spent in times]


def wall_ms(work: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of each of `repeats` calls in ms, ascending, after one call that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times)


def quantile(ascending: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
