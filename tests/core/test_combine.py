"""Conformance (stats.md §8, cases consensus.*), the invariants as properties, and reliabilities that cannot look ahead."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from hamilton_client.core.combine import (
    EVIDENCE_OUTCOMES,
    NEVER_MS,
    Combiner,
    consensus,
    gain,
    independence_weights,
    outcomes,
    reliability_ema,
    seed,
    solo,
    vote_correlation,
)
from hamilton_client.core.policy import Policy
from hamilton_client.core.votes import Votes

POLICY = Policy.model_validate(yaml.safe_load((Path(__file__).parents[2] / "config/policy.yaml").read_text()))
TAU = 0.8
HOUR = 3_600_000


def combine(votes, reliability, correlation, confidence=None, present=None):
    """One row through the batch function: (score, agreement, effective, weights)."""
    m = len(votes)
    conf = np.ones((1, m)) if confidence is None else np.array([confidence], dtype=float)
    voters = np.ones((1, m), dtype=bool) if present is None else np.array([present], dtype=bool)
    matrix = tuple(tuple(row) for row in np.asarray(correlation, dtype=float).tolist())
    result = consensus(np.array([votes], dtype=np.int8), conf, gain(np.asarray(reliability, dtype=float)), matrix, TAU, present=voters)
    return result.score[0], result.agreement[0], result.effective[0], result.weights[0]


@pytest.mark.parametrize(
    ("votes", "reliability", "score", "agreement", "effective"),
    [
        pytest.param([1, 1, 1, -1], [0.8] * 4, 0.5, 0.75, 4.0, id="consensus.threshold"),
        pytest.param([0, 0, 0], [0.7] * 3, 0.0, 0.0, 3.0, id="consensus.all_hold"),
        pytest.param([1, 1, 1], [0.5, 0.4, 0.0], 0.0, 0.0, 0.0, id="consensus.zero_reliability"),
        pytest.param([1] * 20 + [-1] * 3, [0.6] * 23, 17 / 23, 20 / 23, 23.0, id="consensus.23independent"),
        pytest.param([1, 1, -1], [0.7, 0.6, 0.6], 0.5, 0.75, 3.0, id="stats.md: weights 2:1:1"),
    ],
)
def test_conformance_independent_engines(votes, reliability, score, agreement, effective):
    got = combine(votes, reliability, np.eye(len(votes)))
    assert got[:3] == pytest.approx((score, agreement, effective), abs=1e-9)


def test_twenty_clones_are_one_opinion():
    correlation = np.eye(23)
    correlation[:20, :20] = 1.0
    score, agreement, effective, _ = combine([1] * 20 + [-1] * 3, [0.6] * 23, correlation)
    assert (score, agreement, effective) == pytest.approx((-0.5, 0.75, 4.0), abs=1e-9)


def test_conformance_independence_of_a_pair():
    got = independence_weights(np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]), TAU)
    assert got == pytest.approx([2 / 3, 2 / 3, 1], abs=1e-12)
    assert independence_weights(np.array([[1.0, -1.0], [-1.0, 1.0]]), TAU).tolist() == [1, 1]
    assert independence_weights(np.ones((2, 2)), 1.0).tolist() == [0.5, 0.5]


def test_conformance_reliability_average():
    assert reliability_ema(np.ones(10), 0.95) == pytest.approx(0.7006315303808106, abs=1e-12)
    assert np.log(0.5) / np.log(0.95) == pytest.approx(13.513407333964874)
    rng = np.random.default_rng(0)
    ends = [reliability_ema(rng.integers(0, 2, 400).astype(float), 0.95) for _ in range(2000)]
    assert np.std(ends) == pytest.approx(0.08006407690254357, rel=0.06)


@st.composite
def voting(draw, least=1):
    m = draw(st.integers(least, 6))
    two = st.floats(0, 1).map(lambda x: round(x, 2))
    upper = draw(arrays(float, (m, m), elements=st.one_of(two.map(lambda x: round(0.8 + x / 5, 3)), two.map(lambda x: 2 * x - 1))))
    correlation = np.triu(upper, 1)
    correlation = correlation + correlation.T + np.eye(m)
    votes = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=m, max_size=m))
    return votes, draw(st.lists(two, min_size=m, max_size=m)), correlation, draw(st.lists(two, min_size=m, max_size=m))


@given(voting())
def test_bounded_and_sign_symmetric(world):
    votes, reliability, correlation, confidence = world
    score, agreement, effective, weights = combine(votes, reliability, correlation, confidence)
    assert -1 <= score <= 1
    assert 0 <= agreement <= 1 + 1e-12
    assert -1e-12 <= effective <= len(votes) + 1e-9
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1) or weights.sum() == 0
    mirrored = combine([-v for v in votes], reliability, correlation, confidence)
    assert mirrored[0] == -score
    assert mirrored[1:3] == (agreement, effective)


@given(voting())
def test_independence_counts_between_one_and_all(world):
    weights = independence_weights(world[2], TAU)
    assert weights.min() >= 0
    assert 1 - 1e-9 <= weights.sum() <= len(weights) + 1e-9


@given(voting(), st.randoms())
def test_permutation_invariant(world, random):
    votes, reliability, correlation, confidence = world
    order = list(range(len(votes)))
    random.shuffle(order)
    shuffled = combine(
        [votes[i] for i in order],
        [reliability[i] for i in order],
        correlation[np.ix_(order, order)],
        [confidence[i] for i in order],
    )
    assert shuffled[:3] == pytest.approx(combine(votes, reliability, correlation, confidence)[:3], abs=1e-9)


@given(voting(), st.data())
def test_monotone_in_each_vote(world, data):
    votes, reliability, correlation, confidence = world
    i = data.draw(st.integers(0, len(votes) - 1))
    scores = [combine([*votes[:i], v, *votes[i + 1 :]], reliability, correlation, confidence)[0] for v in (-1, 0, 1)]
    assert scores[0] <= scores[1] + 1e-12
    assert scores[1] <= scores[2] + 1e-12


@given(voting(), st.data())
def test_a_more_reliable_engine_pulls_the_score_its_way(world, data):
    votes, reliability, correlation, confidence = world
    i = data.draw(st.integers(0, len(votes) - 1))
    raised = [*reliability[:i], data.draw(st.floats(reliability[i], 1)), *reliability[i + 1 :]]
    before, after = combine(votes, reliability, correlation, confidence)[0], combine(votes, raised, correlation, confidence)[0]
    says = votes[i] * confidence[i]
    assert min(before, says) - 1e-9 <= after <= max(before, says) + 1e-9


@given(voting(), st.data())
def test_an_exact_duplicate_changes_nothing(world, data):
    votes, reliability, correlation, confidence = world
    correlation = np.where(np.eye(len(votes)) == 1, 1.0, np.minimum(correlation, 0.99))  # an exact copy shares its reliability too
    i = data.draw(st.integers(0, len(votes) - 1))
    twice = [*range(len(votes)), i]
    grown = correlation[np.ix_(twice, twice)]
    got = combine([votes[j] for j in twice], [reliability[j] for j in twice], grown, [confidence[j] for j in twice])
    assert got[:3] == pytest.approx(combine(votes, reliability, correlation, confidence)[:3], abs=1e-6)


@given(voting(least=2), st.data())
def test_an_abstainer_is_absent(world, data):
    votes, reliability, correlation, confidence = world
    i = data.draw(st.integers(0, len(votes) - 1))
    rest = [j for j in range(len(votes)) if j != i]
    with_it = combine(votes, reliability, correlation, confidence, present=[j != i for j in range(len(votes))])
    without = combine(
        [votes[j] for j in rest], [reliability[j] for j in rest], correlation[np.ix_(rest, rest)], [confidence[j] for j in rest]
    )
    assert with_it[:3] == pytest.approx(without[:3], abs=1e-9)
    assert with_it[3][i] == 0


@given(voting(least=2), st.data())
def test_continuous_in_the_correlations(world, data):
    votes, reliability, correlation, confidence = world
    i, j = data.draw(st.permutations(range(len(votes))))[:2]
    moved = correlation.copy()
    moved[i, j] = moved[j, i] = correlation[i, j] - 1e-10 * np.sign(correlation[i, j])
    assert combine(votes, reliability, moved, confidence)[0] == pytest.approx(
        combine(votes, reliability, correlation, confidence)[0], abs=1e-6
    )


def test_a_wait_is_an_abstention_by_default():
    direction = np.array([[1, 0, 0, 0]], dtype=np.int8)
    matrix = tuple(tuple(row) for row in np.eye(4).tolist())
    got = consensus(direction, np.full((1, 4), np.nan), np.ones(4), matrix, TAU)
    assert np.isnan(got.score[0])  # a voter without confidence is a fault that must show
    got = consensus(direction, np.array([[0.9, np.nan, np.nan, np.nan]]), np.ones(4), matrix, TAU)
    assert (got.score[0], got.effective[0]) == (0.9, 1.0)


@settings(max_examples=30)
@given(arrays(np.int8, (40, 6), elements=st.integers(-1, 1)), voting(least=6))
def test_rows_do_not_see_each_other(direction, world):
    _, reliability, correlation, _ = world
    matrix = tuple(tuple(row) for row in correlation.tolist())
    args = (gain(np.array(reliability)), matrix, TAU)
    confidence = np.linspace(0, 1, 240).reshape(40, 6)
    batch = consensus(direction, confidence, *args)
    for i in range(40):
        one = consensus(direction[i : i + 1], confidence[i : i + 1], *args)
        assert (one.score[0], one.agreement[0], one.effective[0]) == (batch.score[i], batch.agreement[i], batch.effective[i])
        assert one.weights[0].tobytes() == batch.weights[i].tobytes()


def votes_of(direction, horizon=(2,)):
    direction = np.array(direction, dtype=np.int8).reshape(len(direction), -1)
    engines = tuple(f"e{j}" for j in range(direction.shape[1]))
    return Votes(engines, direction, np.ones(direction.shape), np.ones(direction.shape), np.array(horizon * len(engines))[: len(engines)])


def test_outcomes_enter_at_the_next_open_and_leave_at_the_horizon_close():
    open_, close = np.array([10.0, 11, 12, 13, 14]), np.array([10.5, 11.5, 12.5, 13.5, 14.5])
    ends = np.arange(1, 6) * HOUR
    got = outcomes(votes_of([1, -1, 0, 1, 1]), open_, close, ends)
    assert got.gross_bps[0, 0] == pytest.approx(1e4 * np.log(12.5 / 11))
    assert got.gross_bps[1, 0] == pytest.approx(-1e4 * np.log(13.5 / 12))
    assert np.isnan(got.gross_bps[2:, 0]).all()  # a wait, and two votes whose end is not known yet
    assert got.resolved_ms[:, 0].tolist() == [3 * HOUR, 4 * HOUR, 5 * HOUR, NEVER_MS, NEVER_MS]
    longer = outcomes(votes_of([1, 1], horizon=(9,)), open_[:2], close[:2], ends[:2])
    assert np.isnan(longer.gross_bps).all()


def world_of(n=600, m=3, seed_=0):
    rng = np.random.default_rng(seed_)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
    votes = votes_of(rng.integers(-1, 2, (n, m)), horizon=(3,))
    ends = np.arange(1, n + 1) * HOUR
    return votes, outcomes(votes, np.r_[100, close[:-1]], close, ends), ends


def test_seed_steps_by_the_horizon_and_replays():
    n = 200
    votes = votes_of(np.ones((n, 1)), horizon=(4,))
    gross = np.ones((n, 1))
    gross[1::2] = -1  # were overlapping outcomes counted, half of them would be misses
    got = seed(votes, gross, np.zeros((n, 1), np.int64), 0, POLICY)
    assert got.outcomes["e0"] == 50
    assert got.reliability["e0"] == pytest.approx(1 - 0.5 * 0.95**50)
    assert got == seed(votes, gross, np.zeros((n, 1), np.int64), 0, POLICY)
    assert Combiner.from_bytes(got.to_bytes()) == got


def test_few_outcomes_are_shrunk_towards_a_coin_flip_and_missing_ones_ignored():
    gross = np.full((400, 1), np.nan)
    gross[::20] = 5.0
    gross[7] = 0.0
    got = seed(votes_of(np.ones((400, 1)), horizon=(1,)), gross, np.zeros((400, 1), np.int64), 0, POLICY)
    assert got.outcomes["e0"] == 20
    assert got.reliability["e0"] == pytest.approx(0.5 + (0.5 - 0.5 * 0.95**20) * 20 / EVIDENCE_OUTCOMES)


def test_nothing_that_was_unresolved_at_as_of_teaches():
    votes, out, ends = world_of()
    as_of = int(ends[400])
    codes = np.zeros(len(ends), np.int8)
    honest = seed(votes, out.gross_bps, out.resolved_ms, as_of, POLICY, regime_codes=codes)
    poisoned = np.where(out.resolved_ms > as_of, 1e6, out.gross_bps)
    assert seed(votes, poisoned, out.resolved_ms, as_of, POLICY, regime_codes=codes) == honest
    prefix = seed(votes.take(slice(0, 401)), out.gross_bps[:401], out.resolved_ms[:401], as_of, POLICY, regime_codes=codes[:401])
    assert prefix == honest
    peeking = np.zeros_like(out.resolved_ms)  # the planted fault: outcomes dated before they were known
    assert seed(votes, poisoned, peeking, as_of, POLICY, regime_codes=codes) != honest


def test_leaderboard_weighs_by_recent_net_edge_and_refreshes_weekly():
    n = 4000
    votes = votes_of(np.ones((n, 3)), horizon=(2,))
    gross = np.tile([30.0, -30.0, 0.5], (n, 1))
    ends = np.arange(1, n + 1) * HOUR
    resolved = np.tile(ends[:, None] + 2 * HOUR, (1, 3))
    codes = np.where(np.arange(n) % 2, 0, 1).astype(np.int8)
    monday = 20 * 7 * 24 * HOUR
    got = seed(votes, gross, resolved, monday, POLICY, regime_codes=codes, cost_bps=10.0)
    board = got.soft_weights["TREND"]
    assert board["e0"] == 1.0
    assert board["e1"] == 0.0
    assert "PANIC" not in got.soft_weights
    gross[resolved > monday] *= -1
    later = seed(votes, gross, resolved, monday + 3 * 24 * HOUR, POLICY, regime_codes=codes, cost_bps=10.0)
    assert later.soft_weights == got.soft_weights
    assert later.reliability != got.reliability
    free = seed(votes, gross, resolved, monday, POLICY, regime_codes=codes, cost_bps=0.25)
    assert free.soft_weights["TREND"]["e2"] == 1.0


def test_vote_correlation_finds_copies_and_shrinks():
    rng = np.random.default_rng(1)
    base = rng.integers(-1, 2, 1800).astype(np.int8)
    direction = np.stack([base, base, -base, rng.integers(-1, 2, 1800).astype(np.int8), np.zeros(1800, np.int8)], axis=1)
    got = vote_correlation(direction, 200)
    assert got[0, 1] == pytest.approx(0.9)
    assert got[0, 2] == pytest.approx(-0.9)
    assert abs(got[0, 3]) < 0.1
    assert got[0, 4] == 0
    assert np.diag(got).tolist() == [1] * 5
    always = vote_correlation(np.ones((1800, 2), np.int8), 200)
    assert always[0, 1] == pytest.approx(0.9)  # engines that only ever said buy repeat each other


def test_a_combiner_for_other_engines_than_its_own():
    combiner = Combiner(
        engines=("a", "b"),
        reliability={"a": 0.75, "b": 1.0},
        outcomes={},
        correlation=((1.0, 0.9), (0.9, 1.0)),
        rows=10,
        as_of="",
        soft_weights={"TREND": {"b": 0.5}},
    )
    assert combiner.correlation_of(("b", "new", "a")) == ((1, 0, 0.9), (0, 1, 0), (0.9, 0, 1))
    assert combiner.strength(("b", "new", "a"))[:2].tolist() == [[0.5, 0, 0.5], [1, 0, 0.5]]
    assert solo("a").strength(("a", "b")).tolist() == [[1, 0]] * 5


def test_a_correlation_of_the_wrong_shape_is_refused():
    good = solo("a").model_dump()
    for wrong in (((1.0, 0.0),), (), ((2.0,),), ((float("nan"),),)):
        with pytest.raises(ValidationError, match="correlation"):
            Combiner.model_validate(good | {"correlation": wrong})
