import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine_assets.logic import train
from engine_assets.logic.calibrate import fit_calibration
from engine_assets.logic.fit import final_models
from engine_assets.logic.promote import CHAMPION, Gates, first_champions, segments_frame
from engine_assets.logic.replay import Replay
from engine_assets.logic.train import learned, plan_folds, train_coin
from hamilton_client.core.contracts import NEVER_TRADED, TRAINED_REGIMES, Regime
from hamilton_client.core.regimes import RegimeRecipe
from market import COSTS, DAY_MS, FREE, HOUR_MS, POLICY, REGIMES, START, code, drifting, frame_of, noise, pegged, recipe, scaled

RECIPE = recipe()
THREE = recipe(
    regimes=RegimeRecipe(by_timeframe=dict.fromkeys(("1h", "4h", "1d"), REGIMES)),
    horizon_bars={"1h": 4, "4h": 3, "1d": 2},
    folds={timeframe: {"train_days": days, "test_days": 5, "purge_days": 4} for timeframe, days in (("1h", 20), ("4h", 20), ("1d", 50))},
)
CANDLES = drifting(3, 120)
SHARED = Path(__file__).parents[3] / "shared/data/spot_1h_majors/candles"


def unit(candles=CANDLES, by=RECIPE, costs=COSTS, policy=POLICY, **options):
    return train_coin("AUSDT", candles, by, policy=policy, costs=costs, **options)["1h"]


def eager():
    """A policy that trades on every opinion, however weak."""
    consensus = POLICY.consensus.model_copy(update={"adaptive_thresholds": dict.fromkeys(Regime, 0.0)})
    presets = {name: preset.model_copy(update={"min_confidence": 0.0}) for name, preset in POLICY.risk_presets.items()}
    cost_model = POLICY.cost_model.model_copy(update={"min_edge_after_cost_bps": 0.0, "safety_margin_bps": 0.0})
    risk = POLICY.risk.model_copy(update={"cooldown_bars": 0})
    return POLICY.model_copy(update={"consensus": consensus, "risk_presets": presets, "cost_model": cost_model, "risk": risk})


def findings(result):
    """Everything a unit says but how much of it was fitted anew."""
    return {
        regime: (segment.metrics, segment.daily.rows(), segment.calibration, segment.model, segment.note)
        for regime, segment in result.segments.items()
    }


def test_the_same_candles_give_the_same_result():
    one, two = unit(), unit()
    assert findings(one) == findings(two)
    assert one.oof.equals(two.oof, null_equal=True)
    assert {regime for regime, segment in one.segments.items() if segment.model} == set(TRAINED_REGIMES[:2])


def test_what_was_fitted_once_is_not_fitted_again():
    folds = {}
    first = unit(folds=folds)
    assert first.fitted == first.windows == len(folds) == 19
    assert first.reused == 0
    frozen = {key: frame.clone() for key, frame in folds.items()}
    again = unit(folds=folds)
    assert (again.fitted, again.reused) == (0, 19)
    assert findings(again) == findings(first)
    assert folds.keys() == frozen.keys()
    assert unit(by=recipe(off_regime_weight=0.5), folds=folds).fitted == 19  # another recipe is another lineage
    assert unit(by=recipe(name="renamed"), folds=folds).fitted == 0


def test_a_new_day_fits_the_windows_that_closed_and_moves_nothing_old():
    """Ten nights: five days to a window, so two of them fit one window, and eight none."""
    folds, before, fitted = {}, None, []
    for day in range(110, 120):
        result = unit(CANDLES, as_of=START + timedelta(days=day, hours=2), folds=folds)
        if before is not None:
            fitted.append(result.fitted)
            old = result.oof.head(len(before.oof))
            for name in ("close_ms", "regime", "score", "edge_bps", "probability"):
                assert old[name].equals(before.oof[name]), f"{name} of a past window moved"
        before = result
    assert sorted(fitted) == [0] * 7 + [1, 1] or sorted(fitted) == [0] * 8 + [1]
    assert findings(before) == findings(unit(CANDLES, as_of=START + timedelta(days=119, hours=2)))


