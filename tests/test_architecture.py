"""What keeps the house in order: import-linter's contracts, each shown to bite, and short checks for what it cannot see."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine_assets", "engine_resources", "hamilton_client")
STAGES = ("raw", "features", "regimes", "folds", "models", "shadow", "champions")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ASSET_LINES = 320, 45, 12

CORE = {"numpy", "polars", "pydantic", "hamilton_client.core"}
MAY_IMPORT = {
    "hamilton_client/core": CORE,
    "hamilton_client": CORE | {"click", "lightgbm", "structlog", "yaml", "hamilton_client"},
    "engine_assets/logic": CORE | {"lightgbm", "scipy", "skfolio", "engine_assets.logic"},
}
READ_ENVIRONMENT = {"engine_assets/cli.py", "engine_resources/settings.py", "hamilton_client/__main__.py"}
LOAD_SETTINGS = {"engine_assets/cli.py", "engine_assets/definitions.py", "hamilton_client/__main__.py"}

PLANTS = [
    ("packages flow one way", "hamilton_client/runner.py", "import engine_resources.records"),
    ("stages meet only through asset keys", "engine_assets/models.py", "import engine_assets.folds"),
    ("stages meet only through asset keys", "engine_assets/utils.py", ""),
    ("a night is built from its parts", "engine_assets/work/night.py", "import engine_assets.work.publish"),
    ("training logic is layered", "engine_assets/logic/splits.py", "import engine_assets.logic.fit"),
    ("adapters do not know each other", "engine_resources/lake.py", "import engine_resources.market"),
    ("hamilton is a shell over core", "hamilton_client/store.py", "import hamilton_client.bundle"),
    ("core has one decision path", "hamilton_client/core/risk.py", "import hamilton_client.core.decide"),
    ("engine families do not know each other", "hamilton_client/core/engines/trend.py", "import hamilton_client.core.engines.breakout"),
    ("hamilton stays thin", "hamilton_client/journal.py", "def lazily():\n    import pandas"),
    ("training logic is plain functions", "engine_assets/logic/stats.py", "import ray"),
    ("a night runs without dagster", "engine_resources/pool.py", "import dagster"),
    ("only the wiring reads settings", "engine_assets/work/train.py", "import engine_resources.settings"),
]


def broken_contracts(folder: Path) -> set[str]:
    """Names of the contracts that `lint-imports` finds broken in `folder`; {"error: …"} where it could not run."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(linter), "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)
    if "Contracts: " not in done.stdout:
        return {f"error: {done.stdout[-800:]}{done.stderr}"}
    broken = {line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")}
    assert bool(broken) == bool(done.returncode)
    return broken


def contract_names() -> set[str]:
    lines = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2].splitlines()
    return {line.split('"')[1] for line in lines if line.startswith("name = ")}


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> tuple[Path, set[str]]:
    """The three packages and their contracts, to plant faults in; and what is broken without any."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder, broken_contracts(folder)


def test_every_contract_is_kept():
    assert broken_contracts(ROOT) == set()


def test_every_contract_has_a_plant():
    assert {contract for contract, _, _ in PLANTS} == contract_names()


@pytest.mark.parametrize(("contract", "file", "line"), PLANTS, ids=[f"{file}: {line}" for _, file, line in PLANTS])
def test_a_planted_import_breaks_its_contract_and_no_other(copied, contract, file, line):
    folder, already_broken = copied
    target = folder / file
    before = target.read_text() if target.exists() else None
    target.write_text(f"{before or ''}\n{line}\n")
    try:
        assert broken_contracts(folder) - already_broken == {contract}
    finally:
        target.unlink() if before is None else target.write_text(before)


Check = Callable[[str, ast.Module], Iterator[str]]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def names_outside_the_allow_list(file: str, tree: ast.Module) -> Iterator[str]:
    home = next((home for home in MAY_IMPORT if file.startswith(f"{home}/")), None)
    if home is None:
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            known = name.partition(".")[0] in sys.stdlib_module_names
            if not known and not any(name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_IMPORT[home]):
                yield f"imports {name}"


def long_code(file: str, tree: ast.Module) -> Iterator[str]:
    last = max((node.end_lineno or 0 for node in tree.body), default=0)
    if last > MAX_FILE_LINES:
        yield f"has {last} lines"
    for function in functions(tree):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"{function.name} has {lines} lines"


def missing_docstrings(file: str, tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "has no docstring"
    public: list[ast.AST] = [tree]
    for parent in public:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    yield f"{node.name} has no docstring"
                public += [node] if isinstance(node, ast.ClassDef) else []


def prints(file: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"prints in line {node.lineno}"


def environment_reads(file: str, tree: ast.Module) -> Iterator[str]:
    """Setting a variable for a library is allowed; reading one is for the settings."""
    writes: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "setdefault":
            writes.add(node.value)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            writes.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} and node not in writes and file not in READ_ENVIRONMENT:
            yield f"reads the environment in line {node.lineno}"


def settings_loads(file: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("load_settings") and file not in LOAD_SETTINGS:
            yield f"loads settings in line {node.lineno}"


def fat_assets(file: str, tree: ast.Module) -> Iterator[str]:
    if file not in {f"engine_assets/{stage}.py" for stage in STAGES}:
        return
    assets = [each for each in functions(tree) if any("dg." in ast.unparse(decorator) for decorator in each.decorator_list)]
    if not assets:
        yield "defines no asset"
    for asset in assets:
        body = asset.body[1:] if ast.get_docstring(asset) else asset.body
        lines = (asset.end_lineno or 0) - body[0].lineno + 1 if body else 0
        if lines > MAX_ASSET_LINES:
            yield f"{asset.name} has {lines} lines: move the work into engine_assets.work or logic"


CHECKS: list[tuple[Check, str, str]] = [
    (names_outside_the_allow_list, "hamilton_client/core/bars.py", "import ccxt"),
    (names_outside_the_allow_list, "hamilton_client/core/bars.py", "from hamilton_client.store import ObjectStore"),
    (names_outside_the_allow_list, "hamilton_client/store.py", "def f():\n    import boto3"),
    (names_outside_the_allow_list, "engine_assets/logic/fit.py", "from sklearn import linear_model"),
    (long_code, "engine_assets/raw.py", "pass\n" * 321),
    (long_code, "engine_assets/raw.py", "def f():\n" + "    pass\n" * 45),
    (missing_docstrings, "engine_assets/raw.py", '"""Raw."""\nclass A:\n    """A."""\n    def f(self): ...'),
    (prints, "engine_assets/raw.py", "def f():\n    print(1)"),
    (environment_reads, "engine_assets/raw.py", "import os\nx = os.environ['HOME']"),
    (environment_reads, "engine_assets/raw.py", "import os\nx = os.environ.get('HOME')"),
    (settings_loads, "engine_assets/raw.py", "from engine_resources import settings\nsettings.load_settings()"),
    (fat_assets, "engine_assets/raw.py", "@dg.asset\ndef raw():\n" + "    pass\n" * 13),
    (fat_assets, "engine_assets/raw.py", "def raw(): ..."),
]


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _, _ in CHECKS), ids=lambda check: check.__name__)
def test_no_source_file_offends(check):
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    assert len(files) > 60
    named = [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in files]
    assert [f"{file} {offence}" for file, tree in named for offence in check(file, tree)] == []


@pytest.mark.parametrize(
    ("check", "file", "source"), CHECKS, ids=[f"{check.__name__}-{number}" for number, (check, _, _) in enumerate(CHECKS)]
)
def test_a_planted_offence_is_found(check, file, source):
    assert len(list(check(file, ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("engine_assets.logic", {"dagster", "ray", "mlflow", "sqlalchemy", "engine_resources"}),
        ("engine_assets.work", {"dagster"}),
        (
            "hamilton_client",
            {"dagster", "ray", "mlflow", "sqlalchemy", "pandas", "scipy", "sklearn", "pyarrow", "lightgbm", "engine_resources"},
        ),
    ],
)
def test_importing_every_module_loads_nothing_unwanted(package, unwanted):
    code = (
        f"import importlib, json, pkgutil, sys, {package} as top\n"
        "names = [each.name for each in pkgutil.walk_packages(top.__path__, top.__name__ + '.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "sys.stdout.write(json.dumps([names, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names, loaded = json.loads(done.stdout)
    assert len(names) > 5
    assert {name.partition(".")[0] for name in loaded} & unwanted == set()


def test_data_flows_downstream(tmp_path):
    from engine_assets.definitions import build_definitions
    from engine_resources.settings import load_settings

    graph = build_definitions(load_settings(environ={"HURACAN_HOME": str(tmp_path)})).resolve_asset_graph()
    place = {key: STAGES.index(graph.get(key).group_name) for key in graph.get_all_asset_keys()}
    assert set(place.values()) == set(range(len(STAGES)))
    assert all(place[parent] <= place[key] for key in place for parent in graph.get(key).parent_keys)
