import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hamilton_client.core.contracts import Regime
from hamilton_client.core.engines import ENGINES, RULE_RECIPE, RULE_WARMUP_BARS, RULES, learned_votes, rule_votes
from hamilton_client.core.features import build
from hamilton_client.core.votes import Votes
from worlds import assert_causal, candles_of, random_walk

NAMES = [
    "trend_v1",
    "trend_v2",
    "breakout",
    "momentum",
    "mean_reversion",
    "range_trading",
    "support_resistance",
    "scalping",
    "volatility",
    "liquidity",
    "learned_1h",
    "learned_4h",
    "learned_1d",
]
RELIABILITY = {engine.name: 0.55 for engine in RULES}


@pytest.fixture(scope="module")
def walk():
    return random_walk(3, 3_000)


@pytest.fixture(scope="module")
def votes(walk):
    return rule_votes(walk, RELIABILITY)


def test_the_table_is_complete():
    assert sorted(ENGINES) == sorted(NAMES)
    for name, engine in ENGINES.items():
        assert engine.name == name
        assert engine.source
        assert engine.horizon_bars > 0
        assert engine.regimes
        assert not engine.regimes & {Regime.ILLIQUID, Regime.UNKNOWN}
        assert (engine.kind == "learned") == (engine.timeframe is not None) == (engine.direction is None)


@pytest.mark.parametrize(
    ("regime", "enabled", "disabled"),
    [
        (Regime.TREND, "trend_v1 trend_v2 breakout momentum", "mean_reversion range_trading"),
        (Regime.RANGE, "mean_reversion range_trading support_resistance", "trend_v1 trend_v2"),
        (Regime.PANIC, "scalping volatility liquidity", "trend_v1 trend_v2 breakout"),
    ],
)
def test_the_table_obeys_the_gates(regime, enabled, disabled):
    for name in [*enabled.split(), "learned_1h", "learned_4h", "learned_1d"]:
        assert regime in ENGINES[name].regimes, name
    for name in disabled.split():
        assert regime not in ENGINES[name].regimes, name


def test_warm_up_covers_every_rule():
    assert max(engine.warmup_bars for engine in RULES) <= RULE_WARMUP_BARS == RULE_RECIPE.warmup_bars <= 90
    assert all(ENGINES[name].warmup_bars == 0 for name in NAMES if name.startswith("learned"))


def test_votes_are_in_bounds(votes, walk):
    assert votes.engines == tuple(engine.name for engine in RULES)
    assert len(votes) == walk.height
    assert votes.direction.dtype == np.int8
    assert set(np.unique(votes.direction)) == {-1, 0, 1}
    said = votes.direction != 0
    assert ((votes.confidence[said] >= 0.5) & (votes.confidence[said] <= 1)).all()
    assert (votes.edge_bps[said] > 0).all()
    assert (votes.confidence[~said] == 0).all()
    assert (votes.edge_bps[~said] == 0).all()
    assert (votes.direction[: RULE_WARMUP_BARS - 1] == 0).all()


@pytest.mark.parametrize("name", [engine.name for engine in RULES])
def test_every_rule_votes_both_ways_and_waits(votes, name):
    direction = votes.only(name).direction
    assert set(np.unique(direction)) == {-1, 0, 1}
    assert (direction != 0).mean() < 0.8
    assert len(np.unique(votes.only(name).confidence)) > 10


def test_rules_differ(votes):
    agreement = np.corrcoef(votes.direction[RULE_WARMUP_BARS:].astype(float).T)
    assert np.abs(agreement[~np.eye(len(RULES), dtype=bool)]).max() < 0.8


def as_frame(candles):
    votes = rule_votes(candles, RELIABILITY)
    columns = {
        f"{part}_{name}": getattr(votes, part)[:, at]
        for at, name in enumerate(votes.engines)
        for part in ("direction", "confidence", "edge_bps")
    }
    return pl.DataFrame(columns)


def test_votes_are_causal_and_of_finite_memory(walk):
    assert_causal(as_frame, walk[:600], RULE_WARMUP_BARS)


def test_a_tail_votes_exactly_as_the_batch(walk):
    whole = as_frame(walk)
    for start in (1, 77, 900, 2_500):
        assert as_frame(walk[start:])[RULE_WARMUP_BARS - 1 :].equals(whole[start + RULE_WARMUP_BARS - 1 :])


def test_a_mirrored_market_gets_mirrored_votes():
    rng = np.random.default_rng(2)
    candles = candles_of(np.cumsum(rng.normal(0, 0.006, 1_500)), volume=1.0)
    up = candles.with_columns(volume=1 / pl.col("close") * rng.lognormal(8, 1, 1_500))
    usd = up["close"] * up["volume"]
    mirrored = up.with_columns(open=1 / pl.col("open"), high=1 / pl.col("low"), low=1 / pl.col("high"), close=1 / pl.col("close"))
    down = mirrored.with_columns(volume=usd / pl.col("close"))
    one, other = rule_votes(up, RELIABILITY), rule_votes(down, RELIABILITY)
    symmetric = [name for name in one.engines if name not in {"trend_v2", "range_trading"}]  # the path is measured in price, not its log
    for name in symmetric:
        assert (one.only(name).direction == -other.only(name).direction).mean() > 0.999, name


