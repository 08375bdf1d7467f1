import json
import re
import shutil
import subprocess
import threading
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_resources import records as r
from engine_resources.records import Failure, Heart, NightRecords, Unit, environment, failure_of, read_ledger
from hamilton_client.core import layout
from hamilton_client.core.contracts import FailureReport, Heartbeat, HuracanError
from hamilton_client.store import LocalStore

RUN = "run_20250101_020000"
NOW = datetime(2025, 1, 1, 2, 5, tzinfo=UTC)
UNIT = Unit("BTCUSDT", "1h")


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "bucket")


@pytest.fixture
def night(store):
    return NightRecords(store, RUN, lambda: NOW)


class BrokenStore(LocalStore):
    """A bucket that refuses writes while `broken`."""

    broken = True

    def put(self, key, body, *, if_absent=False):
        if self.broken:
            raise HuracanError("bucket is away")
        return super().put(key, body, if_absent=if_absent)


def beat(store):
    return Heartbeat.from_bytes(store.get(layout.ENGINE_HEARTBEAT))


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


class TestLedger:
    def test_a_line_is_there_as_soon_as_it_is_written(self, night, store):
        line = night.ledger("features", UNIT, True, detail={"rows": 8760})
        assert read_ledger(store, RUN) == [line]
        assert store.list("") == [f"runs/{RUN}/ledger/features/BTCUSDT.1h.json"]
        assert (line.run_id, line.at, line.ok, line.error, line.detail) == (RUN, NOW, True, None, {"rows": 8760})

    def test_a_later_attempt_replaces_the_line(self, night, store):
        night.ledger("models", UNIT, False, "planted")
        night.ledger("models", UNIT, True)
        assert [(line.ok, line.error) for line in read_ledger(store, RUN, "models")] == [(True, None)]

    def test_stages_and_runs_are_told_apart(self, night, store):
        for stage in ("models", "models/TREND", "models2"):
            night.ledger(stage, UNIT, True)
        NightRecords(store, "run_20250102_020000").ledger("models", UNIT, True)
        night.failure("models", "BTCUSDT", Failure("ValueError", "planted"))
        assert [line.stage for line in read_ledger(store, RUN, "models")] == ["models"]
        assert [line.stage for line in read_ledger(store, RUN, "models/TREND")] == ["models/TREND"]
        assert len(read_ledger(store, RUN)) == 3
        assert read_ledger(store, "run_20300101_020000") == []

    def test_units_of_many_workers_are_all_there(self, night, store):
        wanted = [Unit(f"COIN{number}", timeframe) for number in range(50) for timeframe in ("1h", "4h")]
        threads = [threading.Thread(target=night.ledger, args=("raw", unit, True)) for unit in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {Unit(line.symbol, line.timeframe) for line in read_ledger(store, RUN, "raw")} == set(wanted)

    def test_an_unreadable_line_is_named(self, night, store):
        night.ledger("raw", UNIT, True)
        store.put(layout.ledger_line(RUN, "raw", "ETHUSDT", "1h"), b"{}")
        with pytest.raises(HuracanError, match=r"raw/ETHUSDT\.1h\.json.*Delete it"):
            read_ledger(store, RUN)

    def test_a_symbol_cannot_leave_its_folder(self, night):
        with pytest.raises(HuracanError, match="refused"):
            night.ledger("raw", Unit("../../champion", "1h"), True)

    @given(st.booleans(), st.none() | st.text(), st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
    def test_any_line_comes_back_as_it_was(self, tmp_path_factory, ok, error, detail):
        store = LocalStore(tmp_path_factory.mktemp("bucket"))
        line = NightRecords(store, RUN).ledger("raw", UNIT, ok, error, detail)
        assert read_ledger(store, RUN, "raw") == [line]


class TestFailures:
    def test_a_coins_failure_has_its_own_report_and_the_first_is_the_runs(self, night, store):
        for symbol in ("BTCUSDT", "ETHUSDT"):
            night.failure("models", symbol, failure_of(ValueError(f"planted in {symbol}")), ["features/x.parquet"])
        own = FailureReport.from_bytes(store.get(layout.failure_report(RUN, "ETHUSDT", "models")))
        assert (own.step, own.symbol, own.exception_type, own.message) == ("models", "ETHUSDT", "ValueError", "planted in ETHUSDT")
        assert own.last_files_written == ("features/x.parquet",)
        assert own.suggestions
        assert FailureReport.from_bytes(store.get(layout.failure_report(RUN))).symbol == "BTCUSDT"

    def test_the_runs_own_failure_comes_first(self, night, store):
        night.failure("models", "BTCUSDT", Failure("ValueError", "planted"))
        night.failure("champions", None, Failure("DatabaseError", "gone"))
        assert json.loads(store.get(layout.failure_report(RUN)))["exception_type"] == "DatabaseError"

    def test_a_step_with_a_slash_stays_one_file(self, night, store):
        night.failure("models/TREND", "BTCUSDT", Failure("ValueError", "planted"))
        assert f"runs/{RUN}/failures/BTCUSDT.models-TREND.json" in store.list("")

    def test_exception_is_described_by_its_own_traceback(self):
        def planted():
            raise ConnectionResetError("peer left")

        with pytest.raises(ConnectionResetError) as caught:
            planted()
        failure = failure_of(caught.value)
        assert (failure.exception_type, failure.message) == ("ConnectionResetError", "peer left")
        assert "in planted" in failure.traceback
        assert failure.suggestions == r.SUGGESTIONS["ConnectionError"], "advice follows the nearest base class"

    def test_what_the_user_can_act_on_stays_plain(self):
        assert failure_of(HuracanError("do this")) == Failure("HuracanError", "do this", "", ())

    @pytest.mark.parametrize(
        "error", [ValueError("x"), KeyError("x"), MemoryError(), TimeoutError("x"), PermissionError("x"), RuntimeError()]
    )
    def test_everything_else_comes_with_advice(self, error):
        assert failure_of(error).suggestions


class TestHeart:
    def test_it_beats_by_itself(self, store):
        ticks = iter(range(10**6))
        with Heart(store, RUN, lambda: datetime.fromtimestamp(next(ticks), UTC), seconds=0.02):
            wait_for(lambda: store.exists(layout.ENGINE_HEARTBEAT))
            first = beat(store).at
            wait_for(lambda: beat(store).at > first)

    def test_a_change_of_phase_is_written_at_once(self, store):
        with Heart(store, RUN, lambda: NOW, seconds=60) as heart:
            for phase in ("raw", "features", "models"):
                heart.update(phase)
                wait_for(lambda phase=phase: store.exists(layout.ENGINE_HEARTBEAT) and beat(store).phase == phase)

    def test_what_it_says(self, store):
        with Heart(store, RUN, lambda: NOW, seconds=0.01) as heart:
            heart.update("models", symbol="BTCUSDT", progress=0.25, error="ETHUSDT 4h: ValueError: planted")
            heart.update(progress=0.5)
            wait_for(lambda: store.exists(layout.ENGINE_HEARTBEAT) and beat(store).progress == 0.5)
            said = beat(store)
            assert (said.phase, said.current_symbol, said.run_id, said.at) == ("models", "BTCUSDT", RUN, NOW)
            assert said.last_error == "ETHUSDT 4h: ValueError: planted"
            heart.update("champions")
            wait_for(lambda: beat(store).phase == "champions")
            assert (beat(store).current_symbol, beat(store).progress) == (None, 0.0)
            assert beat(store).last_error, "an error is remembered for the night"

    def test_the_last_beat_says_how_it_ended(self, store):
        with Heart(store, RUN, lambda: NOW, seconds=60):
            pass
        assert (beat(store).phase, beat(store).progress) == ("finished", 1.0)
        with pytest.raises(KeyError), Heart(store, RUN, lambda: NOW, seconds=60):
            raise KeyError("planted")
        assert (beat(store).phase, beat(store).last_error) == ("failed", "KeyError: 'planted'")
        assert not [thread for thread in threading.enumerate() if thread.name == "heart"]

    def test_a_bucket_that_is_away_never_reaches_the_night(self, tmp_path):
        store = BrokenStore(tmp_path)
        with Heart(store, RUN, lambda: NOW, seconds=0.01) as heart:
            heart.update("raw", progress=float("nan"))
            time.sleep(0.05)
            store.broken = False
            heart.update("features", progress=7.0)
            wait_for(lambda: store.exists(layout.ENGINE_HEARTBEAT))
            assert 0 <= beat(store).progress <= 1

    def test_a_bucket_that_hangs_does_not_hold_the_night(self, tmp_path):
        release = threading.Event()

        class Hanging(LocalStore):
            def put(self, key, body, *, if_absent=False):
                return release.wait(30)

        started = time.monotonic()
        with Heart(Hanging(tmp_path), RUN, lambda: NOW, seconds=0.2):
            pass
        assert time.monotonic() - started < 5
        release.set()


class TestEnvironment:
    def test_it_names_what_computes(self):
        found = environment()
        assert set(found.versions) == {"lightgbm", "polars", "numpy", "dagster", "ray", "mlflow", "python"}
        assert all(re.match(r"\d+\.\d+", version) for version in found.versions.values())
        assert found.engine_version == "unknown" or re.match(r"\d+\.\d+", found.engine_version)

    def test_commit_of_a_checkout_and_whether_it_was_changed(self, tmp_path):
        git = [shutil.which("git"), "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path)]
        subprocess.run([*git, "init", "-q"], check=True)
        assert r._git_commit(tmp_path) == "unknown", "no commit yet"
        (tmp_path / "file").write_text("1")
        subprocess.run([*git, "add", "file"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
        clean = r._git_commit(tmp_path)
        assert re.fullmatch(r"[0-9a-f]{40}", clean)
        (tmp_path / "file").write_text("2")
        assert r._git_commit(tmp_path) == f"{clean}-dirty"

    def test_an_installed_copy_has_no_commit(self, tmp_path):
        subprocess.run([shutil.which("git"), "init", "-q", str(tmp_path)], check=True)
        inside = tmp_path / "venv" / "site-packages"
        inside.mkdir(parents=True)
        assert r._git_commit(inside) == "unknown"

    def test_without_git_it_is_unknown(self, monkeypatch, tmp_path):
        (tmp_path / ".git").mkdir()
        monkeypatch.setattr(r.shutil, "which", lambda _: None)
        assert r._git_commit(tmp_path) == "unknown"
