"""Paths and identifiers: nothing hostile becomes a key, and what is written can be parsed."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamilton_client.core import layout
from hamilton_client.core.contracts import HuracanError, Regime

HOSTILE = ["../../x", "BTC/USDT", "btcusdt", "", "B", "BTC\x00", "BTCUSDT\n", "ＢＴＣ", "A" * 21, "BTC USDT", "BTC-USDT"]
AS_OF = datetime(2023, 7, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "symbol", ["../../x", "BTC/USDT", "btcusdt", "", "B", "BTC\x00", "BTCUSDT\n", "ＢＴＣ", "A" * 21, "BTC USDT", "BTC-USDT"]
)
def test_hostile_symbols_are_refused_everywhere(symbol):
    for path in (layout.candles, layout.champion_pointer, layout.published):
        with pytest.raises(HuracanError, match="is refused"):
            path(*((symbol, "1h") if path is layout.candles else (symbol,)))


def test_the_likely_meaning_is_offered():
    with pytest.raises(HuracanError, match="did you mean BTCUSDT"):
        layout.check_symbol("btc/usdt:USDT")


@given(st.text())
def test_only_the_alphabet_of_symbols_passes(text):
    try:
        layout.check_symbol(text)
    except HuracanError:
        return
    assert 2 <= len(text) <= 20
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


@given(st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_a_run_id_is_its_as_of(instant):
    whole = instant.replace(microsecond=0)
    assert layout.as_of_from_run_id(layout.run_id(whole)) == whole


def test_identifiers_are_those_of_the_contract():
    assert layout.segment_model_id("BTCUSDT", "1h", Regime.TREND, 3, AS_OF) == "BTCUSDT_TREND_1h_v3_20230701_020000"
    assert layout.bundle("BTCUSDT", AS_OF) == "models/BTCUSDT/20230701_020000Z"
    assert layout.champion_pointer("BTCUSDT") == "champion/BTCUSDT/latest.json"
    assert layout.daily_summary(AS_OF.date()) == "summaries/daily/2023-07-01.json"


@pytest.mark.parametrize("text", ["run_2023", "20230701_020000", "run_20231301_020000"])
def test_what_is_no_run_id_is_refused(text):
    with pytest.raises(HuracanError, match="no run id"):
        layout.as_of_from_run_id(text)


def test_an_unknown_timeframe_names_the_known_ones():
    with pytest.raises(HuracanError, match="15m"):
        layout.timeframe_ms("7h")
