"""The pages people look at: Dagster, its daemon and MLflow as child processes on loopback, ended together."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from engine_assets.launch import dagster_home, dagster_instance, report_dead_runs
from engine_assets.show import out
from engine_resources.settings import REPOSITORY, Settings
from hamilton_client.core.contracts import HuracanError, utc_iso


def serve(settings: Settings, as_of: datetime, port: int, mlflow_port: int, environ: Mapping[str, str]) -> None:
    """Start the pages and wait. Raises HuracanError for a port that is taken, and when one of the programs ends by itself."""
    _check_port("--port", port)
    _check_port("--mlflow-port", mlflow_port)
    with dagster_instance(settings) as instance:
        report_dead_runs(instance)
    out.print(f"Dagster http://127.0.0.1:{port}   MLflow http://127.0.0.1:{mlflow_port}/#/models   as of {utc_iso(as_of)}")
    commands, environment = _commands(settings, port, mlflow_port), _environment(settings, environ)
    processes = [subprocess.Popen(command, env=environment) for command in commands]  # noqa: S603  # our own programs
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop ends the pages as Ctrl-C does
    try:
        pid, status = os.wait()
        program = Path(commands[[process.pid for process in processes].index(pid)][0]).name
        code = os.waitstatus_to_exitcode(status)
        raise HuracanError(f"{program} ended with exit code {code}, so the other pages were ended too. Its last lines above say why")
    except KeyboardInterrupt:
        pass
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _commands(settings: Settings, port: int, mlflow_port: int) -> list[list[str]]:
    programs = Path(sys.executable).parent
    workspace = ["-w", str(REPOSITORY / "workspace.yaml")]
    stored = ["--backend-store-uri", settings.mlflow_url, "--artifacts-destination", str(settings.home / "mlartifacts")]
    return [
        [str(programs / "dagster-webserver"), *workspace, "-h", "127.0.0.1", "-p", str(port)],
        [str(programs / "dagster-daemon"), "run", *workspace],
        [str(programs / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1", *stored],
    ]


def _environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    return {
        **environ,
        "DAGSTER_HOME": str(dagster_home(settings)),
        "HURACAN_HOME": str(settings.home),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _check_port(option: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as fault:
            raise HuracanError(f"port {port} cannot be used ({fault.strerror}); choose another with {option}") from None
