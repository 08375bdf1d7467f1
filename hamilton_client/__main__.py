"""`hamilton`: the composition root of the trading box. Reads the environment, wires the parts, formats for people and machines."""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from hamilton_client.core.contracts import DecisionEvent, EngineVote, HuracanError, utc_iso
from hamilton_client.core.layout import check_symbol
from hamilton_client.journal import Journal
from hamilton_client.pointer import PointerWatch
from hamilton_client.runner import Champions, decide_once
from hamilton_client.settings import HamiltonSettings, load_settings
from hamilton_client.store import ObjectStore, open_store
from hamilton_client.telemetry import setup_logging

T = TypeVar("T")


class Instant(click.ParamType[datetime]):
    """An ISO 8601 instant; UTC where no zone is given."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse, or end with a usage error."""
        if isinstance(value, datetime):
            return value
        try:
            parsed = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no instant; write it as 2023-07-01T02:00Z", param, ctx)
        return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


home_option = click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Instead of $HURACAN_HOME (.huracan here).")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="huracan")
def cli() -> None:
    """Hamilton decides with the champions that Huracan trained.

    Exit codes: 0 done, 1 refused with a reason, 2 wrong usage.
    """
    setup_logging()


@cli.command(epilog="Example: hamilton once BTCUSDT ETHUSDT --preset conservative")
@click.argument("symbols", nargs=-1, required=True, metavar="SYMBOL…")
@click.option(
    "--as-of", type=Instant(), help="Decide on the newest bar closed by then, e.g. 2023-07-01T02:00Z (UTC). Default: the newest candle."
)
@click.option("--preset", type=click.Choice(["conservative", "balanced", "aggressive"]), help="Risk preset instead of the configured one.")
@json_option
@home_option
def once(symbols: tuple[str, ...], as_of: datetime | None, preset: str | None, as_json: bool, home: Path | None) -> None:
    """Make, show and journal one decision per coin, on paper."""
    settings = load_settings(os.environ, home=home, preset=preset)
    store = open_store(settings.bucket_url)
    champions = _champions(store, settings)
    journal = Journal(settings.state / "decisions")

    def decided(symbol: str) -> DecisionEvent:
        event = decide_once(store, champions, symbol, settings, as_of)
        journal.append(event)
        return event

    events, refused = _each(symbols, decided)
    if settings.journal.upload:
        _upload(journal, store)
    if as_json:
        _print_json({"decisions": [event.model_dump(mode="json") for event in events], "refused": refused})
    else:
        click.echo("\n\n".join(decision_text(event) for event in events))
    _finish(refused)


@cli.command(epilog="Example: hamilton check BTCUSDT")
@click.argument("symbols", nargs=-1, metavar="[SYMBOL…]")
@json_option
@home_option
def check(symbols: tuple[str, ...], as_json: bool, home: Path | None) -> None:
    """Verify pointers and bundles byte by byte and replay their golden tails; every coin of the bucket where none is named."""
    settings = load_settings(os.environ, home=home)
    store = open_store(settings.bucket_url)
    symbols = symbols or tuple(key.split("/")[1] for key in store.list("champion/") if key.endswith("/latest.json"))
    if not symbols:
        raise HuracanError(f"no coin has a champion in {store.url}; make some with: huracan nightly, or name another --home")
    champions = _champions(store, settings)

    def checked(symbol: str) -> dict[str, Any]:
        champion = champions.get(check_symbol(symbol))
        pointer = champion.pointer
        return {
            "symbol": symbol,
            "generation": pointer.generation,
            "bundle": pointer.bucket_path,
            "as_of": pointer.as_of.isoformat(),
            "bytes": pointer.size,
            "models": sorted(champion.bundle.models),
            "synthetic": pointer.synthetic,
        }

    sound, refused = _each(symbols, checked)
    if as_json:
        _print_json({"sound": sound, "refused": refused})
    else:
        for row in sound:
            models = ", ".join(row["models"]) or "rules only"
            synthetic = "  SYNTHETIC" if row["synthetic"] else ""
            click.echo(
                f"{row['symbol']}  sound  generation {row['generation']}  {row['bundle']}  {row['bytes']:,} bytes  {models}{synthetic}"
            )
    _finish(refused)


