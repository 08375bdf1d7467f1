import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

import bundle_making as making
from hamilton_client.__main__ import main
from hamilton_client.candles import CandleStore
from hamilton_client.core import layout
from hamilton_client.core.bars import closed
from hamilton_client.core.contracts import Action, DecisionEvent, HuracanError, RiskPresetName
from hamilton_client.core.decide import ACTIONS, REASONS, decide
from hamilton_client.core.engines import ENGINES
from hamilton_client.pointer import PointerWatch, read_pointer
from hamilton_client.runner import Champions, bundle_signals, decide_once
from hamilton_client.settings import HamiltonSettings, load_settings
from hamilton_client.store import LocalStore


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HURACAN_HOME", "HURACAN_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / ".huracan" / "bucket")
    making.fill_lake(store)
    return store


@pytest.fixture
def hamilton(capsys, monkeypatch):
    """Run the program as the shell would: arguments in, exit code, stdout and stderr out."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hamilton", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_one_decision_is_shown_with_all_its_reasons(store, hamilton):
    making.publish(store, making.packed())
    code, out, err = hamilton("once", "BTCUSDT")
    assert (code, err) == (0, "")
    for name in ENGINES:
        assert f"  {name} " in out
    for said in (
        "closed 2023-07-01 00:00 UTC, decided as of 2023-07-01 02:00 UTC",
        "generation 1",
        "spot candles stand in for usdm_perp",
        "fees 8.00 + spread 0.50 + impact",
        "preset balanced",
        "1d: no champion for",
    ):
        assert said in out
    assert "SYNTHETIC" not in out


def test_json_is_the_event_and_the_journal_keeps_it_once(store, hamilton):
    making.publish(store, making.packed())
    code, out, _ = hamilton("once", "BTCUSDT", "BTCUSDT", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["refused"] == []
    event = DecisionEvent.model_validate(document["decisions"][0])
    hamilton("once", "BTCUSDT")
    lines = (store.root.parent / "hamilton/decisions/20230701.jsonl").read_bytes().splitlines()
    assert [DecisionEvent.from_bytes(line) for line in lines] == [event]
    keys = store.list("live_logs/")
    assert keys == ["live_logs/decisions/20230701/000001.parquet"]
    assert pl.read_parquet(io.BytesIO(store.get(keys[0])))["decision_id"].to_list() == [event.decision_id]


def test_upload_can_be_switched_off(store, hamilton, monkeypatch):
    making.publish(store, making.packed(segments=()))
    monkeypatch.setenv("HURACAN_JOURNAL__UPLOAD", "false")
    assert hamilton("once", "BTCUSDT")[0] == 0
    assert store.list("live_logs/") == []


@pytest.mark.parametrize("hours_back", [0, 1, 5, 30, 100])
def test_the_live_decision_is_that_of_the_backtest_on_the_same_bar(store, hours_back):
    """Parity: a tail read from the lake at one instant, against one pass over the whole history."""
    made = making.packed()
    pointer = making.pointer_to(made).model_copy(update={"as_of": making.AS_OF - timedelta(days=10)})
    making.publish(store, made)
    store.put(
        layout.champion_pointer("BTCUSDT"),
        pointer.model_copy(update={"bucket_path": read_pointer(store, "BTCUSDT").bucket_path}).to_bytes(),
    )
    champions = Champions(store, PointerWatch())
    as_of = datetime(2023, 7, 1, tzinfo=UTC) - timedelta(hours=hours_back)
    event = decide_once(store, champions, "BTCUSDT", load_settings({}), as_of)
    bundle = champions.get("BTCUSDT").bundle
    seen = bundle_signals(bundle, closed(making.candles(), "1h", as_of))
    batch = decide(
        seen.votes, seen.bars, policy=bundle.policy, combiner=bundle.combiner, costs=bundle.costs, preset=RiskPresetName.BALANCED,
        learned_available=seen.learned_available,
    )  # fmt: skip
    assert event.timestamp == as_of
    assert event.action is ACTIONS[int(batch.action[-1])]
    assert event.reason == REASONS[batch.reason[-1]]
    for name in ("expected_edge_bps", "costs_bps", "net_edge_bps", "size_usd"):
        assert getattr(event, name) == pytest.approx(np.nan_to_num(getattr(batch, name)[-1]), rel=1e-9, abs=1e-9)
    assert event.consensus_score == pytest.approx(batch.score[-1], rel=1e-9, abs=1e-9)


def test_the_breakdown_of_costs_adds_up(store):
    making.publish(store, making.packed())
    event = decide_once(store, Champions(store, PointerWatch()), "BTCUSDT", load_settings({}))
    costs = event.metadata["costs"]
    assert sum(costs[name] for name in ("fees_bps", "spread_bps", "impact_bps", "funding_bps")) == pytest.approx(event.costs_bps)
    assert event.expected_edge_bps - event.costs_bps - costs["safety_margin_bps"] == pytest.approx(event.net_edge_bps)


def test_a_coin_without_models_is_decided_too(store, hamilton):
    making.publish(store, making.packed(segments=()))
    code, out, _ = hamilton("once", "BTCUSDT", "--json")
    event = json.loads(out)["decisions"][0]
    assert code == 0
    assert (event["action"], event["reason"]) == ("hold", "no_learned_champion")
    assert hamilton("once", "BTCUSDT")[1].startswith("BTCUSDT  HOLD  0 USD  reason: no_learned_champion")


def test_a_young_coin_holds_and_does_not_break(store, hamilton):
    making.publish(store, making.packed("ETHUSDT"), "ETHUSDT")
    CandleStore(store).write("ETHUSDT", "1h", making.candles().tail(30))
    code, out, _ = hamilton("once", "ETHUSDT", "--json")
    event = json.loads(out)["decisions"][0]
    assert (code, event["action"], event["regime"]) == (0, "hold", "UNKNOWN")


def test_operator_chooses_preset_and_nav(store, hamilton, monkeypatch):
    making.publish(store, making.packed())
    events = []
    monkeypatch.setenv("HURACAN_RISK__PRESET", "aggressive")
    events.append(json.loads(hamilton("once", "BTCUSDT", "--json")[1])["decisions"][0])
    monkeypatch.setenv("HURACAN_ACCOUNT__NAV_USD", "1000")
    events.append(json.loads(hamilton("once", "BTCUSDT", "--json", "--preset", "conservative")[1])["decisions"][0])
    assert [event["risk_preset"] for event in events] == ["aggressive", "conservative"]
    assert [event["metadata"]["nav_usd"] for event in events] == [100_000.0, 1000.0]
    assert all(event["size_usd"] <= event["metadata"]["nav_usd"] * 0.10 for event in events)


def test_one_refused_coin_never_stops_the_others(store, hamilton):
    making.publish(store, making.packed())
    code, out, err = hamilton("once", "NOCOINUSDT", "BTCUSDT", "btc/usdt", "--json")
    document = json.loads(out)
    assert code == 1
    assert [event["symbol"] for event in document["decisions"]] == ["BTCUSDT"]
    assert [entry["symbol"] for entry in document["refused"]] == ["NOCOINUSDT", "btc/usdt"]
    assert "refused: NOCOINUSDT: NOCOINUSDT has no champion" in err
    assert "did you mean BTCUSDT?" in err


@pytest.mark.parametrize(
    ("as_of", "said"),
    [("2023-06-30T12:00", "knowledge of the future"), ("2023-07-02T00:00Z", "over 3 bars before 2023-07-02 00:00 UTC")],
)
def test_instants_that_would_mislead_are_refused(store, hamilton, as_of, said):
    making.publish(store, making.packed(segments=()))
    code, _, err = hamilton("once", "BTCUSDT", "--as-of", as_of)
    assert code == 1
    assert said in err


def test_without_as_of_the_newest_candle_is_the_clock(store):
    making.publish(store, making.packed(segments=()))
    last = making.candles().tail(1)
    more = pl.concat([last.with_columns(pl.col("ts").dt.offset_by(f"{hours}h")) for hours in range(1, 8)])
    CandleStore(store).write("BTCUSDT", "1h", more)
    event = decide_once(store, Champions(store, PointerWatch()), "BTCUSDT", load_settings({}))
    assert event.metadata["as_of"] == "2023-07-01T07:00:00+00:00"
    assert event.timestamp == datetime(2023, 7, 1, 7, tzinfo=UTC)


def test_synthetic_and_probation_are_said(store, hamilton):
    pointer = making.publish(store, making.packed(segments=making.SEGMENTS[:1], synthetic=True))
    trial = pointer.segments["1h.TREND"].model_copy(update={"probation_until": making.AS_OF + timedelta(days=14)})
    told = pointer.model_copy(update={"segments": pointer.segments | {"1h.TREND": trial}})
    store.put(layout.champion_pointer("BTCUSDT"), told.to_bytes())
    out = hamilton("once", "BTCUSDT")[1]
    assert "SYNTHETIC" in out
    assert "probation 1h.TREND: no real orders yet" in out
    assert "SYNTHETIC" in hamilton("check", "BTCUSDT")[1]


def test_segments_that_are_not_champions_have_no_say(store):
    made = making.packed()
    making.publish(store, made)
    bundle = Champions(store, PointerWatch()).get("BTCUSDT").bundle
    benched = {name: entry.model_copy(update={"state": "rejected: min_sharpe"}) for name, entry in bundle.card.segments.items()}
    object.__setattr__(bundle, "card", bundle.card.model_copy(update={"segments": benched}))
    assert not bundle_signals(bundle, making.candles()).learned_available.any()


def test_check_verifies_every_coin(store, hamilton):
    making.publish(store, making.packed())
    making.publish(store, making.packed("ETHUSDT", segments=()), "ETHUSDT")
    code, out, _ = hamilton("check")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["BTCUSDT", "sound"], ["ETHUSDT", "sound"]]
    assert "rules only" in out
    assert json.loads(hamilton("check", "BTCUSDT", "--json")[1])["sound"][0]["models"] == sorted(making.SEGMENTS)


def test_a_damaged_bundle_is_refused_by_name(store, hamilton):
    pointer = making.publish(store, making.packed())
    key = f"{pointer.bucket_path}/1h.TREND/model.txt"
    store.put(key, store.get(key)[:-100])
    for command in ("once", "check"):
        code, out, err = hamilton(command, "BTCUSDT")
        assert code == 1
        assert "1h.TREND/model.txt" in err
        assert "sound" not in out
        assert "Traceback" not in err


def test_a_bucket_that_was_set_back_is_refused_also_by_the_next_process(store, hamilton):
    old = making.publish(store, making.packed(segments=()))
    making.publish(store, making.packed(segments=(), version=2), generation=2)
    assert hamilton("check", "BTCUSDT")[0] == 0
    store.put(layout.champion_pointer("BTCUSDT"), old.to_bytes())
    code, _, err = hamilton("check", "BTCUSDT")
    assert code == 1
    assert "offers generation 1, this client has used 2" in err


def test_a_bad_new_bundle_never_replaces_a_good_one(store):
    champions = Champions(store, PointerWatch())
    good = making.publish(store, making.packed())
    assert champions.get("BTCUSDT").note == ""
    bundle = champions.get("BTCUSDT").bundle
    assert champions.get("BTCUSDT").bundle is bundle
    made = making.packed(version=9)
    making.publish(store, making.edited(made, **{"policy.json": made.files["policy.json"] + b" "}), generation=2)
    kept = champions.get("BTCUSDT")
    assert kept.pointer == good
    assert "generation 1 is kept" in kept.note
    assert "policy.json" in kept.note
    event = decide_once(store, champions, "BTCUSDT", load_settings({}))
    assert event.metadata["generation"] == 1
    assert "policy.json" in event.metadata["note"]
    store.put(layout.champion_pointer("BTCUSDT"), b"")
    assert champions.get("BTCUSDT").pointer == good
    third = making.publish(store, making.packed(version=3), generation=3)
    fresh = champions.get("BTCUSDT")
    assert (fresh.pointer, fresh.note) == (third, "")


def test_a_coin_without_candles_is_refused(store, hamilton):
    making.publish(store, making.packed("ETHUSDT", segments=()), "ETHUSDT")
    code, _, err = hamilton("once", "ETHUSDT")
    assert code == 1
    assert "has no closed 1h candle" in err
    assert "huracan nightly" in err


@pytest.mark.parametrize(
    "arguments",
    [["once"], ["once", "BTCUSDT", "--preset", "brave"], ["once", "BTCUSDT", "--as-of", "yesterday"], ["check", "--nope"], ["fly"]],
)
def test_wrong_usage_is_two(hamilton, arguments):
    code, out, err = hamilton(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: hamilton" in err


@pytest.mark.parametrize("arguments", [["--help"], ["once", "--help"], ["check", "-h"], ["--version"]])
def test_help_is_there(hamilton, arguments):
    code, out, _ = hamilton(*arguments)
    assert code == 0
    assert "Example: hamilton" in out or len(arguments) == 1


def test_an_empty_bucket_says_what_to_do_and_shows_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hamilton_client", "check", "--home", str(tmp_path / "nothing")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("hamilton: no coin has a champion")
    assert "Traceback" not in done.stderr


def test_the_shipped_file_says_the_defaults():
    shipped = load_settings({"HURACAN_CONFIG": str(making.ROOT / "config")}, home=making.ROOT)
    assert shipped == HamiltonSettings(home=making.ROOT)


def test_settings_name_file_line_and_the_nearest_key(tmp_path):
    (tmp_path / "hamilton.yaml").write_text("risk:\n  presett: balanced\n")
    with pytest.raises(HuracanError, match=r"hamilton\.yaml:2: unknown key 'risk\.presett'; did you mean 'preset'"):
        load_settings({"HURACAN_CONFIG": str(tmp_path)})
    with pytest.raises(HuracanError, match="cannot be read"):
        load_settings({"HURACAN_CONFIG": str(tmp_path / "nowhere")})
    with pytest.raises(HuracanError, match="HURACAN_RISK__PRESET"):
        load_settings({"HURACAN_RISK__PRESET": "brave"})


def test_the_engines_variables_do_not_disturb_the_client(tmp_path):
    environ = {"HURACAN_HOME": str(tmp_path), "HURACAN_TRAINING__MODE": "parallel", "HURACAN_BUCKET__URL": "file:///elsewhere"}
    settings = load_settings(environ, preset="conservative")
    assert (settings.home, settings.bucket_url, settings.risk.preset) == (tmp_path, "file:///elsewhere", RiskPresetName.CONSERVATIVE)
    assert load_settings({"HURACAN_HOME": str(tmp_path)}).bucket_url == str(tmp_path / "bucket")


def test_actions_are_the_three():
    assert set(ACTIONS.values()) == set(Action)
