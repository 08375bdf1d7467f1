"""One coin, one decision: champion pointer → verified bundle → candles → signals → decide → admit → event."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import structlog

from hamilton_client.bundle import Bundle, read_bundle
from hamilton_client.candles import CandleStore
from hamilton_client.core import bars, layout
from hamilton_client.core.contracts import Action, ChampionPointer, DecisionEvent, HuracanError, utc_iso
from hamilton_client.core.costs import round_trip_costs
from hamilton_client.core.decide import ACTIONS, Decisions, decide, to_event
from hamilton_client.core.policy import Policy
from hamilton_client.core.regimes import REGIME_CODES
from hamilton_client.core.risk import RiskState, admit
from hamilton_client.core.signals import Signals, covers, required_base_bars, signals
from hamilton_client.pointer import PointerWatch, read_pointer
from hamilton_client.settings import HamiltonSettings
from hamilton_client.store import ObjectStore

CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class Champion:
    """A pointer and the verified bundle it names; `note` says why an older one is still in use."""

    pointer: ChampionPointer
    bundle: Bundle
    note: str = ""


class Champions:
    """The champions of all coins. A new bundle that is bad never replaces one that was good."""

    def __init__(self, store: ObjectStore, watch: PointerWatch) -> None:
        self.store = store
        self.watch = watch
        self._held: dict[str, Champion] = {}

    def get(self, symbol: str) -> Champion:
        """The champion in force, or the last good one with a note. Raises HuracanError where there is neither."""
        held = self._held.get(symbol)
        try:
            fresh = self._read(symbol, held)
        except HuracanError as fault:
            if held is None:
                raise
            structlog.get_logger().warning("champion_refused", symbol=symbol, reason=str(fault), kept=held.pointer.bucket_path)
            return replace(held, note=f"generation {held.pointer.generation} is kept, the newest is refused: {fault}")
        self._held[symbol] = fresh
        return fresh

    def _read(self, symbol: str, held: Champion | None) -> Champion:
        pointer = read_pointer(self.store, symbol)
        self.watch.check(pointer)
        unchanged = held is not None and held.pointer.sha256 == pointer.sha256 and held.pointer.bucket_path == pointer.bucket_path
        bundle = held.bundle if held is not None and unchanged else read_bundle(self.store, pointer)
        self.watch.accept(pointer)
        return Champion(pointer, bundle)


def latest_as_of(store: ObjectStore, champion: Champion) -> datetime:
    """The newest instant the bucket knows about a coin: the end of its last candle, or the night its bundle was made."""
    base, made = champion.bundle.policy.base_timeframe, champion.pointer.as_of
    newest = CandleStore(store).read(champion.pointer.symbol, base, since=made - timedelta(days=2))["ts"].max()
    if not isinstance(newest, datetime):
        return made
    return max(made, newest + timedelta(minutes=layout.timeframe_minutes(base)))


def decide_once(
    store: ObjectStore, champions: Champions, symbol: str, settings: HamiltonSettings, as_of: datetime | None = None
) -> DecisionEvent:
    """Decide for one coin on its newest bar closed at `as_of` (None: `latest_as_of`); nothing is journalled here.

    Raises HuracanError where there is no sound champion, no candle recent enough, or `as_of` lies before the bundle was made.
    """
    champion = champions.get(layout.check_symbol(symbol))
    bundle = champion.bundle
    as_of = as_of or latest_as_of(store, champion)
    if as_of < champion.pointer.as_of:
        raise HuracanError(
            f"{symbol}: as-of {utc_iso(as_of)} lies before its bundle was made ({utc_iso(champion.pointer.as_of)}): "
            "that would decide with knowledge of the future; give a later --as-of"
        )
    policy = _operators(bundle.policy, settings)
    preset = settings.risk.preset or policy.risk.preset
    candles = _tail(CandleStore(store), symbol, bundle, as_of, settings.candles.max_age_bars)
    seen = bundle_signals(bundle, candles, policy=policy, tail=1)
    decisions = decide(
        seen.votes,
        seen.bars,
        policy=policy,
        combiner=bundle.combiner,
        costs=bundle.costs,
        preset=preset,
        learned_available=seen.learned_available,
    )
    account, at_ms = RiskState(nav_usd=policy.nav_usd), int(seen.bars.close_ms[0])
    account.mark(policy.nav_usd, at_ms)
    action, size_usd = ACTIONS[int(decisions.action[0])], float(decisions.size_usd[0])
    admission = None if action is Action.HOLD else admit(account, symbol, action, size_usd, at_ms, policy, preset, {})
    metadata = _origin(champion, as_of) | _explanation(bundle, policy, seen, decisions)
    return to_event(decisions, seen.votes, seen.bars, 0, symbol=symbol, preset=preset, metadata=metadata, admission=admission)


def bundle_signals(bundle: Bundle, base_candles: pl.DataFrame, *, policy: Policy | None = None, tail: int | None = None) -> Signals:
    """`core.signals` with everything a bundle knows; only segments in state `champion` have a say."""
    spoken = {segment for segment, entry in bundle.card.segments.items() if entry.state == CHAMPION}
    return signals(
        base_candles,
        policy=policy or bundle.policy,
        recipe=bundle.features,
        regimes=bundle.regimes,
        score=bundle.score,
        calibrations={segment: table for segment, table in bundle.calibrations.items() if segment in spoken},
        horizons=bundle.horizon_bars,
        reliability=bundle.combiner.reliability,
        tail=tail,
    )


def _operators(policy: Policy, settings: HamiltonSettings) -> Policy:
    nav = settings.account.nav_usd
    return policy if nav is None else policy.model_copy(update={"nav_usd": nav})


def _tail(candles: CandleStore, symbol: str, bundle: Bundle, as_of: datetime, max_age_bars: int) -> pl.DataFrame:
    """Closed base bars, as many as the decision depends on; more where gaps ate into them, all where the coin is young."""
    base = bundle.policy.base_timeframe
    step = timedelta(minutes=layout.timeframe_minutes(base))
    span = required_base_bars(bundle.policy, bundle.features, bundle.regimes) * step
    frame = pl.DataFrame()
    for since in (as_of - span, as_of - 2 * span, None):
        frame = bars.closed(candles.read(symbol, base, since=since, until=as_of), base, as_of)
        if frame.height and covers(frame, bundle.policy, bundle.features, bundle.regimes):
            break
    if frame.is_empty():
        raise HuracanError(
            f"{symbol} has no closed {base} candle before {utc_iso(as_of)} in {candles.store.url}; bring some: huracan nightly"
        )
    end: datetime = frame["ts"][-1] + step
    if end < as_of - max_age_bars * step:
        raise HuracanError(
            f"{symbol}: its newest {base} candle closed {utc_iso(end)}, over {max_age_bars} bars before {utc_iso(as_of)}; "
            "bring newer ones with: huracan nightly, or give an earlier --as-of"
        )
    return frame


def _origin(champion: Champion, as_of: datetime) -> dict[str, Any]:
    """Where the decision comes from, for its metadata."""
    pointer, card = champion.pointer, champion.bundle.card
    probation = [name for name, entry in pointer.segments.items() if entry.probation_until and entry.probation_until > as_of]
    return {
        "as_of": as_of.isoformat(),
        "bundle": pointer.bucket_path,
        "bundle_as_of": pointer.as_of.isoformat(),
        "generation": pointer.generation,
        "sha256": pointer.sha256,
        "market": card.market.model_dump(mode="json"),
        "proxy_note": card.market.proxy_note,
        "synthetic": pointer.synthetic or card.synthetic,
        "probation": probation,
        "note": champion.note,
    }


def _explanation(bundle: Bundle, policy: Policy, seen: Signals, decisions: Decisions) -> dict[str, Any]:
    """The figures behind row 0: what each timeframe's model said, what was needed, and what the costs are made of."""
    regime = REGIME_CODES[seen.bars.regime[0]]
    side = np.sign(decisions.score).astype(np.int8)
    fixed = round_trip_costs(np.zeros(1), decisions.horizon_bars, side, seen.bars, bundle.costs, policy)
    parts = {"fees_bps": fixed.fees_bps, "spread_bps": fixed.spread_bps, "funding_bps": fixed.funding_bps}
    parts["impact_bps"] = decisions.costs_bps - fixed.fees_bps - fixed.spread_bps - fixed.funding_bps
    learned = {
        timeframe: {
            "regime": REGIME_CODES[said.regime[0]].value,
            "model_id": _model_id(bundle, layout.segment(timeframe, REGIME_CODES[said.regime[0]])),
            "probability": _number(said.probability[0]),
            "edge_bps": _number(said.edge_bps[0]),
            "score": _number(said.score[0]),
        }
        for timeframe, said in seen.learned.items()
    }
    return {
        "costs": {name: _number(value[0]) for name, value in parts.items()} | {"safety_margin_bps": fixed.safety_margin_bps},
        "needed": {
            "score": policy.consensus.adaptive_thresholds.get(regime, 1.0),
            "agreement": policy.consensus.min_agreement_threshold,
            "effective_engines": policy.consensus.quorum,
            "net_edge_bps": policy.cost_model.min_edge_after_cost_bps,
        },
        "nav_usd": policy.nav_usd,
        "learned": learned,
    }


def _model_id(bundle: Bundle, segment: str) -> str | None:
    entry = bundle.card.segments.get(segment)
    return entry.model_id if entry else None


def _number(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
