"""The registry on a real MLflow store: what is registered loads and predicts in another process, once per bundle."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from engine_resources.registry import BundleVersion, Registry
from hamilton_client.bundle import BadBundle, pack
from hamilton_client.core.contracts import Calibration, CalibrationTable, HuracanError

ROOT = Path(__file__).parents[2]
FEATURES = ("ret_1", "rsi_14", "atr_14")
CALIBRATION = Calibration(
    edge_bps=CalibrationTable(scores=(0.0, 0.5, 1.0), values=(-20.0, 0.0, 30.0)),
    probability=CalibrationTable(scores=(0.0, 1.0), values=(0.1, 0.9)),
    rows=500,
)


def booster(seed, features=FEATURES):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, len(features)))
    y = (x[:, 0] + rng.normal(size=400) > 0).astype(float)
    data = lgb.Dataset(x, y, feature_name=list(features))
    return lgb.train({"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbosity": -1, "seed": seed}, data, 10)


@pytest.fixture(scope="module")
def models():
    return {"1h.TREND": booster(1), "1h.RANGE": booster(2), "1d.TREND": booster(3, FEATURES[:2])}


@pytest.fixture(scope="module")
def packed(models):
    files = {"bundle.json": b"{}"}
    for segment, model in models.items():
        files |= {f"{segment}/model.txt": model.model_to_string().encode(), f"{segment}/calibration.json": CALIBRATION.to_bytes()}
    return pack(files)


def version(packed, symbol="BTCUSDT", **changes):
    base = {
        "run_id": "run_20230701_020000",
        "metrics": {"1h.TREND.sharpe": 1.2, "1h.RANGE.sharpe": None, "1d.TREND.sharpe": float("nan")},
        "params": {"num_leaves": "7"},
        "tags": {"run": "run_20230701_020000", "kind": "refresh", "recipe_hash": "ab", "data_hash": "cd", "code_version": "0.1.0"},
        "plots": {f"{symbol}.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"},
        "description": "one night",
    }
    return BundleVersion(symbol=symbol, files=packed.files, sha256=packed.sha256, **(base | changes))


def another(packed, mark):
    return pack({name: body for name, body in packed.files.items() if name != "sha256.txt"} | {"mark.json": mark})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def registry(home):
    return Registry(f"sqlite:///{home}/store/mlflow.db", str(home / "artifacts"))


@pytest.fixture(scope="module")
def registered(registry, packed):
    return registry.register(version(packed))


LOAD = """
import json, sys
from engine_resources.registry import load_mlflow
mlflow = load_mlflow()
import pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/BTCUSDT@challenger")
frame = pd.DataFrame(json.loads(sys.argv[2]))
answers = {}
for segment in json.loads(sys.argv[3]):
    try:
        answers[segment] = model.predict(frame, params={"segment": segment}).to_dict("list")
    except Exception as fault:
        answers[segment] = str(fault)
