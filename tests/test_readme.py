"""The README is a promise: every command and every engine is in it, and what it names exists."""

from pathlib import Path

import click
import pytest

from engine_assets.cli import cli as huracan
from hamilton_client.__main__ import cli as hamilton
from hamilton_client.core.engines import ENGINES

README = (Path(__file__).parent.parent / "README.md").read_text()


def commands(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    found = []
    for name, command in group.commands.items():
        here = f"{path} {name}"
        found += commands(command, here) if isinstance(command, click.Group) else [(here, command)]
    return found


COMMANDS = commands(huracan, "huracan") + commands(hamilton, "hamilton")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_in_the_readme(engine: str) -> None:
    assert f"| `{engine}` |" in README


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_every_command_is_in_the_readme_and_shows_an_example(path: str, command: click.Command) -> None:
    words = path.split()
    row = next((line for line in README.splitlines() if line.startswith(f"| `{words[0]} {words[1]}")), "")
    assert words[-1] in row, f"README has no row for {path}"
    assert command.epilog, f"{path} --help lacks an example"
    assert command.epilog.startswith(f"Example: {path}")


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in ("run", "test", "bench", "soak"):
        assert f"make {target}" in README
        assert f"\n{target}:" in makefile
