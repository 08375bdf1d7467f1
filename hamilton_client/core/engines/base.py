"""What a voter is: one row of the table."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from hamilton_client.core.contracts import Regime
from hamilton_client.core.features import FeatureRecipe


@dataclass(frozen=True, eq=False)
class Engine:
    """One voter. A rule is two polars expressions over feature columns (`pl.col("zscore_24")`) of the base timeframe.

    `direction` says 1 (buy), -1 (sell) or 0 (wait), `strength` how far the rule's condition is exceeded, clipped to 0..1 by the
    caller; null is read as 0. `horizon_bars` counts base bars, `source` names the published rule, `regimes` are those it may vote in.
    A learned engine has a `timeframe` instead of expressions: its votes come from a model.
    """

    name: str
    kind: Literal["rule", "learned"]
    regimes: frozenset[Regime]
    horizon_bars: int
    source: str
    direction: pl.Expr | None = None
    strength: pl.Expr | None = None
    timeframe: str | None = None

    @property
    def inputs(self) -> frozenset[str]:
        """Feature columns the rule reads, by the names `FeatureRecipe` gives them."""
        rules = (rule for rule in (self.direction, self.strength) if rule is not None)
        return frozenset(name for rule in rules for name in rule.meta.root_names())

    @property
    def warmup_bars(self) -> int:
        """Bars a rule's vote depends on, its own included; 0 for a learned engine, whose recipe says."""
        return FeatureRecipe.of(self.inputs).warmup_bars if self.inputs else 0


def rule(name: str, source: str, *, regimes: set[Regime], horizon_bars: int, direction: pl.Expr, strength: pl.Expr) -> Engine:
    """A table row of a rule."""
    return Engine(name, "rule", frozenset(regimes), horizon_bars, source, direction, strength)


def toward(condition: pl.Expr, sign: pl.Expr) -> pl.Expr:
    """The sign of `sign` where `condition`, else 0."""
    return pl.when(condition).then(sign.sign()).otherwise(0)


def excess(value: pl.Expr, enter: float, full: float) -> pl.Expr:
    """How far |value| is past `enter`, 1 at `full`."""
    return (value.abs() - enter) / (full - enter)
