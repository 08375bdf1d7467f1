"""The Brain Library on a real SQLite file, and on a real PostgreSQL where its server and driver are installed."""

import importlib.util
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from engine_resources import tables
from engine_resources.library import Library
from engine_resources.tables import ChampionRow, EquityRow, ModelRow, TradeRow, TrialRow, database_url
from hamilton_client.core.contracts import HuracanError, Regime, SegmentMetrics, SegmentPointer

NIGHT = datetime(2023, 7, 1, 2, tzinfo=UTC)
METRICS = SegmentMetrics(
    sharpe=1.25,
    hit_rate=0.54,
    max_drawdown_pct=3.0,
    net_pnl_pct=4.0,
    net_bps=5.5,
    cost_bps=9.0,
    gross_bps=14.5,
    edge_after_cost_bps=5.5,
    sample_size=120,
    effective_sample=88.5,
    windows=6,
    window=("2023-01-01", "2023-06-30"),
    psr=0.97,
    dsr=None,
)


def champion(symbol="BTCUSDT", generation=1, **changes):
    segments = {
        "1h.TREND": SegmentPointer(model_id="BTCUSDT_TREND_1h_v1_20230701_020000", promoted_at=NIGHT, state="champion", lineage="ab")
    }
    row = ChampionRow(
        symbol=symbol,
        generation=generation,
        bundle=f"models/{symbol}/20230701_020000Z",
        sha256="a" * 64,
        size=123,
        model_id=f"{symbol}_20230701_020000Z",
        segments=segments,
        as_of=NIGHT,
        promoted_at=NIGHT,
    )
    return replace(row, **changes)


