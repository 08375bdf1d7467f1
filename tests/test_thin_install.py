"""What `pip install .` gives the trading box: Hamilton, and nothing of the engine's machinery."""

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("dagster", "ray", "mlflow", "sqlalchemy", "sklearn", "pandas", "alembic", "skfolio", "matplotlib")
MODULES = (
    "core.decide",
    "core.signals",
    "core.recipe",
    "bundle",
    "pointer",
    "candles",
    "journal",
    "settings",
    "telemetry",
    "runner",
    "__main__",
)


def python(executable: Path | str, code: str) -> str:
    done = subprocess.run([str(executable), "-I", "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_client_loads_nothing_heavy_not_even_where_it_is_installed():
    imports = "; ".join(f"import hamilton_client.{module}" for module in MODULES)
    found = python(
        sys.executable, f"import sys, json; sys.path.insert(0, {str(ROOT)!r}); {imports}; print(json.dumps(sorted(sys.modules)))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(found)}
    assert not loaded & {*HEAVY, "lightgbm", "scipy", "pyarrow", "engine_resources", "engine_assets"}


@pytest.fixture(scope="module")
def thin(tmp_path_factory) -> Path:
    """A clean environment with the client alone, at the versions of requirements.lock."""
    home = tmp_path_factory.mktemp("thin")
    venv.create(home / "venv", with_pip=True)
    pins = re.findall(r"^[A-Za-z0-9_.-]+==[^\s\\]+", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(pins))
    bin_ = home / "venv" / "bin"
    done = subprocess.run(
        [str(bin_ / "pip"), "install", "-q", "-c", str(constraints), str(_copied(home / "source"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return bin_


def _copied(source: Path) -> Path:
    """The files a build needs, away from the checkout, so that no build folder is left in it."""
    for name in ("hamilton_client", "engine_resources", "engine_assets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.mark.slow
def test_the_thin_install_has_no_engine_in_it(thin):
    code = f"import importlib.util as u, json; print(json.dumps([name for name in {HEAVY!r} if u.find_spec(name)]))"
    assert json.loads(python(thin / "python", code)) == []


@pytest.mark.slow
def test_the_thin_install_runs_hamilton(thin, tmp_path):
    shown = subprocess.run([str(thin / "hamilton"), "--help"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Usage: hamilton" in shown.stdout
    empty = subprocess.run([str(thin / "hamilton"), "once", "BTCUSDT"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert empty.returncode == 1
    assert "has no champion" in empty.stderr


@pytest.mark.slow
def test_the_thin_install_reads_a_bundle_and_decides(thin, tmp_path, monkeypatch):
    """The bundle is made here, with everything installed; the decision there, with next to nothing."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "client"))
    import bundle_making as making
    from hamilton_client.store import LocalStore

    store = LocalStore(tmp_path / ".huracan" / "bucket")
    making.fill_lake(store)
    making.publish(store, making.packed())
    done = subprocess.run([str(thin / "hamilton"), "once", "BTCUSDT", "--json"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decisions"][0]["symbol"] == "BTCUSDT"
