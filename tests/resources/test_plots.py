"""The coin page: numbers it is drawn from, and that every page is whole, legible XML that says what it must."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine_resources.plots import Curves, coin_page, deciles, drawdown_bps, ticks
from hamilton_client.core.contracts import HuracanError, Market

AS_OF = datetime(2023, 7, 1, 2, tzinfo=UTC)
DAILY = st.floats(-500, 500)


def curves(timeframe="1h", days=360, rows=5000, seed=1):
    rng = np.random.default_rng(seed)
    gross = rng.normal(2, 20, days)
    predicted = rng.normal(0, 9, rows)
    return Curves(
        timeframe=timeframe,
        days=np.datetime64("2022-07-06") + np.arange(days),
        gross_bps=gross,
        net_bps=gross - 3,
        hold_bps=rng.normal(0, 280, days),
        predicted_bps=predicted,
        realised_bps=0.5 * predicted + rng.normal(0, 150, rows),
        overlap_bars=4,
        trades=1234,
    )


def page(*of, **changes):
    options = {"as_of": AS_OF, "market": Market(), **changes}
    return coin_page("BTCUSDT", of or [curves("1h"), curves("4h", seed=2)], **options)


def texts(svg):
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_page_says_what_it_shows():
    said = texts(page())
    assert "BTCUSDT" in said
    assert any("as of 2023-07-01 02:00 UTC" in text and "binance spot candles stand in for usdm_perp" in text for text in said)
    assert sum("1,234 trades" in text for text in said) == 2
    assert "predicted edge before costs, bps" in said
    assert "2023-01" in said
    assert "SYNTHETIC DATA" not in said


def test_synthetic_data_is_stamped_and_a_proxy_only_where_there_is_one():
    said = " ".join(texts(page(synthetic=True, market=Market(candles="usdm_perp"))))
    assert "SYNTHETIC DATA" in said
    assert "stand in" not in said


def test_a_page_is_equal_byte_for_byte():
    three = [curves("1h"), curves("4h", seed=2), curves("1d", seed=3)]
    first = page(*three)
    assert page(*three) == first


@settings(max_examples=60, deadline=None)
@given(data=st.data(), days=st.integers(0, 40), rows=st.integers(0, 40))
def test_every_page_is_whole_whatever_the_numbers(data, days, rows):
    daily = arrays(np.float64, days, elements=DAILY)
    row = arrays(np.float64, rows, elements=DAILY | st.just(float("nan")))
    drawn = [data.draw(daily) for _ in range(3)] + [data.draw(row) for _ in range(2)]
    svg = page(Curves("1h", np.datetime64("2023-01-31") + np.arange(days), *drawn, overlap_bars=4, trades=0))
    ElementTree.fromstring(svg)
    assert not re.search(rb"\b(nan|inf)\b", svg)


def test_names_are_escaped_and_symbols_checked():
    assert "<b>" in " ".join(texts(page(curves("<b>"))))
    with pytest.raises(HuracanError, match="is refused"):
        coin_page("<script>", [curves()], as_of=AS_OF, market=Market())


@pytest.mark.parametrize("fault", [{"net_bps": np.full(360, np.nan)}, {"hold_bps": np.zeros(3)}, {"realised_bps": np.zeros(3)}])
def test_curves_that_cannot_be_drawn_are_refused(fault):
    with pytest.raises(HuracanError, match="1h curves"):
        replace(curves(), **fault)


def test_a_coin_without_results_has_no_page():
    with pytest.raises(HuracanError, match="train one first"):
        coin_page("BTCUSDT", [], as_of=AS_OF, market=Market())


@given(arrays(np.float64, st.integers(0, 60), elements=DAILY))
def test_drawdown_is_never_positive_and_zero_at_a_new_high(daily):
    depth, equity = drawdown_bps(daily), np.cumsum(daily)
    assert (depth <= 0).all()
    for day in range(len(daily)):
        assert depth[day] == pytest.approx(equity[day] - max(0.0, *equity[: day + 1]))


def test_deciles_recover_a_planted_slope_and_drop_holes():
    predicted = np.arange(1000.0)
    realised = 0.5 * predicted
    predicted[::50], realised[1::50] = np.nan, np.nan
    tenths = deciles(predicted, realised)
    np.testing.assert_allclose(tenths.realised_bps, 0.5 * tenths.predicted_bps)
    assert len(tenths.predicted_bps) == 10
    assert (np.diff(tenths.predicted_bps) > 0).all()


def test_overlapping_labels_widen_the_error():
    one = curves()
    alone, overlapping = (deciles(one.predicted_bps, one.realised_bps, overlap).error_bps for overlap in (1, 4))
    np.testing.assert_allclose(overlapping, 2 * alone)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_round_inside_and_few(low, width, at_most):
    found = ticks(low, low + width, at_most)
    assert len(found) <= at_most + 1
    assert all(low - 1e-9 <= tick <= low + width + 1e-9 for tick in found)
