"""One decision per row: a fault planted at each gate, rows that do not see each other, thresholds that only ever take trades away."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hamilton_client.core.combine import Combiner, seed, solo
from hamilton_client.core.contracts import Action, CostSnapshot, DecisionEvent, HuracanError, Regime
from hamilton_client.core.costs import BarContext
from hamilton_client.core.decide import GATES, REASONS, decide, hard_gates, silence, to_event
from hamilton_client.core.engines import ENGINES
from hamilton_client.core.policy import Policy
from hamilton_client.core.risk import Admission
from hamilton_client.core.votes import Votes

POLICY = Policy.model_validate(yaml.safe_load((Path(__file__).parents[2] / "config/policy.yaml").read_text()))
SNAPSHOT = CostSnapshot(
    symbol="BTCUSDT",
    maker_fee_bps=2,
    taker_fee_bps=4,
    spread_bps=1,
    spread_source="static",
    impact_factor=0.5,
    participation_rate=0.1,
    funding_bps_per_8h=1.0,
    volatility_daily_bps=300,
    volume_daily_usd=1e9,
    as_of={},
)
CODE = {regime: i for i, regime in enumerate(Regime)}
ENGINE_NAMES = ("trend_v1", "momentum", "mean_reversion", "scalping", "learned")
EVERYWHERE = {name: frozenset(Regime) for name in ENGINE_NAMES}


def changed(model, **update):
    """A copy of a frozen record with nested fields replaced: `changed(policy, exits__stop_sigmas=3)`."""
    for path, value in update.items():
        head, _, rest = path.partition("__")
        model = model.model_copy(update={head: changed(getattr(model, head), **{rest: value}) if rest else value})
    return model


def combiner_of(engines=ENGINE_NAMES, reliability=0.7, correlation=None, soft=None):
    matrix = np.eye(len(engines)) if correlation is None else correlation
    return Combiner(
        engines=engines,
        reliability=dict.fromkeys(engines, reliability),
        outcomes={},
        correlation=tuple(tuple(row) for row in matrix.tolist()),
        rows=1000,
        as_of="",
        soft_weights=soft or {},
    )


def votes_of(direction, confidence=0.9, edge=60.0, engines=ENGINE_NAMES, horizon=4):
    direction = np.atleast_2d(np.array(direction, dtype=np.int8))
    shape = direction.shape
    return Votes(engines, direction, np.full(shape, confidence), np.full(shape, edge), np.full(shape[1], horizon, np.int64))


def bars_of(n=1, regime=Regime.TREND, sigma=60.0, volume=1e9, bar_volume=1e7):
    full = np.full(n, 1.0)
    return BarContext(
        np.arange(1, n + 1, dtype=np.int64) * 3_600_000,
        np.full(n, CODE[regime], np.int8),
        full * sigma,
        full * bar_volume,
        full * sigma * np.sqrt(24),
        full * volume,
    )


BUY = [1, 1, 0, 0, 1]


def run(direction=BUY, votes=None, bars=None, policy=POLICY, combiner=None, costs=SNAPSHOT, preset="balanced", **kwargs):
    return decide(
        votes_of(direction) if votes is None else votes,
        bars_of() if bars is None else bars,
        policy=policy,
        combiner=combiner or combiner_of(),
        costs=costs,
        preset=preset,
        regimes_of=kwargs.pop("regimes_of", EVERYWHERE),
        **kwargs,
    )


def reason(decisions):
    return REASONS[decisions.reason[0]]


def test_a_sound_buy_and_its_mirror():
    buy, sell = run(), run([-v for v in BUY])
    assert (buy.action[0], sell.action[0], reason(buy), reason(sell)) == (1, -1, "trade", "trade")
    assert buy.score[0] == pytest.approx(0.9) == -sell.score[0]
    assert buy.expected_edge_bps[0] == pytest.approx(60)
    assert buy.stop_bps[0] == 2 * 60 * 2
    assert buy.size_usd[0] == 10_000
    assert buy.costs_bps[0] == pytest.approx(9 + 60 * np.sqrt(24) * np.sqrt(1e4 / 1e9) + 0.5)
    assert buy.net_edge_bps[0] == pytest.approx(60 - buy.costs_bps[0] - 0.5)
    assert sell.costs_bps[0] == pytest.approx(buy.costs_bps[0] - 1.0)
    assert not sell.closes_only[0]


FAULTS = {
    "never_traded_regime": {"bars": bars_of(regime=Regime.ILLIQUID)},
    "no_learned_champion": {"learned_available": np.array([False])},
    "no_votes": {"direction": [0] * 5},
    "below_threshold": {"votes": votes_of(BUY, confidence=0.49), "preset": "aggressive"},
    "low_agreement": {
        "votes": replace(votes_of([1, 1, 0, -1, -1]), confidence=np.array([[1.0, 1.0, 0, 0.001, 0.0]])),
        "policy": changed(POLICY, consensus__adaptive_thresholds=dict.fromkeys(Regime, 0.3)),
    },
    "no_quorum": {"direction": [1, 0, 0, 0, 0]},
    "below_min_confidence": {"votes": votes_of(BUY, confidence=0.52)},
    "missing_cost_input": {"costs": changed(SNAPSHOT, spread_bps=float("nan"))},
    "no_size": {"bars": bars_of(bar_volume=0.0)},
    "below_min_edge": {"votes": votes_of(BUY, edge=10.0)},
}


@pytest.mark.parametrize("fault", REASONS[1:])
def test_a_fault_planted_at_each_gate_holds_for_its_own_reason(fault):
    got = run(**FAULTS[fault])
    assert reason(got) == fault
    assert (got.action[0], got.size_usd[0]) == (0, 0)


@pytest.mark.parametrize(
    "bars", [bars_of(sigma=np.nan), bars_of(sigma=0.0), bars_of(volume=0.0), bars_of(volume=np.nan), bars_of(bar_volume=np.nan)]
)
def test_an_unknown_market_figure_refuses(bars):
    assert reason(run(bars=bars)) == "missing_cost_input"


def test_an_unknown_edge_refuses():
    assert run(votes=votes_of(BUY, edge=np.nan)).action[0] == 0


def test_without_a_learned_champion_votes_and_score_are_still_shown():
    got, free = run(learned_available=np.array([False])), run()
    assert got.score[0] == free.score[0]
    assert got.weights.tolist() == free.weights.tolist()
    assert got.net_edge_bps[0] == free.net_edge_bps[0]


def test_the_edge_floor_is_inclusive():
    edge = run().costs_bps[0] + 0.5 + 3.0
    assert run(votes=votes_of(BUY, edge=edge)).action[0] == 1
    assert run(votes=votes_of(BUY, edge=edge - 1e-6)).action[0] == 0


def test_thresholds_follow_the_base_regime():
    votes, policy = votes_of([1, 1, 0, 1, 1], confidence=0.6), changed(POLICY, regime_gates__enabled=False)
    assert [run(votes=votes, policy=policy, bars=bars_of(regime=r)).action[0] for r in Regime] == [1, 1, 0, 0, 0]


def test_dissent_counts_against_the_edge_and_only_winners_set_the_horizon():
    votes = replace(votes_of([1, 1, 0, -1, 1]), horizon_bars=np.array([2, 4, 9, 99, 7]), edge_bps=np.array([[80.0, 40, 0, 20, 60]]))
    got = run(votes=votes)
    assert got.expected_edge_bps[0] == pytest.approx((80 + 40 - 20 + 60) / 4)
    assert got.horizon_bars[0] == 4


def test_policy_lists_gate_first_then_what_an_engine_declares():
    regimes_of = {"trend_v1": frozenset(), "scalping": frozenset({Regime.PANIC})}
    table = hard_gates(ENGINE_NAMES, POLICY, regimes_of)
    names = {r: [GATES[c] for c in table[CODE[r]]] for r in Regime}
    assert names[Regime.TREND] == ["open", "open", "disabled_in_regime", "regime_not_supported", "open"]
    assert names[Regime.RANGE] == ["disabled_in_regime", "open", "open", "regime_not_supported", "open"]
    assert names[Regime.PANIC] == ["disabled_in_regime", "open", "open", "open", "open"]
    assert set(names[Regime.ILLIQUID] + names[Regime.UNKNOWN]) == {"regime_never_traded"}
    assert not hard_gates(ENGINE_NAMES, changed(POLICY, regime_gates__enabled=False), regimes_of).any()


@pytest.mark.parametrize("gate", GATES[1:])
def test_a_gated_engine_weighs_nothing_and_says_why(gate):
    regime = Regime.UNKNOWN if gate == "regime_never_traded" else Regime.TREND
    regimes_of = EVERYWHERE | ({"trend_v1": frozenset(), "learned": frozenset()} if gate == "regime_not_supported" else {})
    engine = {"disabled_in_regime": "mean_reversion"}.get(gate, "learned")
    combiner = (
        changed(combiner_of(), reliability={"learned": 0.5} | dict.fromkeys(ENGINE_NAMES[:4], 0.7)) if gate == "no_reliability" else None
    )
    bars, votes = bars_of(regime=regime), votes_of([1] * 5)
    got = run(votes=votes, bars=bars, combiner=combiner, regimes_of=regimes_of)
    event = to_event(got, votes, bars, 0, symbol="BTCUSDT", preset="balanced", metadata={})
    vote = next(v for v in event.engine_votes if v.engine == engine)
    assert (vote.gated, vote.weight, vote.direction) == (gate, 0.0, "buy")


def test_silence_is_what_decide_hears():
    votes, bars = votes_of([[1, 1, -1, -1, 1]] * 2), bars_of(2)
    quiet = silence(votes, bars.regime, POLICY, EVERYWHERE)
    assert quiet.direction.tolist() == [[1, 1, 0, -1, 1]] * 2
    heard, raw = run(votes=quiet, bars=bars), run(votes=votes, bars=bars)
    assert heard.score.tolist() == raw.score.tolist()


def test_soft_weights_lean_the_score():
    soft = {"TREND": {"learned": 0.0}}
    got = run([1, 1, 0, 0, -1], combiner=combiner_of(soft=soft))
    assert got.score[0] == pytest.approx(0.9)
    assert got.weights[0, 4] == 0
    assert run([1, 1, 0, 0, -1], combiner=combiner_of(soft={"RANGE": {"learned": 0.0}})).score[0] == pytest.approx(0.3)


def test_a_single_engine_decides_alone():
    votes = votes_of(BUY)
    assert reason(run([0, 0, 0, 0, 1])) == "no_quorum"
    alone = votes.only("learned")
    got = run(votes=alone, combiner=solo("learned"))
    assert (got.action[0], got.effective[0], got.weights.tolist()) == (1, 1.0, [[1.0]])
    beside = run(votes=votes, combiner=solo("learned"))
    assert (beside.action[0], beside.score[0], beside.net_edge_bps[0]) == (1, got.score[0], got.net_edge_bps[0])


def test_a_sell_on_spot_only_closes():
    got = run([-v for v in BUY], policy=changed(POLICY, market__instrument="spot"))
    assert (got.action[0], got.closes_only[0]) == (-1, True)
    assert not run(policy=changed(POLICY, market__instrument="spot")).closes_only[0]


def test_an_unknown_preset_is_refused():
    with pytest.raises(HuracanError, match="risk_presets"):
        run(preset="reckless")


def world(rng, n, m=13):
    engines = tuple(f"e{j}" for j in range(m))
    group = rng.integers(0, 4, m)
    direction = np.sign(rng.integers(-1, 2, (n, 4))[:, group] + rng.integers(-1, 2, (n, m))).astype(np.int8)
    votes = Votes(engines, direction, rng.uniform(0.4, 1, (n, m)), rng.uniform(0, 90, (n, m)), rng.integers(1, 20, m))
    bars = BarContext(
        np.arange(n) * 3_600_000,
        rng.integers(0, 5, n).astype(np.int8),
        np.where(rng.random(n) < 0.1, np.nan, rng.uniform(10, 200, n)),
        rng.uniform(0, 1e6, n),
        rng.uniform(50, 900, n),
        rng.uniform(1e5, 1e9, n),
    )
    correlation = np.where(group[:, None] == group, rng.uniform(0.8, 1), 0.0)
    np.fill_diagonal(correlation, 1.0)
    combiner = changed(
        combiner_of(engines, correlation=correlation),
        reliability={e: float(r) for e, r in zip(engines, rng.uniform(0.45, 0.8, m), strict=True)},
    )
    return votes, bars, combiner


easy = changed(POLICY, consensus__adaptive_thresholds=dict.fromkeys(Regime, 0.1), consensus__min_agreement_threshold=0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 13))
def test_one_by_one_is_bit_for_bit_the_batch(seed_, m):
    rng = np.random.default_rng(seed_)
    votes, bars, combiner = world(rng, 24, m)
    learned = rng.random(24) < 0.9
    batch = run(votes=votes, bars=bars, combiner=combiner, policy=easy, preset="aggressive", learned_available=learned)
    for rows in (*(slice(i, i + 1) for i in range(24)), rng.permutation(24)):
        part = run(
            votes=votes.take(rows),
            bars=bars.take(rows),
            combiner=combiner,
            policy=easy,
            preset="aggressive",
            learned_available=learned[rows],
        )
        for field in fields(batch):
            assert getattr(part, field.name).tobytes() == getattr(batch, field.name)[rows].tobytes(), field.name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.floats(0, 0.1))
def test_a_stricter_setting_never_creates_a_trade(seed_, level, more):
    votes, bars, combiner = world(np.random.default_rng(seed_), 300)

    def trades(policy):
        return set(np.flatnonzero(run(votes=votes, bars=bars, combiner=combiner, policy=policy, preset="aggressive").action))

    base = changed(easy, consensus__adaptive_thresholds=dict.fromkeys(Regime, level))
    allowed = trades(base)
    presets = {name: changed(preset, min_confidence=min(1.0, preset.min_confidence + more)) for name, preset in base.risk_presets.items()}
    for stricter in (
        changed(base, consensus__adaptive_thresholds=dict.fromkeys(Regime, level + more)),
        changed(base, consensus__min_agreement_threshold=0.5 + more),
        changed(base, consensus__quorum=1.5 + 20 * more),
        changed(base, cost_model__min_edge_after_cost_bps=3 + 100 * more),
        changed(base, cost_model__safety_margin_bps=0.5 + 100 * more),
        changed(base, risk_presets=presets),
    ):
        assert trades(stricter) <= allowed


def test_the_random_world_does_trade():
    got = [run(votes=v, bars=b, combiner=c, policy=easy, preset="aggressive") for v, b, c in [world(np.random.default_rng(1), 500)]]
    assert (got[0].action != 0).sum() > 20


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_every_trade_pays_for_itself(seed_):
    votes, bars, combiner = world(np.random.default_rng(seed_), 300)
    got = run(votes=votes, bars=bars, combiner=combiner, policy=easy, preset="aggressive")
    traded = got.action != 0
    assert np.array_equal(traded, got.reason == 0)
    assert (got.net_edge_bps[traded] >= 3 - 1e-6).all()
    assert (got.size_usd[traded] <= 0.1 * bars.bar_volume_usd[traded] + 1e-9).all()
    assert (got.size_usd[~traded] == 0).all()
    assert (got.horizon_bars >= 1).all()


def test_an_event_carries_every_vote_and_survives_json():
    votes, bars = votes_of(BUY), bars_of()
    got = run(votes=votes, bars=bars)
    event = to_event(got, votes, bars, 0, symbol="BTCUSDT", preset="balanced", metadata={"generation": 3, "bundle": "b"})
    assert DecisionEvent.from_bytes(event.to_bytes()) == event
    assert [v.engine for v in event.engine_votes] == list(ENGINE_NAMES)
    assert [v.direction.value for v in event.engine_votes] == ["buy", "buy", "wait", "wait", "buy"]
    assert event.engine_votes[2].gated == "disabled_in_regime"
    assert event.engine_votes[3].gated is None
    assert event.engine_votes[0].horizon_minutes == 240
    assert sum(v.weight for v in event.engine_votes) == pytest.approx(1)
    assert (event.action, event.size_usd, event.reason, event.regime) == (Action.BUY, 10_000, "trade", Regime.TREND)
    assert event.timestamp.isoformat() == "1970-01-01T01:00:00+00:00"
    assert event.metadata["limit"] == "coin_limit"
    assert json.loads(event.to_bytes())["metadata"]["bundle"] == "b"


def test_a_decision_id_follows_from_symbol_bar_and_generation():
    votes, bars = votes_of([BUY, BUY]), bars_of(2)
    got = run(votes=votes, bars=bars)

    def name(row, symbol="BTCUSDT", generation=1, **more):
        return to_event(got, votes, bars, row, symbol=symbol, preset="balanced", metadata={"generation": generation} | more).decision_id

    assert name(0) == name(0, note="other")
    assert len({name(0), name(1), name(0, "ETHUSDT"), name(0, generation=2)}) == 4


def test_an_event_says_what_the_risk_check_did():
    votes, bars = votes_of(BUY), bars_of()
    got = run(votes=votes, bars=bars)

    def event(admission):
        return to_event(got, votes, bars, 0, symbol="BTCUSDT", preset="balanced", metadata={}, admission=admission)

    refused, cut = event(Admission(0.0, "cooldown_bars: x")), event(Admission(400.0, "sector other: y"))
    assert (refused.action, refused.size_usd, refused.reason) == (Action.HOLD, 0, "cooldown_bars: x")
    assert (cut.action, cut.size_usd, cut.reason, cut.metadata["limit"]) == (Action.BUY, 400, "trade", "sector other: y")


def test_an_event_of_an_unknown_cost_is_json_and_says_so():
    votes, bars = votes_of(BUY, edge=np.nan), bars_of(sigma=np.nan)
    event = to_event(run(votes=votes, bars=bars), votes, bars, 0, symbol="BTCUSDT", preset="balanced", metadata={})
    assert event.metadata["missing"] == ["expected_edge_bps", "costs_bps", "net_edge_bps", "stop_bps"]
    assert event.action is Action.HOLD
    event.to_bytes()


def test_the_engine_table_is_the_default():
    engine = next(iter(ENGINES))
    votes = votes_of([1], engines=(engine,))
    by_default = decide(votes, bars_of(), policy=POLICY, combiner=solo(engine), costs=SNAPSHOT, preset="balanced")
    named = decide(
        votes,
        bars_of(),
        policy=POLICY,
        combiner=solo(engine),
        costs=SNAPSHOT,
        preset="balanced",
        regimes_of={name: each.regimes for name, each in ENGINES.items()},
    )
    assert by_default.gates.tolist() == named.gates.tolist()


def test_no_rows_and_seeded_combiner():
    votes, bars, _ = world(np.random.default_rng(5), 300)
    gross = np.random.default_rng(6).normal(5, 50, votes.direction.shape)
    combiner = seed(votes, gross, np.zeros(gross.shape, np.int64), 0, POLICY, regime_codes=bars.regime, cost_bps=12.0)
    assert len(run(votes=votes, bars=bars, combiner=combiner)) == 300
    assert len(run(votes=votes.take(slice(0, 0)), bars=bars.take(slice(0, 0)), combiner=combiner)) == 0
