"""Score a model the way it would trade: `decide()` with that one engine voting, replayed on base candles, costs entered once."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine_assets.logic.replay import DAY_MS, FUNDING_PERIOD_MS, Orders, Prices, Replay, replay
from engine_assets.logic.stats import sharpe_annual
from hamilton_client.core.combine import Combiner, solo
from hamilton_client.core.contracts import Action, CostSnapshot, FloatArray, IntArray, Regime, RiskPresetName, SignArray
from hamilton_client.core.costs import BarContext
from hamilton_client.core.decide import Decisions, decide
from hamilton_client.core.engines import ENGINES, learned_votes
from hamilton_client.core.policy import Policy
from hamilton_client.core.regimes import REGIME_CODES
from hamilton_client.core.risk import RiskState, admit
from hamilton_client.core.signals import Learned
from hamilton_client.core.votes import Votes

RANDOM_DRAWS = 200
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Book:
    """What trading one coin needs: base prices, their context, costs, policy and the preset under which it is judged."""

    symbol: str
    prices: Prices
    context: BarContext
    costs: CostSnapshot
    policy: Policy
    preset: RiskPresetName

    @property
    def close_ms(self) -> IntArray:
        """Close instants of the base bars (n,)."""
        return self.context.close_ms

    @property
    def funding_bps_per_8h(self) -> float:
        """Funding rate a long pays here; spot has none."""
        return self.costs.funding_bps_per_8h if self.policy.market.instrument == "usdm_perp" else 0.0


class PaperRisk:
    """`risk.admit` for one coin traded alone: per-trade and daily-loss limits and cooldown on, portfolio limits off."""

    def __init__(self, book: Book, decisions: Decisions) -> None:
        self.book, self.decisions, self.state = book, decisions, RiskState(nav_usd=book.policy.nav_usd)

    def __call__(self, row: int, at_ms: int) -> bool:
        """Ask whether the order of `row` may be opened at `at_ms`."""
        action = Action.BUY if self.decisions.action[row] > 0 else Action.SELL
        size = float(self.decisions.size_usd[row])
        policy, preset = self.book.policy, self.book.preset
        return admit(self.state, self.book.symbol, action, size, at_ms, policy, preset, {}, portfolio_limits=False).reason is None

    def closed(self, at_ms: int, net_bps: float, size_usd: float) -> None:
        """Book a closed trade."""
        self.state.closed(self.book.symbol, net_bps * size_usd / 1e4, at_ms)


def trade(book: Book, votes: Votes, combiner: Combiner, learned_available: NDArray[np.bool_] | None = None) -> Replay:
    """Decide on every bar that has a vote and replay the decisions. `votes` has one row per base bar of `book`.

    `learned_available` (n,) is `decide`'s; left out where the voters are the learned engines themselves.
    """
    return _replayed(book, *decided(book, votes, combiner, learned_available))


def trade_segment(book: Book, timeframe: str, horizon_base_bars: int, said: Learned, regime: Regime) -> tuple[Replay, IntArray]:
    """P&L of one segment: its learned engine votes alone (quorum 1). Returns the replay and the base rows it could vote on.

    `said` has one row per bar of `timeframe`; a bar's vote is in force on base bars until the next bar of its timeframe is due.
    """
    engine = next(engine.name for engine in ENGINES.values() if engine.timeframe == timeframe)
    held = said.as_of(book.close_ms, timeframe)
    inside = held.regime == REGIME_CODES.index(regime)
    probability, edge_bps = (np.where(inside, values, np.nan) for values in (held.probability, held.edge_bps))
    result = trade(book, learned_votes(engine, probability, edge_bps, horizon_base_bars), solo(engine))
    return result, np.flatnonzero(np.isfinite(edge_bps))


def decided(book: Book, votes: Votes, combiner: Combiner, learned_available: NDArray[np.bool_] | None = None) -> tuple[IntArray, Decisions]:
    """Rows on which anybody votes, and the decisions on them: rows are independent, so silence need not be decided."""
    rows = np.flatnonzero((votes.direction != 0).any(axis=1))
    decisions = decide(
        votes.take(rows),
        book.context.take(rows),
        policy=book.policy,
        combiner=combiner,
        costs=book.costs,
        preset=book.preset,
        learned_available=None if learned_available is None else learned_available[rows],
    )
    return rows, decisions


def _replayed(book: Book, rows: IntArray, decisions: Decisions) -> Replay:
    n = len(book.close_ms)
    funding = book.funding_bps_per_8h
    held_8h = decisions.horizon_bars * book.prices.bar_ms / FUNDING_PERIOD_MS
    orders = Orders(
        action=_scattered(decisions.action, rows, n),
        horizon_bars=_scattered(decisions.horizon_bars, rows, n),
        stop_bps=_scattered(decisions.stop_bps, rows, n),
        size_usd=_scattered(decisions.size_usd, rows, n),
        trading_cost_bps=_scattered(decisions.costs_bps - decisions.action * funding * held_8h, rows, n),
    )
    position = np.full(n, -1)
    position[rows] = np.arange(len(rows))
    return replay(book.prices, orders, funding_bps_per_8h=funding, admit=_Indexed(PaperRisk(book, decisions), position))


@dataclass
class _Indexed:
    """Translates base rows to the rows that were decided on."""

    risk: PaperRisk
    position: IntArray

    def __call__(self, row: int, at_ms: int) -> bool:
        return self.risk(int(self.position[row]), at_ms)

    def closed(self, at_ms: int, net_bps: float, size_usd: float) -> None:
        self.risk.closed(at_ms, net_bps, size_usd)


def _scattered(values: NDArray[Number], rows: IntArray, n: int) -> NDArray[Number]:
    full = np.zeros(n, dtype=values.dtype)
    full[rows] = values
    return full


def buy_and_hold(prices: Prices, first_day: int, last_day: int) -> pl.DataFrame:
    """Daily P&L in bps of holding the coin from the close before `first_day`, columns date and net_bps, costs left out."""
    closes = pl.DataFrame({"day": prices.open_ms // DAY_MS, "close": prices.close}).group_by("day", maintain_order=True).last()
    return closes.select(
        pl.col("day").cast(pl.Int32).cast(pl.Date).alias("date"), net_bps=pl.col("close").log().diff().fill_null(0.0) * 1e4
    ).filter(closes["day"].is_between(first_day, last_day))


def random_entries(book: Book, trades: pl.DataFrame, rows: IntArray, horizon_bars: int, seed: int) -> FloatArray:
    """Mean net bps per trade of `RANDOM_DRAWS` strategies that enter at random among `rows` with the same count, sides and costs."""
    prices, count = book.prices, len(trades)
    rows = rows[rows + horizon_bars < len(prices.open_ms)]
    if not count or not len(rows):
        return np.empty(0)
    generator = np.random.default_rng(seed)
    gross = 1e4 * np.log(prices.close[rows + horizon_bars] / prices.open[rows + 1])
    side: SignArray = trades["side"].to_numpy()
    picked = generator.integers(len(rows), size=(RANDOM_DRAWS, count))
    shuffled = generator.permuted(np.broadcast_to(side, picked.shape), axis=1)
    net: FloatArray = (gross[picked] * shuffled).mean(axis=1) - trades["cost_bps"].to_numpy().mean()
    return net


def baselines(
    book: Book, result: Replay, rows: IntArray, horizon_bars: int, days: tuple[int, int], pooled: Replay | None
) -> dict[str, float | None]:
    """Figures every report shows beside a segment: flat, buy and hold, random entries with the same count, the pooled model."""
    hold = buy_and_hold(book.prices, *days)["net_bps"].to_numpy()
    drawn = random_entries(book, result.trades, rows, horizon_bars, seed=7)
    own = result.trades["net_bps"].mean()
    values: dict[str, float | None] = {
        "flat_net_pnl_pct": 0.0,
        "buy_and_hold_net_pnl_pct": float(hold.sum()) / 100,
        "buy_and_hold_sharpe": sharpe_annual(hold),
        "random_net_bps": float(drawn.mean()) if len(drawn) else None,
        "random_percentile": float((drawn < own).mean()) if len(drawn) and isinstance(own, float) else None,
    }
    if pooled is not None:
        daily = pooled.daily(book.prices.open_ms, *days)
        mean = pooled.trades["net_bps"].mean()
        values |= {
            "pooled_net_bps": mean if isinstance(mean, float) else None,
            "pooled_trades": float(len(pooled.trades)),
            "pooled_sharpe": sharpe_annual(daily["net_bps"].to_numpy()),
        }
    return values