def test_bars_after_as_of_do_not_exist():
    as_of = START + timedelta(days=100, hours=2)
    known = CANDLES.filter(pl.col("ts") + timedelta(hours=1) <= as_of)
    wild = scaled(CANDLES, pl.col("ts") + timedelta(hours=1) > as_of)
    whole = train_coin("AUSDT", wild, THREE, policy=POLICY, costs=COSTS, as_of=as_of)
    for timeframe, cut in train_coin("AUSDT", known, THREE, policy=POLICY, costs=COSTS, as_of=as_of).items():
        assert findings(cut) == findings(whole[timeframe])
        assert cut.windows > 0


@pytest.mark.parametrize("day", [3, 60, 100, 118])
def test_a_restated_candle_refits_the_windows_that_read_it(day):
    folds, at = {}, START + timedelta(days=day, hours=7)
    unit(folds=folds)
    kept = dict(folds)
    restated = CANDLES.with_columns(volume=pl.when(pl.col("ts") == at).then(pl.col("volume") * 1.01).otherwise("volume"))
    result = unit(restated, folds=folds)
    warm_up = timedelta(days=math.ceil(1.25 * RECIPE.warmup_bars("1h") / 24) + 2)
    number = at.timestamp() * 1000
    reading = [
        fold
        for fold in plan_folds(frame_of(CANDLES, RECIPE), RECIPE, "1h", START + timedelta(days=120), 1)
        if fold.train_start_ms - warm_up / timedelta(milliseconds=1) <= number < fold.test_end_ms
    ]
    assert result.fitted == len(reading)
    assert result.fitted + result.reused == result.windows
    assert result.fitted < result.windows
    assert kept.items() <= folds.items()


def test_a_changed_price_is_seen_by_the_refitted_windows():
    folds = {}
    clean = unit(folds=folds)
    dirty = unit(scaled(CANDLES, pl.col("ts").is_between(START + timedelta(days=60), START + timedelta(days=61))), folds=folds)
    assert findings(dirty) == findings(
        unit(scaled(CANDLES, pl.col("ts").is_between(START + timedelta(days=60), START + timedelta(days=61))))
    )
    assert findings(dirty) != findings(clean)


@pytest.mark.parametrize("hours", [1, 10, 64])
def test_too_little_history_is_a_note(hours):
    for result in train_coin("AUSDT", noise(1, 5)[:hours], THREE, policy=POLICY, costs=COSTS).values():
        assert "ingest more history" in result.notes[0]
        assert result.windows == result.fitted == 0
        assert result.oof.is_empty()
        assert len(learned(result.oof).close_ms) == 0
        assert all(segment.metrics is None and segment.model is None for segment in result.segments.values())


@pytest.mark.parametrize("volume", [1e6, 0.0])
def test_a_pegged_coin_has_no_champion(volume):
    result = unit(pegged(60, volume))
    assert result.windows > 0
    assert states([("AUSDT", result)]).isdisjoint({CHAMPION})
    assert all(segment.model is None for segment in result.segments.values())


def states(results):
    cohort = segments_frame((symbol, "1h", regime, part.metrics) for symbol, result in results for regime, part in result.segments.items())
    return set(first_champions(cohort, Gates(), fdr_q=0.10)["state"])


@pytest.fixture(scope="module")
def coins_of_noise():
    return [(f"N{seed}USDT", unit(noise(seed, 150), costs=FREE, policy=eager())) for seed in range(6)]


def test_noise_makes_no_champion(coins_of_noise):
    """D7. Without costs, so that nothing but luck decides, and luck has many trades."""
    assert sum(part.metrics.sample_size for _, result in coins_of_noise for part in result.segments.values() if part.metrics) > 2000
    assert states(coins_of_noise).isdisjoint({CHAMPION})
    costly = [(symbol, unit(noise(seed, 150))) for seed, (symbol, _) in enumerate(coins_of_noise[:3])]  # as traded
    assert states(costly).isdisjoint({CHAMPION})


