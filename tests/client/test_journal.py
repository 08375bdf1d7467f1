import io
import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamilton_client.core.contracts import Action, DecisionEvent, Direction, EngineVote, HuracanError, Regime, RiskPresetName
from hamilton_client.journal import DECISION_SCHEMA, Journal, decisions_frame
from hamilton_client.store import LocalStore

NOON = datetime(2023, 7, 1, 12, tzinfo=UTC)
DAY = date(2023, 7, 1)
PREFIX = "live_logs/decisions/20230701/"


def event(number: int = 0, at: datetime = NOON) -> DecisionEvent:
    votes = tuple(
        EngineVote(
            engine=name, direction=Direction.BUY, edge_bps_before_costs=4.0, confidence_0_1=0.7, horizon_bars=4, horizon_minutes=240.0,
            weight=0.5, gated=gated, metadata={"score": 0.6},
        )
        for name, gated in (("momentum", None), ("trend_v1", "disabled_in_regime"))
    )  # fmt: skip
    return DecisionEvent(
        decision_id=f"id{number}", timestamp=at, symbol="BTCUSDT", regime=Regime.TREND, engine_votes=votes, consensus_score=0.5,
        action=Action.BUY, size_usd=1000.0, expected_edge_bps=9.0, costs_bps=5.0, net_edge_bps=3.5, risk_preset=RiskPresetName.BALANCED,
        reason="trade", metadata={"generation": 3, "note": "naïve ✓"},
    )  # fmt: skip


def parts(store) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(io.BytesIO(store.get(key))) for key in store.list(PREFIX)])


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "bucket")


def test_what_was_appended_is_read_back(journal):
    events = [event(number) for number in range(3)]
    assert all(journal.append(each) for each in events)
    assert journal.read(DAY) == events
    assert journal.read(date(2023, 7, 2)) == []
    assert len((journal.root / "20230701.jsonl").read_text().splitlines()) == 3


def test_the_same_decision_is_kept_once_also_by_another_process(journal):
    assert journal.append(event())
    assert not journal.append(event())
    assert not Journal(journal.root).append(event())
    assert len(journal.read(DAY)) == 1


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 3000))
def test_a_torn_last_line_costs_only_itself(tmp_path_factory, cut):
    journal = Journal(tmp_path_factory.mktemp("journal"))
    for number in range(2):
        journal.append(event(number))
    path = journal.root / "20230701.jsonl"
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[: min(second + cut, len(whole) - 1)])
    assert [each.decision_id for each in journal.read(DAY)] == ["id0"]
    again = Journal(journal.root)
    assert again.append(event(1))
    assert again.append(event(2))
    assert [each.decision_id for each in again.read(DAY)] == ["id0", "id1", "id2"]


def test_a_process_killed_between_lines_loses_none_it_reported(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_journal as t\n"
        "from pathlib import Path; journal = t.Journal(Path(sys.argv[2]))\n"
        "for number in range(100000):\n    journal.append(t.event(number)); print(number, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        reported = [int(process.stdout.readline()) for _ in range(30)]
        process.kill()
        reported += [int(line) for line in process.stdout.read().splitlines()]
    kept = [each.decision_id for each in Journal(tmp_path).read(DAY)]
    assert kept[: len(reported)] == [f"id{number}" for number in reported]


def test_a_damaged_line_in_the_middle_is_named(journal):
    journal.append(event(0))
    path = journal.root / "20230701.jsonl"
    path.write_bytes(b"{not json}\n" + path.read_bytes())
    with pytest.raises(HuracanError, match=r"20230701\.jsonl:1: is no decision"):
        journal.read(DAY)


def test_parts_are_numbered_and_each_decision_is_in_one(journal, store):
    journal.append(event(0))
    assert journal.upload(store) == [f"{PREFIX}000001.parquet"]
    assert journal.upload(store) == []
    journal.append(event(1))
    journal.append(event(2))
    assert Journal(journal.root).upload(store) == [f"{PREFIX}000002.parquet"]
    assert parts(store)["decision_id"].to_list() == ["id0", "id1", "id2"]
    journal.append(event(3, NOON + timedelta(days=1)))
    assert journal.upload(store) == ["live_logs/decisions/20230702/000001.parquet"]


class Stops(LocalStore):
    """A bucket whose writer is killed at the n-th put, before or after it took effect."""

    def __init__(self, root, *, after: bool) -> None:
        super().__init__(root)
        self.after = after

    def put(self, key, body, *, if_absent=False):
        if self.after:
            super().put(key, body, if_absent=if_absent)
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [True, False])
def test_an_upload_that_is_killed_is_repeated_not_doubled(journal, store, after):
    journal.append(event(0))
    with pytest.raises(KeyboardInterrupt):
        journal.upload(Stops(store.root, after=after))
    journal.append(event(1))
    again = Journal(journal.root)
    assert again.upload(store) == [f"{PREFIX}000001.parquet", f"{PREFIX}000002.parquet"]
    assert again.upload(store) == []
    assert parts(store)["decision_id"].to_list() == ["id0", "id1"]


def test_a_new_journal_never_overwrites_what_a_lost_one_uploaded(journal, store, tmp_path):
    journal.append(event(0))
    journal.upload(store)
    other = Journal(tmp_path / "new box")
    other.append(event(1))
    assert other.upload(store) == [f"{PREFIX}000002.parquet"]
    assert parts(store)["decision_id"].to_list() == ["id0", "id1"]


def test_a_torn_line_is_not_uploaded(journal, store):
    journal.append(event(0))
    with (journal.root / "20230701.jsonl").open("ab") as file:
        file.write(b'{"decision_id": "half')
    journal.upload(store)
    assert parts(store).height == 1


def test_parts_can_be_queried(journal, store):
    journal.append(event(0))
    journal.upload(store)
    frame = parts(store)
    assert dict(frame.schema) == DECISION_SCHEMA
    row = frame.row(0, named=True)
    assert row["timestamp"] == NOON
    assert json.loads(row["metadata"]) == {"generation": 3, "note": "naïve ✓"}
    gated = frame.explode("engine_votes").unnest("engine_votes", separator=".").filter(pl.col("engine_votes.gated").is_not_null())
    assert gated["engine_votes.engine"].to_list() == ["trend_v1"]


def test_frames_of_no_events_have_the_schema():
    assert dict(decisions_frame([]).schema) == DECISION_SCHEMA


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HuracanError, match="cannot be journalled"):
        Journal(tmp_path / "file" / "journal").append(event())
