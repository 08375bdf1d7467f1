from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_resources.settings import load_settings
from hamilton_client.core.bars import derive
from hamilton_client.core.contracts import TRAINED_REGIMES, Calibration, CalibrationTable, Regime
from hamilton_client.core.engines import ENGINES, RULES
from hamilton_client.core.layout import timeframe_ms
from hamilton_client.core.regimes import REGIME_CODES, classify, codes
from hamilton_client.core.signals import NOTHING, Learned, Signals, bar_in_force, covers, learned_rows, required_base_bars, signals

ROOT = Path(__file__).parents[2]
SETTINGS = load_settings(ROOT / "config", {})
RECIPE, POLICY = SETTINGS.recipe(), SETTINGS.policy()
FEATURES, REGIMES, HORIZONS = RECIPE.features, RECIPE.regimes, RECIPE.horizon_bars
LINE = Calibration(
    edge_bps=CalibrationTable(scores=(0.0, 1.0), values=(-40.0, 40.0)),
    probability=CalibrationTable(scores=(0.0, 1.0), values=(0.0, 1.0)),
    rows=1000,
)
CALIBRATIONS = {f"{timeframe}.{regime}": LINE for timeframe in HORIZONS for regime in TRAINED_REGIMES}
HOURS = 6000


def score(timeframe, x, state):
    level = np.nansum(np.sin(x[:, ::3]), axis=1) + 0.1 * state + len(timeframe)
    return 1 / (1 + np.exp(-level))


def run(candles, **changes) -> Signals:
    arguments = {
        "policy": POLICY,
        "recipe": FEATURES,
        "regimes": REGIMES,
        "score": score,
        "calibrations": CALIBRATIONS,
        "horizons": HORIZONS,
        "reliability": dict.fromkeys(ENGINES, 0.6),
    }
    return signals(candles, **(arguments | changes))


def fields(seen: Signals) -> dict[str, np.ndarray]:
    votes, bars = seen.votes, seen.bars
    flat = {name: getattr(votes, name) for name in ("direction", "confidence", "edge_bps")}
    flat |= {
        name: getattr(bars, name)
        for name in ("close_ms", "regime", "sigma_bps", "bar_volume_usd", "volatility_daily_bps", "volume_daily_usd")
    }
    for timeframe, said in seen.learned.items():
        flat |= {f"{timeframe} {name}": getattr(said, name) for name in Learned.__slots__}
    return flat