def test_noise_earns_nothing_before_costs(coins_of_noise):
    """A look at the future, anywhere between candle and P&L, would show here."""
    daily = np.concatenate([part.daily["gross_bps"] for _, result in coins_of_noise for part in result.segments.values()])
    assert abs(daily.mean()) < 3 * daily.std() / np.sqrt(daily.size)


def test_noise_cannot_be_ranked(coins_of_noise):
    """Pooled AUC within three standard errors of 1/2 (research/stats.md D7: per-window AUCs are biased); overlap leaves a quarter."""
    rows = pl.concat([result.oof for _, result in coins_of_noise]).filter(pl.col("score").is_finite(), pl.col("gross_bps").is_finite())
    rises = rows["gross_bps"].to_numpy() > 0
    rank = rows["score"].rank().to_numpy()
    auc = (rank[rises].mean() - (rises.sum() + 1) / 2) / (~rises).sum()
    assert abs(auc - 0.5) < 3 / np.sqrt(3 * rows.height / 4)


def test_a_planted_signal_becomes_a_champion():
    results = [(f"S{seed}USDT", unit(drifting(seed, 120))) for seed in range(2)]
    assert CHAMPION in states(results)
    trend = results[0][1].segments[Regime.TREND]
    assert trend.metrics.net_bps > 30
    assert trend.metrics.baselines["random_percentile"] == 1.0
    assert trend.metrics.cost_bps == pytest.approx(9, abs=2)
    assert CHAMPION in states([*results, *((f"N{seed}USDT", unit(noise(seed, 80))) for seed in range(2))])


def test_evidence_counts_what_could_trade():
    """Windows, rows and days that went into the first tables are no test; nor are days after the last complete test window."""
    result = unit(CANDLES, as_of=START + timedelta(days=118, hours=2))
    trend, oof = result.segments[Regime.TREND], result.oof
    judged = oof.filter(pl.col("regime") == code(Regime.TREND), pl.col("edge_bps").is_finite())
    assert trend.metrics.windows == judged["window"].n_unique() < result.windows
    assert trend.metrics.effective_sample == pytest.approx(judged["uniqueness"].sum())
    first, last = datetime.fromisoformat(trend.metrics.window[0]), datetime.fromisoformat(trend.metrics.window[1])
    assert first.replace(tzinfo=UTC).timestamp() * 1000 == judged["window_start_ms"].min()
    end = oof["window_start_ms"].max() + 5 * DAY_MS
    assert last.replace(tzinfo=UTC).timestamp() * 1000 == end  # the last trade ends in the first hours of that day
    assert trend.daily["date"].to_list() == [first.date() + timedelta(days=n) for n in range((last - first).days + 1)]
    assert trend.daily["trades"].sum() == trend.metrics.sample_size > 100
    complete = unit(CANDLES, as_of=datetime.fromtimestamp(end / 1000 + 7200, UTC)).segments[Regime.TREND]
    assert complete.metrics.window[1] == (last - timedelta(days=1)).date().isoformat()  # that day is not over yet


def test_all_of_a_segments_profit_is_in_its_days(monkeypatch):
    kept, real = [], Replay.daily

    def spy(self, open_ms, first_day, last_day):
        kept.append((self.gross_bps.sum(), len(self.trades), real(self, open_ms, first_day, last_day)))
        return kept[-1][2]

    monkeypatch.setattr(Replay, "daily", spy)
    unit(CANDLES, as_of=START + timedelta(days=118))
    assert len(kept) == 2
    for gross, trades, daily in kept:
        assert daily["gross_bps"].sum() == pytest.approx(gross)
        assert daily["trades"].sum() == trades


