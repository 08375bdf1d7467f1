from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from engine_assets.logic import plan
from engine_assets.logic.plan import feature_chunks, fold_key, reach, regime_chunks
from engine_assets.logic.prepare import all_features, all_regimes, feature_chunk
from engine_assets.logic.splits import Fold
from hamilton_client.core.bars import day_hashes, derive
from hamilton_client.core.features import build
from hamilton_client.core.regimes import RegimeRecipe, classify
from market import DAY_MS, POLICY, REGIMES, candles_of, features, noise, recipe

RECIPE = recipe()
LONG = recipe(
    features=features(**{"return": [1, 60], "volatility": [24], "zscore": [72], "skew": [48]}),
    regimes=RegimeRecipe(by_timeframe=dict.fromkeys(("1h", "1d"), REGIMES)),
)
DAYS = {f"{date(2022, 1, 1) + timedelta(days=n):%Y%m%d}": f"hash {n}" for n in range(500)}


def ms(day):
    return int(datetime.combine(day, datetime.min.time(), UTC).timestamp() * 1000)


def fold(train_start=date(2022, 6, 1), shift_days=0):
    start = ms(train_start) + shift_days * DAY_MS
    ends = (start + 20 * DAY_MS, start + 21 * DAY_MS, start + 26 * DAY_MS)
    return Fold(3, start, *ends, np.arange(10), np.arange(20, 30))


def key(days=DAYS, by=RECIPE, at=None, timeframe="1h", device="cpu"):
    return fold_key(at or fold(), days, by, timeframe, device)


