"""Worlds that the flow tests share: made once, by whichever test asks first."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import small_world
from engine_assets.cli import main


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def good(base) -> small_world.World:
    """Candles and configuration of the good coins; its home does not exist."""
    return small_world.good_world(base)


@pytest.fixture(scope="session")
def finished(base) -> small_world.World:
    """Two nights over the good coins. Take a `copy` to change something."""
    return small_world.finished_world(base)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def told(monkeypatch, capsys) -> Callable[..., Done]:
    """Run `huracan` on a world through its own entry point, but in this process: importing Dagster and MLflow takes seconds."""

    def run(world: small_world.World, *arguments: str) -> Done:
        for name in [name for name in os.environ if name.startswith(("HURACAN_", "DAGSTER_", "MLFLOW_TRACKING_URI"))]:
            monkeypatch.delenv(name)
        for name, value in (world.variables | {"COLUMNS": "200", "DAGSTER_HOME": ""}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["huracan", *arguments])
        capsys.readouterr()
        code: int | str | None = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return run
