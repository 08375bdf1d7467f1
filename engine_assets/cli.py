"""`huracan`: run nights, look at segments and champions, start the pages. Composition root of the command line."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click
from rich.table import Table

from engine_assets import report
from engine_assets.launch import coins_of_last_run, dagster_instance, run_night
from engine_assets.pages import serve
from engine_assets.session import scheduled_as_of
from engine_assets.show import head, night_json, out, print_counts, print_night, print_segments, progress
from engine_assets.work.night import Night
from engine_assets.work.promoter import reconcile, rollback
from engine_resources.library import Library
from engine_resources.registry import Registry
from engine_resources.settings import Settings, load_settings
from hamilton_client.core import layout
from hamilton_client.core.contracts import Heartbeat, HuracanError, RunManifest, utc_iso
from hamilton_client.store import NotFound
from hamilton_client.telemetry import setup_logging

symbol_argument = click.argument("symbol", callback=lambda context, parameter, symbol: layout.check_symbol(symbol))
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="huracan")
def cli() -> None:
    """Huracan trains, validates and promotes trading models, one night at a time.

    Exit codes: 0 done, 1 failed or refused with a reason, 2 wrong usage.
    """
    setup_logging()


@cli.command(epilog="Example: huracan nightly --coins BTCUSDT,ETHUSDT --as-of 2023-06-30T02:00Z")
@click.option("--coins", help="all (the default), topN by traded value (top20), or a comma-separated list; --resume keeps the run's own.")
@click.option("--mode", type=click.Choice(["sequential", "parallel", "hybrid"]), help="Instead of training.mode.")
@click.option("--max-concurrent", type=click.IntRange(min=1), help="Instead of training.max_concurrent.")
@click.option(
    "--resume", is_flag=False, flag_value="", help="Go on where a killed run stopped (default: the newest unfinished).", metavar="[RUN_ID]"
)
@click.option(
    "--as-of", "as_of_text", help="The instant the night stands for (UTC). Default: the newest 02:00 UTC tick of the source's clock."
)
@click.option("--nights", type=click.IntRange(min=1), default=1, help="Run this many nights up to as-of, skipping those that are complete.")
@click.option("--all", "every", is_flag=True, help="Show every segment, not only a line per coin.")
@json_option
def nightly(
    coins: str | None,
    mode: str | None,
    max_concurrent: int | None,
    resume: str | None,
    as_of_text: str | None,
    nights: int,
    every: bool,
    as_json: bool,
) -> None:
    """Run a night: candles → features → regimes → folds → models → shadow → champions."""
    settings = _settings(mode, max_concurrent)
    unfinished = resume is not None and as_of_text is None and (resume or nights == 1)
    as_of = _resumed(resume or "", settings) if unfinished else _as_of(as_of_text, settings)
    now = Night(settings, as_of).source.now()
    if as_of > now:
        raise HuracanError(f"{utc_iso(as_of)} has not come yet: the candles of {settings.source_path} stand at {utc_iso(now)}")
    chosen = choose_coins("all" if coins is None else coins, Night(settings, as_of))
    instants = [as_of - timedelta(days=back) for back in reversed(range(nights))]
    results = []
    with dagster_instance(settings) as instance:
        if resume is not None and coins is None:
            chosen = coins_of_last_run(instance, as_of) or chosen
        for instant in instants:
            if nights > 1 and is_complete(Night(settings, instant), chosen):
                continue
            with progress(instant, quiet=as_json) as listener:
                results.append(run_night(settings, instance, chosen, instant, resume=resume is not None, listener=listener))
    night = Night(settings, as_of)
    library = Library(settings.database_url)
    _emit_json(night_json(night, library, results)) if as_json else print_night(night, library, results, every)
    if any(not result.ok for result in results):
        sys.exit(1)


def _resumed(run_id: str, settings: Settings) -> datetime:
    """The instant of the run to resume: the one named, else the newest that began and did not finish, else the newest tick."""
    if run_id:
        return layout.as_of_from_run_id(run_id)
    night = Night(settings, datetime.now(UTC))
    try:
        beat = Heartbeat.from_bytes(night.store.get(layout.ENGINE_HEARTBEAT))
    except NotFound:
        return _as_of(None, settings)
    return layout.as_of_from_run_id(beat.run_id) if beat.phase != "finished" else _as_of(None, settings)


def choose_coins(text: str, night: Night) -> list[str]:
    """Coins of a `--coins` value, at least one. Raises HuracanError for coins that the source does not have."""
    chosen = _coins_of(text, night)
    if not chosen:
        raise HuracanError(f"--coins {text!r} chooses no coin of {night.settings.source_path}; give all, top20, or names: BTCUSDT,ETHUSDT")
    return chosen


def _coins_of(text: str, night: Night) -> list[str]:
    known = night.source.symbols()
    allowed = [
        symbol for symbol in known if not night.settings.training.symbols_allowed or symbol in night.settings.training.symbols_allowed
    ]
    if text == "all":
        return allowed[: night.settings.engine.max_coins]
    if text.startswith("top") and text[3:].isdigit():
        traded = [symbol for symbol in allowed if not night.source.is_synthetic(symbol)]
        return sorted(traded, key=lambda symbol: -_traded_value(symbol, night))[: int(text[3:])]
    wanted = [layout.check_symbol(symbol.strip()) for symbol in text.split(",") if symbol.strip()]
    for symbol in wanted:
        if symbol not in known:
            night.source.fetch(symbol, night.base, None, None)  # raises, naming the nearest coins
    return wanted


def _traded_value(symbol: str, night: Night) -> float:
    """Of the last 30 days, in quote currency; 0 where the candles cannot be read: one bad coin keeps no other from being ranked."""
    try:
        recent = night.source.fetch(symbol, night.base, night.as_of - timedelta(days=30), night.as_of)
    except HuracanError:
        return 0.0
    value = recent["close"] * recent["volume"]
    return float(value.filter(value.is_finite()).sum())


def is_complete(night: Night, coins: Sequence[str]) -> bool:
    """Whether this night ended for all these coins under the same recipe, without a failure."""
    try:
        manifest = RunManifest.from_bytes(night.store.get(layout.manifest(night.run_id)))
    except NotFound:
        return False
    same = manifest.lineages == {night.recipe.name: night.recipe.hash}
    return same and not manifest.failures and set(coins) <= set(manifest.symbols_trained)


@cli.command(epilog="Example: huracan status --json")
@click.option("--as-of", "as_of_text", help="The night to look at. Default: the newest that ran.")
@json_option
def status(as_of_text: str | None, as_json: bool) -> None:
    """List every segment with its state, and what the newest night did."""
    settings = _settings()
    night = Night(settings, _as_of(as_of_text, settings))
    library = Library(settings.database_url)
    library.migrate()
    rows = report.segment_rows(night, library)
    if not rows:
        raise HuracanError(f"no night has run for {utc_iso(night.as_of)} in {settings.home}; run: huracan nightly")
    if as_json:
        _emit_json(
            head(night) | {"segments": [row._asdict() for row in rows], "counts": report.state_counts(rows), "reuse": report.reuse(night)}
        )
        return
    print_segments(rows)
    print_counts(rows)


@cli.group()
def champions() -> None:
    """Show, trace and roll back the champion of a coin."""


@champions.command("show", epilog="Example: huracan champions show BTCUSDT")
@symbol_argument
@json_option
def champions_show(symbol: str, as_json: bool) -> None:
    """Show the champion pointer of SYMBOL."""
    row = _library().champion(symbol)
    if row is None:
        raise HuracanError(f"{symbol} has no champion yet; run: huracan nightly --coins {symbol}")
    pointer = row.pointer().model_dump(mode="json")
    _emit_json(pointer) if as_json else out.print_json(data=pointer)


@champions.command("history", epilog="Example: huracan champions history BTCUSDT")
@symbol_argument
@json_option
def champions_history(symbol: str, as_json: bool) -> None:
    """List every move of the champion of SYMBOL, with its reason."""
    moves = _library().promotions(symbol)
    if as_json:
        _emit_json([{"generation": move.generation, "kind": move.kind, "at": move.at.isoformat(), "reason": move.reason} for move in moves])
        return
    table = Table("generation", "kind", "at", "reason", title=f"{symbol}: promotions")
    for move in moves:
        table.add_row(str(move.generation), move.kind, utc_iso(move.at), move.reason)
    out.print(table)


@champions.command("rollback", epilog="Example: huracan champions rollback BTCUSDT --to 3")
@symbol_argument
@click.option("--to", "generation", type=int, help="Generation to go back to. Default: the one before.")
def champions_rollback(symbol: str, generation: int | None) -> None:
    """Make an earlier champion bundle of SYMBOL champion again, as a new generation."""
    settings = _settings()
    night = Night(settings, _as_of(None, settings))
    row = rollback(night, _library(settings), _registry(settings), symbol, generation)
    out.print(f"{symbol}: generation {row.generation} is {row.bundle}")


@cli.command("reconcile", epilog="Example: huracan reconcile")
def reconcile_command() -> None:
    """Make pointer files, MLflow aliases and the index follow the champion table."""
    settings = _settings()
    for line in reconcile(Night(settings, _as_of(None, settings)), _library(settings), _registry(settings)) or ["nothing to repair"]:
        out.print(line)


@cli.command(epilog="Example: huracan ui --port 3000 --mlflow-port 5000")
@click.option("--port", default=3000, show_default=True, help="Dagster's pages.")
@click.option("--mlflow-port", default=5000, show_default=True, help="MLflow's pages.")
def ui(port: int, mlflow_port: int) -> None:
    """Start the Dagster pages, its daemon (the 02:00 UTC schedule) and the MLflow pages, on loopback; Ctrl-C ends them.

    A night that the daemon runs goes on to its end when a service manager stops this command (SIGTERM); Ctrl-C ends it as well.
    """
    settings = _settings()
    serve(settings, _as_of(None, settings), port, mlflow_port, os.environ)


def _settings(mode: str | None = None, max_concurrent: int | None = None) -> Settings:
    given = {"HURACAN_TRAINING__MODE": mode, "HURACAN_TRAINING__MAX_CONCURRENT": None if max_concurrent is None else str(max_concurrent)}
    settings = load_settings(environ=dict(os.environ) | {name: value for name, value in given.items() if value is not None})
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            return settings
    except OSError as fault:
        raise HuracanError(
            f"the home {settings.home} cannot be written ({fault.strerror}); set HURACAN_HOME to a folder of your own"
        ) from None


def _library(settings: Settings | None = None) -> Library:
    library = Library((settings or _settings()).database_url)
    library.migrate()
    return library


def _registry(settings: Settings) -> Registry:
    return Registry(settings.mlflow_url, str(settings.home / "mlartifacts"))


def _as_of(text: str | None, settings: Settings) -> datetime:
    if text is None:
        return scheduled_as_of(Night(settings, datetime.now(UTC)).source.now())
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no instant; write it as 2023-07-01T02:00Z") from None
    return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _emit_json(value: object) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


def main() -> None:
    """Entry point: user errors end in one line and exit code 1, never in a traceback."""
    try:
        cli(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("huracan: interrupted; a night that was running goes on with: huracan nightly --resume", err=True)
        sys.exit(130)
    except HuracanError as error:
        click.echo(f"huracan: {error}", err=True)
        sys.exit(1)