def decision_text(event: DecisionEvent) -> str:
    """One decision as a compact block: what, why, every engine, the costs, and where it comes from."""
    told = event.metadata
    needed, costs = told["needed"], told["costs"]
    regimes = " · ".join(f"{timeframe} {said['regime']}" for timeframe, said in told["learned"].items())
    lines = [
        f"{event.symbol}  {event.action.value.upper()}  {event.size_usd:,.0f} USD  reason: {event.reason}",
        f"  bar      closed {utc_iso(event.timestamp)}, decided as of {utc_iso(datetime.fromisoformat(told['as_of']))}",
        f"  regime   {event.regime.value}   (models: {regimes})",
        f"  score    {event.consensus_score:+.3f} (needs {needed['score']:.2f})   agreement {told['agreement']:.2f}"
        f" ({needed['agreement']:.2f})   independent engines {told['effective_engines']:.2f} ({needed['effective_engines']:.2f})",
        f"  costs    {event.costs_bps:.2f} bps = "
        + " + ".join(f"{name} {_shown(costs[f'{name}_bps'])}" for name in ("fees", "spread", "impact", "funding")),
        f"  edge     {event.expected_edge_bps:.2f} gross - {event.costs_bps:.2f} costs - {costs['safety_margin_bps']:.2f} margin"
        f" = {event.net_edge_bps:.2f} bps net, needs {needed['net_edge_bps']:.2f}",
        f"  size     {event.size_usd:,.0f} USD of {told['nav_usd']:,.0f} NAV, preset {event.risk_preset.value}, bound by {told['limit']};"
        f" stop {told['stop_bps']:.0f} bps, horizon {told['horizon_bars']} bars",
        *(f"  model    {timeframe}: {_model_text(said)}" for timeframe, said in told["learned"].items()),
        f"  bundle   {told['bundle']}, generation {told['generation']}, made {utc_iso(datetime.fromisoformat(told['bundle_as_of']))}",
        f"  market   {told['market']['venue']} {told['market']['instrument']}, paper"
        + (f"; {told['proxy_note']}" if told["proxy_note"] else ""),
        *(["  SYNTHETIC data: this decision shows the path, not a market"] if told["synthetic"] else []),
        *([f"  probation {', '.join(told['probation'])}: no real orders yet"] if told["probation"] else []),
        *([f"  NOTE     {told['note']}"] if told["note"] else []),
        *([f"  unknown  {', '.join(told['missing'])} (shown as 0)"] if told.get("missing") else []),
        f"  {'engine':<22}{'vote':<6}{'conf':>6}{'edge bps':>10}{'bars':>6}{'weight':>8}  gate",
        *(_vote_text(vote) for vote in event.engine_votes),
    ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _model_text(said: dict[str, Any]) -> str:
    if said["model_id"] is None:
        return f"no champion for {said['regime']}"
    if said["probability"] is None:
        return f"{said['model_id']} is silent"
    return f"{said['model_id']} P(rise) {said['probability']:.3f}, long edge {said['edge_bps']:+.1f} bps"


def _vote_text(vote: EngineVote) -> str:
    figures = f"{vote.confidence_0_1:>6.2f}{vote.edge_bps_before_costs:>10.1f}{vote.horizon_bars:>6}{vote.weight:>8.3f}"
    return f"  {vote.engine:<22}{vote.direction.value:<6}{figures}  {vote.gated or ''}".rstrip()


def _champions(store: ObjectStore, settings: HamiltonSettings) -> Champions:
    return Champions(store, PointerWatch(settings.state / "generations.json"))


def _each(symbols: tuple[str, ...], work: Callable[[str], T]) -> tuple[list[T], list[dict[str, str]]]:
    """Do the work per coin; one that is refused never stops the others."""
    done: list[T] = []
    refused: list[dict[str, str]] = []
    for symbol in dict.fromkeys(symbols):
        try:
            done.append(work(symbol))
        except HuracanError as reason:
            refused.append({"symbol": symbol, "reason": str(reason)})
    return done, refused


def _upload(journal: Journal, store: ObjectStore) -> None:
    try:
        journal.upload(store)
    except HuracanError as fault:
        structlog.get_logger().warning("journal_upload_failed", reason=str(fault), kept=str(journal.root))


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))


def _finish(refused: list[dict[str, str]]) -> None:
    for entry in refused:
        click.echo(f"refused: {entry['symbol']}: {entry['reason']}", err=True)
    if refused:
        sys.exit(1)


def main() -> None:
    """Run; a HuracanError ends with its message and exit code 1, never with a traceback."""
    try:
        cli(prog_name="hamilton")
    except HuracanError as fault:
        click.echo(f"hamilton: {fault}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
