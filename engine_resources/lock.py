"""One night at a time: an operating-system lock that goes with its process, never a lock file that outlives it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hamilton_client.core.contracts import HuracanError

LOCK_FILE = "night.lock"


@contextmanager
def night_lock(home: Path, run_id: str) -> Iterator[None]:
    """Hold `home/night.lock` for the duration of one night; the kernel releases it however the process ends.

    The file stays and names its last holder; only the lock on it counts. Raises HuracanError while another night holds it, naming
    that night's run and pid.
    """
    home.mkdir(parents=True, exist_ok=True)
    path = home / LOCK_FILE
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HuracanError(_refusal(path)) from None
        file.truncate(0)
        file.write(json.dumps({"run_id": run_id, "pid": os.getpid()}).encode())
        file.flush()
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it with a child that is being forked just now


def _refusal(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        who = f"{holder['run_id']} (pid {holder['pid']})"
    except (ValueError, KeyError, TypeError):  # it has the lock but has not signed yet
        who = "another night"
    return (
        f"{who} is running and holds {path}. Wait until it ends (huracan status shows where it is), or end that process; "
        "the lock goes with it, and huracan nightly --resume carries on from what it had done"
    )