def test_scale_does_not_matter(walk, votes):
    scaled = walk.with_columns(pl.col("open", "high", "low", "close") * 2.0**-20, pl.col("volume") * 2.0**33)
    other = rule_votes(scaled, RELIABILITY)
    assert (votes.direction == other.direction).mean() > 0.9999
    assert np.quantile(np.abs(votes.confidence - other.confidence), 0.999) < 1e-9


def test_planted_moves_get_the_vote_they_should():
    rng = np.random.default_rng(0)
    rising = rule_votes(candles_of(np.cumsum(rng.normal(0.004, 0.003, 200))), {})
    for name in ("trend_v1", "trend_v2", "momentum"):
        assert (rising.only(name).direction[100:] >= 0).all()
        assert (rising.only(name).direction[100:] == 1).mean() > 0.6, name
    log_close = np.cumsum(rng.normal(0, 0.004, 200))
    log_close[-1] = log_close[:-1].min() - 0.06
    fall = rule_votes(candles_of(log_close), {}).take(slice(-1, None))
    said = {name: int(fall.only(name).direction[0, 0]) for name in fall.engines}
    assert said["breakout"] == -1
    assert said["scalping"] == said["mean_reversion"] == 1


def test_edge_is_what_a_reliability_earns_on_a_random_walk(walk):
    rule = ENGINES["trend_v1"]
    strong = rule_votes(walk, {"trend_v1": 0.6}).only("trend_v1")
    at = int(np.flatnonzero(strong.direction[:, 0])[0])
    sigma = build(walk, RULE_RECIPE)["volatility_72"][at]
    assert strong.edge_bps[at, 0] == pytest.approx(0.2 * 1e4 * sigma * math.sqrt(2 / math.pi * rule.horizon_bars))
    for weak in ({}, {"trend_v1": 0.5}, {"trend_v1": 0.3}):
        assert (rule_votes(walk, weak).edge_bps == 0).all()


@pytest.mark.parametrize("damage", ["constant", "untraded", "null rows", "empty", "short"])
def test_damaged_series_get_no_wild_votes(walk, damage):
    prices = ("open", "high", "low", "close")
    candles = walk[:400]
    if damage == "constant":
        candles = candles.with_columns(pl.lit(1.0001 / 3).alias(name) for name in prices)
    elif damage == "untraded":
        candles = candles.with_columns(volume=0.0)
    elif damage == "null rows":
        hole = pl.int_range(pl.len()).is_between(200, 205)
        candles = candles.with_columns(pl.when(~hole).then(name).alias(name) for name in (*prices, "volume"))
    else:
        candles = candles[: 0 if damage == "empty" else 40]
    votes = rule_votes(candles, RELIABILITY)
    assert len(votes) == candles.height
    assert np.isfinite(votes.edge_bps).all()
    assert np.isfinite(votes.confidence).all()
    if damage == "untraded":
        assert (votes.only("liquidity").direction == 0).all()
        assert (votes.direction != 0).any()
    elif damage == "null rows":
        assert (votes.direction[200:206] == 0).all()
        assert (votes.direction[300:] != 0).any()
    else:
        assert (votes.direction == 0).all()


@given(
    probability=arrays.arrays(float, 12, elements=st.floats(0, 1) | st.just(math.nan)),
    edge=arrays.arrays(float, 12, elements=st.floats(-500, 500) | st.just(math.nan)),
)
def test_learned_votes_need_both_heads_to_agree(probability, edge):
    votes = learned_votes("learned_4h", probability, edge, 12)
    assert votes.engines == ("learned_4h",)
    assert votes.horizon_bars.tolist() == [12]
    for p, e, direction, confidence, size in zip(
        probability, edge, votes.direction[:, 0], votes.confidence[:, 0], votes.edge_bps[:, 0], strict=True
    ):
        expected = 1 if e > 0 and p > 0.5 else -1 if e < 0 and p < 0.5 else 0
        assert direction == expected
        assert confidence == (max(p, 1 - p) if expected else 0)
        assert size == (abs(e) if expected else 0)


def test_votes_take_only_and_concat(votes):
    learned = learned_votes("learned_1h", np.full(len(votes), 0.6), np.full(len(votes), 7.0), 4)
    both = Votes.concat(votes, learned)
    assert both.engines == (*votes.engines, "learned_1h")
    assert both.direction.shape == (len(votes), len(RULES) + 1)
    assert both.only("learned_1h").edge_bps[0, 0] == 7.0
    assert both.horizon_bars[-1] == 4
    some = both.take(np.array([5, 2_000]))
    assert (some.direction == both.direction[[5, 2_000]]).all()
    with pytest.raises(ValueError, match="votes once"):
        Votes.concat(votes, votes)
    with pytest.raises(ValueError, match="no votes of 'learned_1h'"):
        votes.only("learned_1h")
    with pytest.raises(ValueError, match="have shapes"):
        Votes(("a",), votes.direction, votes.confidence, votes.edge_bps, votes.horizon_bars)
    with pytest.raises(KeyError):
        learned_votes("oracle", np.zeros(1), np.zeros(1), 1)