def model(model_id="BTCUSDT_TREND_1h_v1_20230701_020000", **changes):
    row = ModelRow(
        model_id=model_id,
        parent_id=None,
        kind="refresh",
        created_at=NIGHT,
        s3_path="models/BTCUSDT/20230701_020000Z/1h.TREND",
        features_used=("ret_1", "rsi_14"),
        params={"num_leaves": 15},
        symbol="BTCUSDT",
        timeframe="1h",
        regime=Regime.TREND,
        lineage="f" * 64,
        as_of=NIGHT,
    )
    return replace(row, **changes)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory):
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install psycopg2-binary")
    server = shutil.which("postgres")
    if server is None:
        pytest.skip("no PostgreSQL server on PATH")
    home, port, tools = tmp_path_factory.mktemp("pg"), free_port(), Path(server).resolve().parent
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    control = [*user, tools / "pg_ctl", "-D", home / "data", "-w"]
    (home / "password").write_text("secret")
    initdb = [tools / "initdb", "-D", home / "data", "-A", "scram-sha-256", "--pwfile", home / "password", "-U", "engine", "--no-sync"]
    subprocess.run([*user, *initdb], check=True, capture_output=True)
    options = f"-h 127.0.0.1 -p {port} -k {home} -c fsync=off"
    subprocess.run([*control, "-l", home / "log", "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
    yield f"postgresql://engine:secret@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "fast", "stop"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/home/library.db"
        return
    url = request.getfixturevalue("postgres_url")
    yield url
    library = Library(url)
    with library.engine.begin() as connection:
        connection.execute(text("drop schema public cascade"))
        connection.execute(text("create schema public"))
    library.close()


@pytest.fixture
def library(url):
    library = Library(url)
    library.migrate()
    yield library
    library.close()


# ---- schema


def test_migrated_schema_is_the_declared_one(library):
    with library.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.METADATA) == []


def test_migrating_again_keeps_the_data(library, url):
    library.promote(champion(), 0, "first", "refresh", {})
    again = Library(url)
    again.migrate()
    assert again.champion("BTCUSDT") == champion()
    again.close()


def test_a_library_of_a_newer_version_is_refused(library):
    with library.engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = 'r9999'"))
    with pytest.raises(HuracanError, match="newer huracan"):
        library.migrate()


def test_contract_columns_are_there():
    promised = {
        "models": "model_id parent_id kind created_at s3_path features_used params",
        "model_metrics": "model_id sharpe hit_rate drawdown net_bps window cost_bps promoted",
        "promotions": "from_model_id to_model_id reason at snapshot",
        "live_trades": "trade_id time symbol side size entry exit fees net_pnl model_id",
        "daily_equity": "date nav max_dd turnover fees_bps",
        "champion": "symbol generation bundle sha256 segments as_of",
    }
    for name, columns in promised.items():
        assert set(columns.split()) <= set(tables.METADATA.tables[name].c.keys()), name


def _migrate(url, barrier):
    barrier.wait()
    Library(url).migrate()


def test_programs_that_start_together_migrate_once(url):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    workers = [spawn.Process(target=_migrate, args=(url, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert Library(url).champions() == {}


@pytest.mark.parametrize("url", ["postgresql://u:p@h/d", "postgres://u:p@h/d", "postgresql+psycopg2://u:p@h/d"])
def test_postgres_urls_get_the_driver_that_works(url):
    assert database_url(url).drivername == "postgresql+psycopg2"


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "library.db", ""])
def test_other_databases_are_refused_without_showing_the_password(url):
    with pytest.raises(HuracanError, match="sqlite:///PATH") as refusal:
        database_url(url)
    assert "secret" not in str(refusal.value)


# ---- champions


def test_first_champion_then_the_next(library):
    assert library.champion("BTCUSDT") is None
    assert library.promote(champion(), 0, "gates passed", "refresh", {"psr": 0.97})
    second = champion(generation=2, model_id="B2", previous=champion().bundle)
    assert library.promote(second, 1, "better", "challenger", {"p": 0.01})
    assert library.champion("BTCUSDT") == second
    assert library.history("BTCUSDT") == (champion(), second)
    moves = library.promotions("BTCUSDT")
    assert [(move.from_model_id, move.to_model_id, move.kind, move.reason) for move in moves] == [
        (None, champion().model_id, "refresh", "gates passed"),
        (champion().model_id, "B2", "challenger", "better"),
    ]
    assert moves[1].snapshot == {"p": 0.01}


@pytest.mark.parametrize("expected", [0, 2, 7])
def test_a_stale_promotion_changes_nothing(library, expected):
    library.promote(champion(), 0, "first", "refresh", {})
    assert not library.promote(champion(generation=8), expected, "stale", "refresh", {})
    assert library.history("BTCUSDT") == (champion(),)
    assert len(library.promotions("BTCUSDT")) == 1


def test_a_generation_never_shrinks(library):
    library.promote(champion(generation=3), 0, "restored", "restore", {})
    with pytest.raises(HuracanError, match="takes a new one, here 4"):
        library.promote(champion(generation=3), 3, "again", "refresh", {})


def test_symbols_that_could_leave_their_column_are_refused(library):
    with pytest.raises(HuracanError, match="did you mean BTCUSDT"):
        library.promote(champion(symbol="BTC/USDT"), 0, "", "refresh", {})


def test_a_fault_between_the_three_writes_leaves_none(library):
    library.promote(champion(), 0, "first", "refresh", {})
    with pytest.raises((StatementError, ValueError)):
        library.promote(champion(generation=2), 1, "poisoned", "refresh", {"psr": float("nan")})
    assert library.champion("BTCUSDT") == champion()
    assert len(library.history("BTCUSDT")) == len(library.promotions("BTCUSDT")) == 1


def test_restore_passes_both_table_and_bucket(library):
    library.promote(champion(), 0, "first", "refresh", {})
    later = NIGHT + timedelta(days=1)
    assert library.restore_generation("BTCUSDT", 7, later).generation == 8
    assert library.restore_generation("BTCUSDT", 2, later) == champion(generation=9, promoted_at=later)
    assert [row.generation for row in library.history("BTCUSDT")] == [1, 8, 9]
    with pytest.raises(HuracanError, match="expected_generation=0"):
        library.restore_generation("ETHUSDT", 1, later)


def test_a_row_becomes_its_pointer_and_back(library):
    library.promote(champion(), 0, "first", "refresh", {})
    row = library.champions()["BTCUSDT"]
    assert row.pointer().bucket_path == row.bundle
    assert ChampionRow.from_pointer(row.pointer()) == row == champion()


def test_instants_keep_their_meaning(library):
    tokyo = NIGHT.astimezone(timezone(timedelta(hours=9)))
    library.promote(champion(promoted_at=tokyo), 0, "first", "refresh", {})
    stored = library.champion("BTCUSDT").promoted_at
    assert stored == NIGHT
    assert stored.utcoffset() == timedelta(0)
    with pytest.raises(StatementError, match="naive instant"):
        library.promote(champion(generation=2, promoted_at=datetime(2023, 7, 2)), 1, "", "refresh", {})


def _race(url, name, wins, barrier):
    library = Library(url)
    barrier.wait()
    done = 0
    while done < wins:
        row = library.champion("BTCUSDT")
        generation = row.generation if row else 0
        done += library.promote(champion(generation=generation + 1), generation, f"{name}-{done}", "refresh", {})


def test_two_promoters_lose_nothing_and_double_nothing(library, url):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    promoters = [spawn.Process(target=_race, args=(url, name, 100, barrier)) for name in "AB"]
    for promoter in promoters:
        promoter.start()
    for promoter in promoters:
        promoter.join(120)
    assert [promoter.exitcode for promoter in promoters] == [0, 0]
    moves = library.promotions("BTCUSDT")
    assert sorted(move.reason for move in moves) == sorted(f"{name}-{turn}" for name in "AB" for turn in range(100))
    assert_consistent(library, 200)


def assert_consistent(library, at_least):
    generations = [row.generation for row in library.history("BTCUSDT")]
    assert generations == [move.generation for move in library.promotions("BTCUSDT")] == list(range(1, len(generations) + 1))
    assert library.champion("BTCUSDT").generation == len(generations) >= at_least
    assert library.champion("BTCUSDT") == library.history("BTCUSDT")[-1]


KILLED = """
import sys
from tests.resources.test_library import Library, champion
library = Library(sys.argv[1])
generation = int(sys.argv[2])
while True:
    assert library.promote(champion(generation=generation + 1), generation, "", "refresh", {"x": "y" * 20_000})
    generation += 1
    sys.stdout.write(f"{generation}\\n"); sys.stdout.flush()
"""


def test_sigkill_during_a_promotion_leaves_a_consistent_table(library, url):
    confirmed = 0
    for turn in range(3):
        victim = subprocess.Popen(
            [sys.executable, "-c", KILLED, url, str(confirmed)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        victim.stdout.readline()
        time.sleep(0.05 + 0.013 * turn)
        victim.send_signal(signal.SIGKILL)
        printed = victim.stdout.read().split()
        victim.wait(10)
        assert_consistent(library, int(printed[-1]) if printed else confirmed + 1)
        confirmed = library.champion("BTCUSDT").generation
    if library.engine.dialect.name == "sqlite":
        with library.engine.connect() as connection:
            assert connection.execute(text("pragma integrity_check")).scalar() == "ok"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), max_size=12))
def test_the_champion_is_always_the_last_of_a_growing_history(tmp_path_factory, steps):
    library = Library(f"sqlite:///{tmp_path_factory.mktemp('swap')}/l.db")
    tables.METADATA.create_all(library.engine)
    current = 0
    for expected, growth in steps:
        moved = library.promote(champion(generation=expected + growth), expected, "", "refresh", {})
        assert moved == (expected == current)
        current = expected + growth if moved else current
    generations = [row.generation for row in library.history("BTCUSDT")]
    assert generations == sorted(set(generations))
    assert (generations or [0])[-1] == current
    library.close()


# ---- models, trials, live


def test_models_and_metrics_are_recorded_once(library):
    for _ in range(2):
        library.record_models([model()])
        library.record_metrics({model().model_id: METRICS})
    assert library.models("BTCUSDT") == (model(),)
    assert library.metrics([model().model_id]) == {model().model_id: METRICS}
    with library.engine.connect() as connection:
        row = connection.execute(select(tables.MODEL_METRICS)).mappings().one()
    assert (row["drawdown"], row["window"], row["promoted"]) == (3.0, "2023-01-01/2023-06-30", False)


def test_recording_again_refreshes_but_keeps_birth_and_status(library):
    library.record_models([model()])
    library.set_active("BTCUSDT", [model().model_id])
    library.record_models([model(created_at=NIGHT + timedelta(hours=1), s3_path="elsewhere")])
    assert library.model(model().model_id) == model(status="active", s3_path="elsewhere")
    assert library.model("unknown") is None


def test_an_id_of_another_lineage_is_refused_whole(library):
    library.record_models([model()])
    with pytest.raises(HuracanError, match="belongs to lineage"):
        library.record_models([model("new"), model(lineage="0" * 64, s3_path="elsewhere")])
    assert library.models("BTCUSDT") == (model(),)


def test_metrics_of_an_unknown_model_are_refused(library):
    with pytest.raises(IntegrityError):
        library.record_metrics({"nobody": METRICS})


def test_active_models_are_exactly_the_chosen(library):
    library.record_models([model(name) for name in "abc"] + [model("other", symbol="ETHUSDT", status="active")])
    library.set_active("BTCUSDT", ["a", "b"])
    library.set_active("BTCUSDT", ["b", "c"])
    assert {row.model_id: row.status for row in library.models("BTCUSDT")} == {"a": "inactive", "b": "active", "c": "active"}
    assert library.model("other").status == "active"


def test_versions_count_nights_not_lineages_and_not_tonight(library):
    nights = [NIGHT + timedelta(days=day) for day in range(3)]
    rows = [model(f"{night:%d}{lineage}", as_of=night, lineage=lineage) for night in nights for lineage in "xy"]
    library.record_models([*rows, model("range", regime=Regime.RANGE)])
    assert library.segment_versions("BTCUSDT") == {"1h.TREND": 3, "1h.RANGE": 1}
    assert library.segment_versions("BTCUSDT", nights[2]) == {"1h.TREND": 2, "1h.RANGE": 1}
    assert library.segment_versions("BTCUSDT", NIGHT) == library.segment_versions("ETHUSDT") == {}


def test_a_trial_counts_once_and_its_first_sharpe_stays(library):
    trials = [TrialRow(recipe_hash="r", segment=segment, first_seen=NIGHT, sharpe=sharpe) for segment, sharpe in (("s", None), ("t", 0.5))]
    library.record_trials(trials)
    library.record_trials([replace(trial, first_seen=NIGHT + timedelta(days=1), sharpe=2.0) for trial in trials])
    library.record_trials([replace(trial, sharpe=3.0) for trial in trials])
    assert library.trial_count() == 2
    assert library.trial_sharpes() == (2.0, 0.5)
    with library.engine.connect() as connection:
        assert connection.scalar(select(func.max(tables.TRIALS.c.first_seen))) == NIGHT


def test_a_closed_trade_is_not_reopened_by_an_older_part(library):
    opened = TradeRow(
        trade_id="t1",
        time=NIGHT,
        symbol="BTCUSDT",
        side="long",
        size=0.5,
        entry=30_000.0,
        exit=None,
        fees=6.0,
        net_pnl=None,
        model_id="m",
        decision_id="d1",
    )
    closed = replace(opened, exit=30_300.0, fees=12.0, net_pnl=138.0, closed_at=NIGHT + timedelta(hours=4), attribution={"trend_v1": 138.0})
    for part in ([opened], [closed], [opened, closed], []):
        library.record_trades(part)
    assert library.trades("BTCUSDT") == (closed,)
    with pytest.raises(IntegrityError):
        library.record_trades([replace(opened, trade_id="t2", side="buy")])


def test_equity_days_are_replaced(library):
    day = EquityRow(date=date(2023, 7, 1), nav=100_000.0, max_dd=0.0, turnover=5_000.0, fees_bps=4.0)
    library.record_equity([day])
    library.record_equity([replace(day, nav=100_100.0), replace(day, date=date(2023, 6, 30))])
    assert [(row.date.day, row.nav) for row in library.equity()] == [(30, 100_000.0), (1, 100_100.0)]