def test_the_published_table_is_fitted_on_all_windows_and_the_tested_ones_on_earlier_ones():
    result = unit()
    inside = result.oof.filter(pl.col("regime") == code(Regime.TREND))
    arrays = [inside[name].to_numpy() for name in ("score", "gross_bps", "uniqueness")]
    assert result.segments[Regime.TREND].calibration == fit_calibration(*arrays, RECIPE.calibration)
    first = inside.filter(pl.col("window") == inside["window"].min())
    assert first["edge_bps"].is_nan().all()


def test_the_published_models_are_fitted_up_to_as_of():
    as_of = START + timedelta(days=118, hours=2)
    result, frame = unit(as_of=as_of), frame_of(CANDLES.filter(pl.col("ts") + timedelta(hours=1) <= as_of), RECIPE)
    expected = final_models(frame, RECIPE, "1h", int(as_of.timestamp() * 1000))
    for regime, segment in result.segments.items():
        assert segment.model == (expected[regime] if segment.calibration else None)  # a model without tables has no say


def test_the_pooled_baseline_is_judged_on_the_same_bars(monkeypatch):
    folds = {}
    alone = unit(folds=folds)
    real = train.train_unit
    monkeypatch.setattr(train, "train_unit", lambda *given: real(*given, pooled=lambda frame: np.full(len(frame.close_ms), np.nan)))
    silent = unit(folds=folds).segments[Regime.TREND].metrics
    assert silent.baselines["pooled_trades"] == 0
    own = dict(zip(alone.oof["close_ms"], alone.oof["score"], strict=True))
    monkeypatch.setattr(
        train, "train_unit", lambda *given: real(*given, pooled=lambda frame: np.array([own.get(at, np.nan) for at in frame.close_ms]))
    )
    same = unit(folds=folds).segments[Regime.TREND].metrics
    assert same.baselines["pooled_trades"] == same.sample_size
    assert same.baselines["pooled_net_bps"] == pytest.approx(same.net_bps)
    assert replace_baselines(same) == replace_baselines(alone.segments[Regime.TREND].metrics)


def replace_baselines(metrics):
    return metrics.model_copy(update={"baselines": {}})


def test_a_window_without_data_is_left_out():
    outage = CANDLES.filter(~pl.col("ts").is_between(START + timedelta(days=50), START + timedelta(days=62)))
    whole, holed = unit(), unit(outage)
    assert 0 < whole.windows - holed.windows <= 3
    assert np.diff(holed.oof["window_start_ms"].unique().sort()).max() > 5 * DAY_MS
    assert findings(holed)[Regime.TREND][0] is not None


def test_folds_lie_on_known_rows_and_keep_their_purge():
    frame = frame_of(CANDLES, RECIPE)
    folds = plan_folds(frame, RECIPE, "1h", START + timedelta(days=120), 5)
    known = set(np.flatnonzero(frame.known).tolist())
    for fold in folds:
        assert known.issuperset(fold.train.tolist())
        assert known.issuperset(fold.test.tolist())
        assert frame.label_end_ms[fold.train].max() <= fold.test_start_ms
        assert frame.open_ms[fold.test].min() - frame.open_ms[fold.train].max() == DAY_MS + HOUR_MS
        assert fold.test_start_ms % (5 * DAY_MS) == 0  # the grid is pinned at the epoch
    unknown = replace(frame, x=np.full_like(frame.x, np.nan))
    with pytest.raises(train.TooFewWindows):
        plan_folds(unknown, RECIPE, "1h", START + timedelta(days=120), 5)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_real_candles_are_plausible():
    """Research/stats.md section 5: a real coin under realistic costs makes no fortune; gaps and all, days add up."""
    path = next(SHARED.rglob("*BTCUSDT*"))
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    candles = pl.concat([pl.read_parquet(file) for file in files]).unique("ts").sort("ts").tail(24 * 500)
    result = unit(candles.with_columns(pl.col("ts").cast(pl.Datetime("us", "UTC"))))
    assert result.windows > 50
    for regime, segment in result.segments.items():
        if segment.metrics is not None and regime not in NEVER_TRADED and segment.metrics.sample_size > 100:
            assert abs(segment.metrics.sharpe) < 4
            assert segment.metrics.cost_bps > 8
