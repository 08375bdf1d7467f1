"""Records that cross the bucket: canonical, tolerant on read, strict on write."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hamilton_client.core.contracts import CalibrationTable, Heartbeat, Market, SegmentPointer, canonical_json, content_hash

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(JSON)
def test_canonical_json_ignores_the_order_of_keys(value):
    def turned(item):
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(item)}
        return [turned(each) for each in item] if isinstance(item, list) else item

    assert canonical_json(turned(value)) == canonical_json(value)
    assert content_hash(turned(value)) == content_hash(value)


def test_nan_never_enters_a_hash():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"edge": float("nan")})


@pytest.mark.parametrize("knots", [((0.5,), (3.0,)), ((0.4, 0.6), (-2.0, 2.0))])
def test_calibration_keeps_nan_and_is_flat_outside(knots):
    table = CalibrationTable(scores=knots[0], values=knots[1])
    found = table(np.array([np.nan, 0.0, 1.0]))
    assert np.isnan(found[0])
    assert found[1:].tolist() == [knots[1][0], knots[1][-1]]


def test_records_are_frozen_and_refuse_unknown_fields():
    pointer = SegmentPointer(model_id=None, promoted_at=None, state="not_traded")
    with pytest.raises(ValidationError):
        pointer.state = "champion"
    with pytest.raises(ValidationError):
        SegmentPointer(model_id=None, promoted_at=None, state="not_traded", regime="TREND")


def test_an_instant_without_a_zone_is_refused():
    with pytest.raises(ValidationError):
        Heartbeat(phase="raw", current_symbol=None, progress=0.0, last_error=None, run_id="run_20230701_020000", at="2023-07-01T02:00:00")


def test_the_proxy_is_said_only_where_there_is_one():
    assert "stand in" in Market(instrument="usdm_perp", candles="spot").proxy_note
    assert Market(instrument="spot", candles="spot").proxy_note == ""