def test_a_fold_is_addressed_by_all_that_it_is_made_of(monkeypatch):
    assert key() == key(dict(reversed(DAYS.items())))
    others = [
        key(at=fold(shift_days=5)),
        key(by=recipe(off_regime_weight=0.5)),
        key(by=recipe(horizon_bars={"1h": 3})),
        key(by=recipe(model={"rounds": 11})),
        key(by=recipe(features=features(body=[]))),
        key(device="gpu"),
        key(by=LONG, timeframe="1d"),
    ]
    for version in ("FIT_VERSION", "LABEL_VERSION", "SPLIT_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(plan, version, 99)
            others.append(key())
    for library in ("lightgbm", "polars", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(plan, "library_versions", lambda library=library: {"lightgbm": "1", "polars": "1", "numpy": "1", library: "2"})
            others.append(key())
    assert len({key(), *others}) == 1 + len(others)
    assert key(by=recipe(name="renamed")) == key()
    assert key(at=Fold(9, *(getattr(fold(), name) for name in Fold.__slots__[1:5]), np.arange(3), np.arange(3, 5))) == key()


def test_a_fold_depends_on_the_days_of_its_window_and_warm_up_only():
    first, until = reach(DAYS, date(2022, 6, 1), RECIPE.warmup_bars("1h"), "1h"), date(2022, 6, 27)
    assert timedelta(days=RECIPE.warmup_bars("1h") / 24) < date(2022, 6, 1) - first < timedelta(days=8)
    for day in (first, date(2022, 6, 10), until - timedelta(days=1)):
        assert key(DAYS | {f"{day:%Y%m%d}": "restated"}) != key()
        assert key({name: digest for name, digest in DAYS.items() if name != f"{day:%Y%m%d}"}) != key()
    for day in (first - timedelta(days=1), until, date(2023, 9, 1)):
        assert key(DAYS | {f"{day:%Y%m%d}": "restated"}) == key()


def test_outages_stretch_the_warm_up():
    outage = {name: digest for name, digest in DAYS.items() if not "20220510" <= name < "20220530"}
    wanted = date(2022, 6, 1) - reach(DAYS, date(2022, 6, 1), 71, "1h")
    assert date(2022, 6, 1) - reach(outage, date(2022, 6, 1), 71, "1h") == wanted + timedelta(days=20)
    assert reach(DAYS, date(2022, 1, 1), 71, "1h") == date(2022, 1, 1)
    assert reach(DAYS, date(2022, 1, 3), 71, "1h") == date(2022, 1, 1)
    assert reach({}, date(2022, 1, 3), 71, "1h") == date(2022, 1, 3)


@pytest.mark.parametrize("chunks_of", [feature_chunks, regime_chunks])
def test_a_chunk_is_addressed_by_its_days_and_recipe(chunks_of):
    days = {f"{date(2021, 6, 1) + timedelta(days=n):%Y%m%d}": f"hash {n}" for n in range(800)}  # to 2023-08-09

    def keys(days_=days, by=LONG, timeframe="1d"):
        return [chunk.key for chunk in chunks_of(days_, by, timeframe)]

    base = keys()
    assert [chunk.year for chunk in chunks_of(days, LONG, "1d")] == [2021, 2022, 2023]
    assert keys(days | {"20230810": "new"}) == [*base[:2], keys(days | {"20230810": "new"})[2]] != base
    assert [old == new for old, new in zip(base, keys(days | {"20220301": "x"}), strict=True)] == [True, False, True]
    assert [old == new for old, new in zip(base, keys(days | {"20221230": "x"}), strict=True)] == [True, False, False]  # warm-up of 2023
    changed = recipe(
        **{"features": features(body=[]), "regimes": LONG.regimes}
        if chunks_of is feature_chunks
        else {"features": LONG.features, "regimes": RegimeRecipe(by_timeframe={"1d": REGIMES.model_copy(update={"dwell_bars": 9})})}
    )
    assert not set(keys(by=changed)) & set(base)
    assert not set(keys(timeframe="1h")) & set(base)
    other_side = recipe(features=LONG.features, regimes=LONG.regimes, off_regime_weight=0.7, horizon_bars={"1h": 2})
    assert keys(by=other_side) == base  # labels and weights are no part of a feature


def holed(days=900):
    """Two and a half years of hours with an outage of 12 days before one New Year and scattered lost hours before the other."""
    candles = noise(4, days, start=datetime(2021, 3, 1, tzinfo=UTC)).with_row_index()
    outage = pl.col("ts").is_between(datetime(2021, 12, 10, tzinfo=UTC), datetime(2021, 12, 22, tzinfo=UTC))
    lost = pl.col("ts").is_between(datetime(2022, 10, 20, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC)) & (
        pl.col("index") % (24 * 8) == 30
    )
    return candles.filter(~outage, ~lost).drop("index")


@pytest.mark.parametrize("timeframe", ["1h", "1d"])
def test_chunks_equal_the_full_history_bit_for_bit(timeframe):
    base = holed()
    candles = base if timeframe == "1h" else derive(base, "1h", timeframe)
    days = day_hashes(base)
    chunked = all_features(candles, days, LONG, timeframe)
    assert chunked.equals(build(candles, LONG.features), null_equal=True)
    assert chunked["return_60"].null_count() == 60
    regimes = all_regimes(candles, days, LONG, timeframe)
    assert regimes["regime"].equals(classify(candles, LONG.regimes.by_timeframe[timeframe], timeframe))
    assert regimes["ts"].equals(candles["ts"])


def test_a_chunk_needs_no_candles_before_its_padded_start_and_none_after_its_year():
    candles = holed()
    chunk = feature_chunks(day_hashes(candles), LONG, "1h")[1]
    whole = feature_chunk(candles, chunk, LONG)
    assert feature_chunk(candles.filter(pl.col("ts").is_between(chunk.padded_start, chunk.end, closed="left")), chunk, LONG).equals(whole)
    assert whole["ts"].dt.year().unique().to_list() == [2022]


def test_a_series_may_begin_within_a_year_and_be_short():
    short = candles_of(np.zeros(5), start=datetime(2022, 12, 31, 22, tzinfo=UTC))
    built = all_features(short, day_hashes(short), RECIPE, POLICY.base_timeframe)
    assert built.height == 5
    assert built["ts"].equals(short["ts"])
