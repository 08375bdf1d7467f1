"""How much, and whether at all: position sizing per decision, and the account's limits per order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hamilton_client.core.contracts import Action, FloatArray, HuracanError, IntArray, RiskPresetName
from hamilton_client.core.layout import timeframe_ms
from hamilton_client.core.policy import Policy, RiskPreset

DAY_MS = 86_400_000
SIZE_LIMITS = ("per_trade_risk", "max_leverage", "coin_limit", "participation_rate")
OTHER_SECTOR = "other"
CROWD = "max_concurrent_trades"


def preset_of(policy: Policy, name: RiskPresetName) -> RiskPreset:
    """The limits of a risk preset. Raises HuracanError where the policy has none by that name."""
    try:
        return policy.risk_presets[name]
    except KeyError:
        known = ", ".join(policy.risk_presets)
        raise HuracanError(f"risk preset {str(name)!r} is not in the policy; it has: {known}. Add it to risk_presets") from None


def stop_distance_bps(sigma_bps: FloatArray, horizon_bars: IntArray, stop_sigmas: float) -> FloatArray:
    """Distance of the stop (n,) in bps: `stop_sigmas` volatilities of the horizon; NaN where volatility is unknown or zero."""
    return np.where(sigma_bps > 0, stop_sigmas * sigma_bps * np.sqrt(horizon_bars), np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Sizing:
    """Order size (n,) in USD, NaN where an input is missing, and which of `SIZE_LIMITS` bound it (n,)."""

    size_usd: FloatArray
    limit: NDArray[np.int8]


def size(stop_bps: FloatArray, max_order_usd: FloatArray, policy: Policy, preset: RiskPresetName) -> Sizing:
    """Size of a new position: lose `per_trade_risk_pct` of NAV at the stop, within leverage, coin limit and participation cap.

    `stop_bps` and `max_order_usd` (n,) as from `stop_distance_bps` and `costs.max_order_usd`.
    """
    limits, nav = preset_of(policy, preset), policy.nav_usd
    caps = np.empty((4, len(stop_bps)))
    caps[0] = nav * limits.per_trade_risk_pct / 100 / (stop_bps / 1e4)
    caps[1] = nav * limits.max_leverage
    caps[2] = nav * policy.risk.limits_pct_of_nav.coin / 100
    caps[3] = max_order_usd
    return Sizing(caps.min(axis=0), caps.argmin(axis=0).astype(np.int8))


@dataclass(slots=True)
class RiskState:
    """What the account holds and did. `positions` are signed USD per symbol, `last_decision` is (action, instant) per symbol.

    Move it with `mark`, `opened`, `closed` and `decided`; `admit` only reads it.
    """

    nav_usd: float
    peak_nav_usd: float = 0.0
    day: int = -1
    day_peak_nav_usd: float = 0.0
    day_start_nav_usd: float = 0.0
    realised_usd: float = 0.0
    positions: dict[str, float] = field(default_factory=dict)
    last_close_ms: dict[str, int] = field(default_factory=dict)
    last_decision: dict[str, tuple[Action, int]] = field(default_factory=dict)

    def mark(self, nav_usd: float, at_ms: int) -> None:
        """Mark the account to market; a new UTC day starts its own peak and realised P&L."""
        if at_ms // DAY_MS != self.day:
            self.day, self.realised_usd = at_ms // DAY_MS, 0.0
            self.day_start_nav_usd = self.day_peak_nav_usd = self.nav_usd
        self.nav_usd = nav_usd
        self.peak_nav_usd = max(self.peak_nav_usd, nav_usd)
        self.day_peak_nav_usd = max(self.day_peak_nav_usd, nav_usd)

    def opened(self, symbol: str, signed_usd: float) -> None:
        """Add `signed_usd` to a position."""
        self.positions[symbol] = self.positions.get(symbol, 0.0) + signed_usd

    def closed(self, symbol: str, net_pnl_usd: float, at_ms: int) -> None:
        """Drop a position and book what it earned."""
        self.mark(self.nav_usd, at_ms)
        self.positions.pop(symbol, None)
        self.realised_usd += net_pnl_usd
        self.last_close_ms[symbol] = at_ms

    def decided(self, symbol: str, action: Action, at_ms: int) -> None:
        """Remember an order that was sent, so that a repeat is recognised."""
        self.last_decision[symbol] = (action, at_ms)


@dataclass(frozen=True, slots=True)
class Admission:
    """What may be traded now, in USD (0: nothing), and the limit that cut or refused it."""

    size_usd: float
    reason: str | None = None


def admit(
    state: RiskState,
    symbol: str,
    action: Action,
    size_usd: float,
    at_ms: int,
    policy: Policy,
    preset: RiskPresetName,
    sectors: Mapping[str, str],
    portfolio_limits: bool = True,
) -> Admission:
    """Hold one order against every limit; a refusal or cut names the limit.

    What only reduces a position passes all but the repeat check: no limit may lock an account into a loss. `portfolio_limits=False`
    leaves the limits of this coin alone (size, daily loss, cooldown, repeat). `sectors` maps symbol → sector, unknown ones share `other`.
    """
    if action is Action.HOLD or not size_usd > 0:
        return Admission(0.0, "nothing_to_trade")
    before = state.last_decision.get(symbol)
    if before is not None and before[0] is action and at_ms - before[1] < policy.risk.dedup_seconds * 1000:
        return Admission(0.0, f"dedup_seconds: the same {action} was decided {(at_ms - before[1]) / 1000:g} s ago")
    held = state.positions.get(symbol, 0.0)
    opposite = held < 0 if action is Action.BUY else held > 0
    closing = min(size_usd, abs(held)) if opposite else 0.0
    opening = size_usd - closing
    if opening <= 0:
        return Admission(closing)
    refusal = _refusal(state, symbol, action, at_ms, policy, preset_of(policy, preset), portfolio_limits)
    if refusal is not None:
        return Admission(closing, refusal)
    beside = abs(held) - closing if opposite else abs(held)
    cut = _Opening(state, symbol, beside, opening, policy, preset_of(policy, preset))
    allowed, reason = cut.within(cut.portfolio(sectors) if portfolio_limits else [])
    return Admission(closing + allowed, reason)


def _refusal(
    state: RiskState, symbol: str, action: Action, at_ms: int, policy: Policy, preset: RiskPreset, portfolio_limits: bool
) -> str | None:
    """The first limit that forbids any new exposure, or None."""
    if policy.market.instrument == "spot" and action is Action.SELL:
        return "spot_sell_only_closes"
    if not state.nav_usd > 0:
        return "no_nav"
    today = state.day == at_ms // DAY_MS
    loss_pct = -100 * state.realised_usd / state.day_start_nav_usd if today and state.day_start_nav_usd > 0 else 0.0
    if loss_pct >= preset.daily_loss_limit_pct:
        return f"daily_loss_limit: {loss_pct:.2f} % of NAV lost today, limit {preset.daily_loss_limit_pct:g} %"
    if portfolio_limits:
        breakers = policy.risk.circuit_breakers
        for name, peak, limit_pct in (
            ("total_drawdown", state.peak_nav_usd, breakers.total_drawdown_pct),
            ("daily_drawdown", state.day_peak_nav_usd if today else 0.0, breakers.daily_drawdown_pct),
        ):
            fallen_pct = 100 * (1 - state.nav_usd / peak) if peak > 0 else 0.0
            if fallen_pct >= limit_pct:
                return f"circuit_breaker {name}: {fallen_pct:.2f} % below the peak, limit {limit_pct:g} %"
    cooldown_ms = policy.risk.cooldown_bars * timeframe_ms(policy.base_timeframe)
    if at_ms - state.last_close_ms.get(symbol, -cooldown_ms) < cooldown_ms:
        return f"cooldown_bars: {symbol} was closed less than {policy.risk.cooldown_bars} bars ago"
    return None


@dataclass(frozen=True, slots=True)
class _Opening:
    """New exposure of `opening_usd` beside `held_usd` in the same coin."""

    state: RiskState
    symbol: str
    held_usd: float
    opening_usd: float
    policy: Policy
    preset: RiskPreset

    def portfolio(self, sectors: Mapping[str, str]) -> list[tuple[str, float, float]]:
        """What is in use of each limit that coins share: (name, used, limit), in USD or in trades."""
        risk, percent = self.policy.risk, self.state.nav_usd / 100
        limits = risk.limits_pct_of_nav
        others = {name: abs(usd) for name, usd in self.state.positions.items() if name != self.symbol and usd != 0}
        sector = sectors.get(self.symbol, OTHER_SECTOR)
        in_sector = self.held_usd + sum(usd for name, usd in others.items() if sectors.get(name, OTHER_SECTOR) == sector)
        gross = self.held_usd + sum(others.values())
        return [
            (f"sector {sector}", in_sector, limits.sector * percent),
            (f"venue {self.policy.market.venue}", gross, limits.venue * percent),
            ("global", gross, limits.global_ * percent),
            ("max_leverage", gross, self.preset.max_leverage * self.state.nav_usd),
        ] + ([] if self.held_usd > 0 else [(CROWD, float(len(others)), float(risk.max_concurrent_trades))])

    def within(self, shared: list[tuple[str, float, float]]) -> tuple[float, str | None]:
        """USD that may be opened under the coin's own and the `shared` limits, and the limit that cut it.

        A limit allows the room left under it; in its upper band (from `throttle_at`, or `soft_trades`) new orders shrink linearly to 0.
        """
        risk = self.policy.risk
        coin_limit = self.state.nav_usd * risk.limits_pct_of_nav.coin / 100
        allowed, reason = self.opening_usd, None
        for name, used, limit in [("coin", self.held_usd, coin_limit), *shared]:
            room = max(0.0, limit - used)
            band = limit - risk.soft_trades if name == CROWD else limit * (1 - risk.throttle_at)
            throttle = min(1.0, room / band) if band > 0 else float(room > 0)
            cut = self.opening_usd * throttle if name == CROWD else min(room, self.opening_usd * throttle)
            if cut < allowed:
                allowed, reason = cut, f"{name}: {used:.0f} of {limit:.0f} in use"
        return allowed, reason
