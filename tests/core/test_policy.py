"""The policy in code is the policy in `config/policy.yaml`, and it survives the bucket."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from hamilton_client.core.contracts import Regime
from hamilton_client.core.policy import Policy, RegimeGate

CONFIG = Path(__file__).parents[2] / "config" / "policy.yaml"


def test_defaults_are_those_of_the_configuration():
    assert Policy.model_validate(yaml.safe_load(CONFIG.read_text())) == Policy()


def test_round_trip_keeps_the_hash():
    assert Policy.from_bytes(Policy().to_bytes()).hash == Policy().hash


def test_a_newer_writers_field_is_tolerated_on_read_and_refused_on_write():
    body = Policy().to_bytes().replace(b'"nav_usd"', b'"from_the_future": 1, "nav_usd"')
    assert Policy.from_bytes(body) == Policy()
    with pytest.raises(ValidationError):
        Policy(from_the_future=1)


def test_unknown_regime_enables_no_engine():
    assert Policy().regime_gates.of(Regime.UNKNOWN) == RegimeGate()
    assert "breakout" in Policy().regime_gates.of(Regime.PANIC).disabled_engines