def assert_same(one: Signals, other: Signals) -> None:
    assert one.votes.engines == other.votes.engines
    others = fields(other)
    for name, values in fields(one).items():
        np.testing.assert_allclose(values, others[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def candles() -> pl.DataFrame:
    """Real hours with real outages in them, and one more hole cut where the quick start has none."""
    whole = pl.read_parquet(ROOT / "data/quickstart/candles/1h/BTCUSDT.parquet").tail(HOURS)
    hole = whole["ts"][HOURS - 700]
    return whole.filter((pl.col("ts") < hole) | (pl.col("ts") >= hole + timedelta(hours=5)))


@pytest.fixture(scope="module")
def batch(candles) -> Signals:
    return run(candles)


def test_every_engine_of_the_table_votes_in_one_column_each(batch):
    assert set(batch.votes.engines) == set(ENGINES)
    assert batch.votes.engines[: len(RULES)] == tuple(engine.name for engine in RULES)
    learned = batch.votes.direction[:, -3:]
    assert (np.abs(learned[-1000:]).mean(axis=0) > 0.5).all()
    assert batch.votes.horizon_bars[-3:].tolist() == [4, 12, 48]
    assert batch.learned_available[-1000:].mean() > 0.9


@pytest.mark.parametrize("back", [0, 1, 2, 3, 7, 17, 100, 690, 697, 1500])
def test_the_tail_gives_what_the_whole_history_gives(candles, batch, back):
    seen = candles.head(candles.height - back)
    tail = seen.tail(required_base_bars(POLICY, FEATURES, REGIMES))
    while not covers(tail, POLICY, FEATURES, REGIMES):
        tail = seen.tail(tail.height + 24)
    assert tail.height < candles.height
    assert_same(run(tail, tail=1), batch.take(slice(candles.height - back - 1, candles.height - back)))


def test_a_gapless_tail_of_the_required_length_covers(candles):
    needed = required_base_bars(POLICY, FEATURES, REGIMES)
    gapless = candles.head(needed)
    assert all(covers(candles.slice(start, needed), POLICY, FEATURES, REGIMES) for start in range(24))
    assert not covers(gapless.head(needed // 2), POLICY, FEATURES, REGIMES)


def test_bars_that_come_later_change_nothing_before(candles, batch):
    for cut in (candles.height - 13, candles.height - 800):
        future = candles.with_row_index().with_columns(
            pl.when(pl.col("index") >= cut).then(pl.col(name) * 3).otherwise(pl.col(name)).alias(name)
            for name in ("open", "high", "low", "close", "volume")
        )
        changed = run(future.drop("index"))
        assert_same(changed.take(slice(0, cut)), batch.take(slice(0, cut)))
        assert_same(run(candles.head(cut)), batch.take(slice(0, cut)))
        with pytest.raises(AssertionError):
            assert_same(changed, batch)


def test_a_day_is_used_from_its_close_on_and_not_before(candles, batch):
    days = derive(candles, "1h", "1d")
    said = learned_rows(days, "1d", recipe=FEATURES, regimes=REGIMES, score=score, calibrations=CALIBRATIONS)
    used = batch.learned["1d"]
    closes = batch.bars.close_ms
    midnight = np.flatnonzero(closes == said.close_ms[-3])[0]
    assert used.close_ms[midnight] == said.close_ms[-3]
    assert used.score[midnight] == said.score[-3]
    assert used.close_ms[midnight - 1] == said.close_ms[-4]


def test_an_opinion_ends_when_its_successor_is_due(candles, batch):
    """The hole of five hours leaves one 4h bar, or two, incomplete: the model of 4h is silent there, not stale."""
    hole = np.flatnonzero(np.diff(batch.bars.close_ms) > timeframe_ms("1h"))[-1]
    assert candles["ts"][int(hole) + 1] - candles["ts"][int(hole)] == timedelta(hours=6)
    column = batch.votes.engines.index("learned_4h")
    after = batch.learned["4h"].close_ms[hole + 1 : hole + 8]
    assert (after == 0).any()
    silent = after == 0
    assert (batch.votes.direction[hole + 1 : hole + 8, column][silent] == 0).all()
    age = batch.bars.close_ms - batch.learned["4h"].close_ms
    assert (age[batch.learned["4h"].close_ms > 0] < timeframe_ms("4h")).all()


@given(st.lists(st.integers(1, 40), unique=True, max_size=12), st.lists(st.integers(0, 200), max_size=20))
def test_bar_in_force_is_the_newest_closed_one_until_the_next_is_due(numbers, hours):
    closes = np.array(sorted(numbers), dtype=np.int64) * timeframe_ms("4h")
    instants = np.array(sorted(hours), dtype=np.int64) * timeframe_ms("1h")
    found = bar_in_force(instants, closes, "4h")
    for instant, row in zip(instants.tolist(), found.tolist(), strict=True):
        fresh = [at for at, close in enumerate(closes.tolist()) if close <= instant < close + timeframe_ms("4h")]
        assert row == (fresh[-1] if fresh else -1)


def test_finished_rows_give_the_votes_of_their_scorer(candles, batch):
    rows = {
        timeframe: learned_rows(
            derive(candles, "1h", timeframe), timeframe, recipe=FEATURES, regimes=REGIMES, score=score, calibrations=CALIBRATIONS
        )
        for timeframe in HORIZONS
    }
    assert_same(run(candles, score=rows, calibrations={}), batch)


@pytest.mark.parametrize("regime", [Regime.ILLIQUID, Regime.UNKNOWN])
def test_regimes_that_never_trade_keep_their_score_and_get_no_vote(candles, regime):
    n, code = candles.height, REGIME_CODES.index(regime)
    sure = np.full(n, 0.99)
    closes = candles["ts"].dt.epoch("ms").to_numpy() + timeframe_ms("1h")
    rows = {"1h": Learned(closes, np.full(n, code, np.int8), sure, 50 * sure, sure)}
    seen = run(candles, score=rows)
    assert (seen.votes.direction[:, seen.votes.engines.index("learned_1h")] == 0).all()
    assert (seen.learned["1h"].score == 0.99).all()


def test_no_model_at_all_leaves_the_rules_and_says_so(candles, batch):
    seen = run(candles, calibrations={}, horizons={})
    assert not seen.learned_available.any()
    assert (seen.votes.direction[:, -3:] == 0).all()
    np.testing.assert_array_equal(seen.votes.direction[:, :-3], batch.votes.direction[:, :-3])
    assert seen.votes.horizon_bars[-3:].tolist() == [4, 12, 48]
    empty = run(candles, score={"1h": NOTHING})
    assert (empty.learned["1h"].regime == REGIME_CODES.index(Regime.UNKNOWN)).all()


def test_the_base_regime_gates_and_each_model_has_its_own(candles, batch):
    np.testing.assert_array_equal(batch.bars.regime, codes(classify(candles, REGIMES.by_timeframe["1h"], "1h")))
    assert (batch.learned["4h"].regime[-2000:] != batch.bars.regime[-2000:]).any()
