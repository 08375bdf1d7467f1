import os
import signal
import subprocess
import sys
import time

import pytest

from engine_resources.lock import LOCK_FILE, night_lock
from hamilton_client.core.contracts import HuracanError

HOLDER = """
import sys, time
from pathlib import Path
from engine_resources.lock import night_lock
with night_lock(Path(sys.argv[1]), "run_20250101_020000"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env=env)
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_night_is_told_who_runs_and_what_to_do(tmp_path, holder):
    with pytest.raises(HuracanError) as refused, night_lock(tmp_path, "run_20250102_020000"):
        pytest.fail("two nights at once")
    assert f"run_20250101_020000 (pid {holder.pid})" in str(refused.value)
    assert "huracan status" in str(refused.value)
    assert "--resume" in str(refused.value)


def test_the_lock_goes_with_a_killed_process(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with night_lock(tmp_path, "run_20250102_020000"):
        assert (tmp_path / LOCK_FILE).read_text() == f'{{"run_id": "run_20250102_020000", "pid": {os.getpid()}}}'


def test_a_child_that_outlives_its_night_does_not_keep_the_lock(tmp_path):
    with night_lock(tmp_path, "run_1"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    try:
        with night_lock(tmp_path, "run_2"):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_one_process_cannot_hold_it_twice(tmp_path):
    with night_lock(tmp_path, "run_1"), pytest.raises(HuracanError, match=r"run_1 \(pid"), night_lock(tmp_path, "run_2"):
        pytest.fail("two nights at once")


def test_it_is_free_again_after_an_exception(tmp_path):
    with pytest.raises(KeyError), night_lock(tmp_path / "new" / "home", "run_1"):
        raise KeyError
    with night_lock(tmp_path / "new" / "home", "run_2"):
        pass


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_holder_that_has_not_signed_is_no_crash(tmp_path, holder, body):
    (tmp_path / LOCK_FILE).write_bytes(body)
    with pytest.raises(HuracanError, match="another night is running"), night_lock(tmp_path, "run_2"):
        pytest.fail("two nights at once")


def test_a_longer_name_of_an_earlier_night_leaves_no_rest(tmp_path):
    for run in ("run_with_a_very_long_name_indeed", "run_2"):
        with night_lock(tmp_path, run), pytest.raises(HuracanError, match=rf"^{run} \(pid"), night_lock(tmp_path, "x"):
            time.sleep(0)