print(json.dumps(answers))
"""


def test_a_fresh_process_loads_by_alias_and_predicts(home, registered, models):
    x = np.random.default_rng(9).normal(size=(5, len(FEATURES)))
    columns = json.dumps({name: list(x[:, i]) for i, name in reversed(list(enumerate(FEATURES)))})
    store = f"sqlite:///{home}/store/mlflow.db"
    asked = json.dumps(["1h.TREND", "1d.TREND", "4h.PANIC"])
    done = subprocess.run([sys.executable, "-c", LOAD, store, columns, asked], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    for segment, width in (("1h.TREND", 3), ("1d.TREND", 2)):
        score = models[segment].predict(x[:, :width])
        np.testing.assert_array_equal(answers[segment]["probability"], CALIBRATION.probability(score))
        np.testing.assert_array_equal(answers[segment]["edge_bps"], CALIBRATION.edge_bps(score))
    assert "no model for segment '4h.PANIC'; segments with a model: 1d.TREND, 1h.RANGE, 1h.TREND" in answers["4h.PANIC"]


def test_a_version_says_what_it_is(registry, registered, packed):
    found = registry._client.get_model_version_by_alias("BTCUSDT", "challenger")
    assert str(found.version) == registered
    assert found.tags["bundle_sha256"] == packed.sha256
    assert {"run", "kind", "recipe_hash", "data_hash", "code_version"} <= set(found.tags)
    run = registry._client.get_run(found.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "BTCUSDT run_20230701_020000")
    assert run.data.metrics == {"1h.TREND.sharpe": 1.2}
    assert run.data.params == {"num_leaves": "7"}
    assert [item.path for item in registry._client.list_artifacts(found.run_id, "plots")] == ["plots/BTCUSDT.svg"]
    logged = registry._client.get_logged_model(found.source.removeprefix("models:/"))
    assert logged.status == "READY"
    assert {metric.key: metric.value for metric in logged.metrics} == {"1h.TREND.sharpe": 1.2}


def test_the_stored_model_is_relative_and_asks_for_named_versions(registry, registered):
    found = registry._client.get_model_version_by_alias("BTCUSDT", "challenger")
    folder = Path(registry._mlflow.artifacts.download_artifacts(found.source))
    info = registry._mlflow.models.get_model_info(str(folder))
    assert info.flavors["python_function"]["model_code_path"] == "bundle_model.py"
    assert str(ROOT) not in (folder / "MLmodel").read_text()
    required = {column.name: column.required for column in info.signature.inputs}
    assert required == {"ret_1": True, "rsi_14": True, "atr_14": False}
    assert [param.name for param in info.signature.params] == ["segment"]
    assert "lightgbm==" in (folder / "requirements.txt").read_text()


def test_a_changed_model_byte_never_reaches_lightgbm(registry, registered):
    found = registry._client.get_model_version_by_alias("BTCUSDT", "challenger")
    folder = Path(registry._mlflow.artifacts.download_artifacts(found.source))
    text = folder / "artifacts/bundle/1h.TREND/model.txt"
    whole = text.read_bytes()
    text.write_bytes(whole.replace(b"num_leaves=7", b"num_leaves=9", 1))
    try:
        with pytest.raises(BadBundle, match=r"1h\.TREND/model\.txt: its bytes were changed"):
            registry._mlflow.pyfunc.load_model(str(folder))
    finally:
        text.write_bytes(whole)


def test_registering_again_doubles_nothing(registry, registered, packed, home):
    assert registry.register(version(packed)) == registered
    again = Registry(f"sqlite:///{home}/store/mlflow.db", str(home / "artifacts"))
    assert again.register(version(packed)) == registered
    assert len(registry._client.search_model_versions("name = 'BTCUSDT'")) == 1


def test_a_killed_registration_is_finished_by_the_next(registry, packed, monkeypatch):
    bundle = version(packed, "ETHUSDT")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    for step in ("finalize_logged_model", "create_model_version", "set_registered_model_alias"):
        with monkeypatch.context() as patch:
            patch.setattr(registry._client, step, killed)
            with pytest.raises(KeyboardInterrupt):
                registry.register(bundle)
        assert registry.aliases().get("ETHUSDT", {}) == {}
    assert registry.register(bundle) == "1"
    assert registry.aliases()["ETHUSDT"] == {"challenger": "1"}
    assert (registry.close_abandoned(), registry.close_abandoned()) == (1, 0)
    runs = registry._client.search_runs([registry._experiment], "tags.symbol = 'ETHUSDT'")
    assert sorted(run.info.status for run in runs) == ["FINISHED", "FINISHED", "KILLED"]


def test_champion_follows_the_table(registry, packed):
    nights = [another(packed, mark) for mark in (b"1", b"2")]
    assert [registry.register(version(night, "SOLUSDT")) for night in nights] == ["1", "2"]
    assert registry.set_champion("SOLUSDT", "2") == "2"
    assert registry.set_champion("SOLUSDT", nights[0].sha256) == "1"
    assert not registry.project("SOLUSDT", nights[0].sha256)
    assert registry.project("SOLUSDT", nights[1].sha256)
    assert registry.aliases()["SOLUSDT"] == {"challenger": "2", "champion": "2"}
    assert registry.register(version(nights[0], "SOLUSDT")) == "1"
    assert registry.aliases()["SOLUSDT"]["challenger"] == "2", "an old night must not become the newest"
    with pytest.raises(HuracanError, match="register it first"):
        registry.project("SOLUSDT", hashlib.sha256(b"unknown").hexdigest())


def test_a_rules_only_bundle_registers_and_says_so(registry):
    rules_only = pack({"bundle.json": b"{}"})
    number = registry.register(version(rules_only, "XRPUSDT", metrics={}, params={}, plots={}))
    model = registry._mlflow.pyfunc.load_model(f"models:/XRPUSDT/{number}")
    with pytest.raises(HuracanError, match="rules-only"):
        model.unwrap_python_model().predict(None, None, {"segment": "1h.TREND"})


def test_files_that_do_not_match_their_hash_are_not_registered(registry, packed):
    edited = BundleVersion(symbol="ADAUSDT", run_id="r", files={**packed.files, "bundle.json": b"[]"}, sha256=packed.sha256)
    with pytest.raises(BadBundle, match=r"bundle\.json: its bytes were changed"):
        registry.register(edited)
    assert "ADAUSDT" not in registry.aliases()


def test_a_store_that_is_no_file_uri_is_written_through_mlflow(registry, packed, home):
    registry._client.create_experiment("plain", str(home / "plain"))
    other = Registry(f"sqlite:///{home}/store/mlflow.db", "unused", experiment="plain")
    number = other.register(version(packed, "DOTUSDT"))
    model = other._mlflow.pyfunc.load_model(f"models:/DOTUSDT/{number}")
    assert set(model.unwrap_python_model().models) == {"1h.TREND", "1h.RANGE", "1d.TREND"}
    run = other._client.get_model_version("DOTUSDT", number).run_id
    assert [item.path for item in other._client.list_artifacts(run, "plots")] == ["plots/DOTUSDT.svg"]
