"""How to decide, as data: the settings that are frozen into every bundle, so that live cannot drift from what was validated.

The defaults are those of `config/policy.yaml`; a test holds the two equal.
"""

from typing import Annotated

from pydantic import Field

from hamilton_client.core.contracts import Frozen, Market, Record, Regime, RiskPresetName

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class ConsensusPolicy(Frozen):
    """How votes become one score; thresholds by the base timeframe's regime."""

    num_engines: int = 23
    min_agreement_threshold: Fraction = 0.6
    reliability_decay: Fraction = 0.95
    correlation_penalty_threshold: Fraction = 0.8
    correlation_shrinkage_rows: Positive = 200.0
    quorum: Positive = 1.5
    adaptive_thresholds: dict[Regime, Fraction] = {
        Regime.TREND: 0.5,
        Regime.RANGE: 0.55,
        Regime.PANIC: 0.65,
        Regime.ILLIQUID: 0.7,
        Regime.UNKNOWN: 1.0,
    }


class RegimeGate(Frozen):
    """Engines that may, and may not, vote in one regime."""

    enabled_engines: tuple[str, ...] = ()
    disabled_engines: tuple[str, ...] = ()


class RegimeGates(Frozen):
    """Hard gates per regime; the weekly leaderboard weighs what they let through."""

    enabled: bool = True
    leaderboard_refresh_days: int = 7
    TREND: RegimeGate = RegimeGate(
        enabled_engines=("trend_v1", "trend_v2", "breakout", "momentum"), disabled_engines=("mean_reversion", "range_trading")
    )
    RANGE: RegimeGate = RegimeGate(
        enabled_engines=("mean_reversion", "range_trading", "support_resistance"), disabled_engines=("trend_v1", "trend_v2")
    )
    PANIC: RegimeGate = RegimeGate(
        enabled_engines=("scalping", "volatility", "liquidity"), disabled_engines=("trend_v1", "trend_v2", "breakout")
    )
    ILLIQUID: RegimeGate = RegimeGate()

    def of(self, regime: Regime) -> RegimeGate:
        """The gate of one regime; UNKNOWN enables none."""
        return RegimeGate() if regime is Regime.UNKNOWN else getattr(self, regime.value)


class FeeSchedule(Frozen):
    """Fees of one venue at one tier, from one date on."""

    since: str
    tier: str
    maker_bps: NonNegative
    taker_bps: NonNegative
    funding_bps_per_8h: float = 0.0


class Slippage(Frozen):
    """Square-root impact: `impact_factor · daily volatility · sqrt(order ÷ daily volume)`."""

    participation_rate: Fraction = 0.1
    impact_factor: NonNegative = 0.5


class CostPolicy(Frozen):
    """Cost model settings; the floor a decision's net edge must reach (inclusive)."""

    update_interval_seconds: Positive = 60
    real_time_updates: bool = True
    spread_source: str = "websocket"
    min_edge_after_cost_bps: float = 3.0
    safety_margin_bps: NonNegative = 0.5
    slippage: Slippage = Slippage()
    fee_schedule: dict[str, tuple[FeeSchedule, ...]] = {
        "binance": (FeeSchedule(since="2019-09-01", tier="VIP1", maker_bps=2.0, taker_bps=4.0, funding_bps_per_8h=1.0),),
        "coinbase": (FeeSchedule(since="2019-09-01", tier="advanced", maker_bps=5.0, taker_bps=5.0),),
        "okx": (FeeSchedule(since="2019-09-01", tier="regular", maker_bps=2.0, taker_bps=5.0, funding_bps_per_8h=1.0),),
        "bybit": (FeeSchedule(since="2019-09-01", tier="regular", maker_bps=2.0, taker_bps=5.5, funding_bps_per_8h=1.0),),
    }


class ExposureLimits(Frozen):
    """Gross exposure limits in percent of NAV."""

    coin: Positive = 10
    sector: Positive = 30
    venue: Positive = 100
    global_: Annotated[float, Field(gt=0, alias="global")] = 150

    model_config = Frozen.model_config | {"populate_by_name": True, "serialize_by_alias": True}


class CircuitBreakers(Frozen):
    """Drawdowns at which trading stops, in percent of NAV."""

    daily_drawdown_pct: Positive = 5
    total_drawdown_pct: Positive = 15


class RiskPolicy(Frozen):
    """Limits that hold under every preset."""

    preset: RiskPresetName = RiskPresetName.BALANCED
    enforce_in_simulations: bool = True
    limits_pct_of_nav: ExposureLimits = ExposureLimits()
    throttle_at: Fraction = 0.8
    max_concurrent_trades: int = 500
    soft_trades: int = 100
    circuit_breakers: CircuitBreakers = CircuitBreakers()
    cooldown_bars: int = 2
    dedup_seconds: NonNegative = 60


class RiskPreset(Frozen):
    """One named appetite for risk."""

    per_trade_risk_pct: Positive
    daily_loss_limit_pct: Positive
    max_leverage: Positive
    min_confidence: Fraction


class ExitRule(Frozen):
    """When a position ends besides its horizon and an opposite decision: a stop at `stop_sigmas` horizon volatilities."""

    stop_sigmas: Positive = 2.0
    volatility_bars: int = 72


class Policy(Record):
    """`policy.json`: everything `decide()` needs besides the models."""

    market: Market = Market()
    nav_usd: Positive = 100_000.0
    base_timeframe: str = "1h"
    consensus: ConsensusPolicy = ConsensusPolicy()
    regime_gates: RegimeGates = RegimeGates()
    cost_model: CostPolicy = CostPolicy()
    risk: RiskPolicy = RiskPolicy()
    risk_presets: dict[RiskPresetName, RiskPreset] = {
        RiskPresetName.CONSERVATIVE: RiskPreset(per_trade_risk_pct=0.5, daily_loss_limit_pct=1.5, max_leverage=1.5, min_confidence=0.65),
        RiskPresetName.BALANCED: RiskPreset(per_trade_risk_pct=1.0, daily_loss_limit_pct=2.5, max_leverage=2.0, min_confidence=0.55),
        RiskPresetName.AGGRESSIVE: RiskPreset(per_trade_risk_pct=1.5, daily_loss_limit_pct=4.0, max_leverage=3.0, min_confidence=0.50),
    }
    exits: ExitRule = ExitRule()
