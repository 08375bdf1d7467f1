"""The model registry people browse: one MLflow registered model per coin, one version per night, its bundle inside.

A projection of the champion table, never the authority. Written through the low-level client, because `log_model` would load every
model in a subprocess to guess its requirements (4.2 s instead of 0.1 s).
"""

import json
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version as installed
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from engine_resources.tables import database_url, open_engine
from hamilton_client.bundle import MODEL, verify
from hamilton_client.core.contracts import HuracanError
from hamilton_client.core.layout import check_symbol

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHALLENGER, CHAMPION = "challenger", "champion"
SHA_TAG = "bundle_sha256"
MODEL_CODE = Path(__file__).with_name("bundle_model.py")
TEMPLATE_FILES = (MODEL_CODE.name, "requirements.txt", "python_env.yaml", "conda.yaml")
REQUIREMENTS = ("huracan", "mlflow", "lightgbm", "numpy", "pandas")
PAGE = 1000
ABOUT = (
    "Versions are bundles of this coin's segment models (timeframe × regime), with calibrations, costs and policy: every night's, and "
    "every champion. `challenger` is the newest, `champion` the one in force. The champion table decides; this page follows it."
)


@dataclass(frozen=True, slots=True)
class BundleVersion:
    """One night's bundle of one coin, as it is registered.

    `files` are the bundle's, `sha256.txt` included, and `sha256` is that of `sha256.txt`. `metrics` are keyed `1h.TREND.sharpe`
    (None and NaN are left out), `plots` by file name (`equity.png`). `tags`: run, recipe_hash, data_hash, code_version, kind.
    """

    symbol: str
    run_id: str
    files: Mapping[str, bytes]
    sha256: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    plots: Mapping[str, bytes] = field(default_factory=dict)
    description: str = ""


def load_mlflow() -> ModuleType:
    """Import MLflow with its telemetry off: the one place that does, since the switch counts only before the first import."""
    for switch, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(switch, value)
    import mlflow

    return mlflow


class Registry:
    """MLflow at `tracking_uri`; a new experiment keeps its artifacts below `artifact_root` (a folder or `s3://…`).

    One process writes at a time. A database URL needs no server.
    """

    def __init__(self, tracking_uri: str, artifact_root: str, *, experiment: str = "huracan") -> None:
        uri = tracking_uri if tracking_uri.startswith(("http://", "https://")) else _prepare_database(tracking_uri)
        self._mlflow = load_mlflow()
        self._uri = uri
        self._client = self._mlflow.MlflowClient(uri, uri)
        self._experiment = self._find_experiment(experiment, artifact_root)
        self._named: set[str] = set()

    def register(self, bundle: BundleVersion) -> str:
        """Register one night's bundle of one coin, alias it `challenger`, and return its version.

        A bundle that is registered already is not doubled: its version is returned. Nothing but the last two calls is visible to
        readers, so a kill leaves an unfinished run behind, never half a version. Raises BadBundle when the files do not match.
        """
        check_symbol(bundle.symbol)
        verify(bundle.files, bundle.sha256)
        self._mlflow.set_tracking_uri(self._uri)  # a version's source `models:/m-…` is looked up there, whatever the client's own URI
        known = self._find(bundle.symbol, bundle.sha256)
        if known is not None:
            if str(known.version) == self._newest(bundle.symbol):
                self._client.set_registered_model_alias(bundle.symbol, CHALLENGER, known.version)
            return str(known.version)
        tags = {**bundle.tags, "symbol": bundle.symbol, SHA_TAG: bundle.sha256}
        run_id, model_id = self._log(bundle, tags)
        self._name(bundle.symbol)
        made = self._client.create_model_version(
            bundle.symbol,
            f"models:/{model_id}",
            run_id,
            tags,
            description=bundle.description or None,
            await_creation_for=0,
        )
        self._client.set_registered_model_alias(bundle.symbol, CHALLENGER, made.version)
        return str(made.version)

    def set_champion(self, symbol: str, version_or_sha256: str) -> str:
        """Point the alias `champion` of `symbol` at a version, or at the version of a bundle; return the version.

        Raises HuracanError when no version holds that bundle.
        """
        version = version_or_sha256
        if len(version) == 64:
            found = self._find(symbol, version_or_sha256)
            if found is None:
                raise HuracanError(
                    f"{symbol}: no registered version holds bundle {version_or_sha256[:12]}…; register it first (huracan reconcile)"
                )
            version = str(found.version)
        self._client.set_registered_model_alias(symbol, CHAMPION, version)
        return version

    def project(self, symbol: str, bundle_sha256: str) -> bool:
        """Make the alias `champion` follow the champion table: True when it had to move. Raises as `set_champion` does."""
        found = self._find(symbol, bundle_sha256)
        if found is not None and str(self._client.get_registered_model(symbol).aliases.get(CHAMPION)) == str(found.version):
            return False
        self.set_champion(symbol, bundle_sha256)
        return True

    def aliases(self) -> dict[str, dict[str, str]]:
        """Every coin's aliases and the versions they point at, in one query per thousand coins."""
        found: dict[str, dict[str, str]] = {}
        token: str | None = None
        while True:
            page = self._client.search_registered_models(max_results=PAGE, page_token=token)
            found |= {model.name: {alias: str(version) for alias, version in model.aliases.items()} for model in page}
            token = page.token
            if not token:
                return found

    def close_abandoned(self) -> int:
        """Mark as killed what registrations that died left behind, and return how many runs that were; call it as the only writer."""
        runs = self._client.search_runs([self._experiment], "attributes.status = 'RUNNING'", max_results=PAGE)
        for run in runs:
            for model in self._client.search_logged_models([self._experiment], f"source_run_id = '{run.info.run_id}'"):
                self._client.delete_logged_model(model.model_id)
            self._client.set_terminated(run.info.run_id, "KILLED")
        return len(runs)

    def _log(self, bundle: BundleVersion, tags: Mapping[str, str]) -> tuple[str, str]:
        """Write run, metrics, model and artifacts; return run id and model id. Readers of the registry see none of it yet."""
        entities = self._mlflow.entities
        now_ms = time.time_ns() // 1_000_000
        noted = {**tags, "mlflow.note.content": bundle.description}  # what the run's page shows as its description
        run = self._client.create_run(self._experiment, now_ms, noted, f"{bundle.symbol} {bundle.run_id}").info
        model = self._client.create_logged_model(self._experiment, bundle.symbol, run.run_id, {SHA_TAG: bundle.sha256})
        run_id, model_id = str(run.run_id), str(model.model_id)
        self._client.log_batch(
            run_id,
            metrics=[
                entities.Metric(key, value, now_ms, 0, model_id=model_id)
                for key, value in bundle.metrics.items()
                if value is not None and isfinite(value)
            ],
            params=[entities.Param(key, str(value)) for key, value in bundle.params.items()],
        )
        files = self._model_files(bundle, run_id, model_id)
        _upload(model.artifact_location, files, lambda folder: self._client.log_model_artifacts(model_id, folder))
        plots = {f"plots/{name}": body for name, body in bundle.plots.items()}
        _upload(run.artifact_uri, plots, lambda folder: self._client.log_artifacts(run_id, folder))
        self._client.log_outputs(run_id, [entities.LoggedModelOutput(model_id, 0)])
        self._client.finalize_logged_model(model_id, "READY")
        self._client.set_terminated(run_id)
        return run_id, model_id

    def _model_files(self, bundle: BundleVersion, run_id: str, model_id: str) -> dict[str, bytes]:
        """The model folder as MLflow itself would write it, by cloning the template's MLmodel (JSON is YAML)."""
        card, files = self._template
        flavor = card["flavors"]["python_function"] | {
            "artifacts": {"bundle": {"path": "artifacts/bundle", "uri": "artifacts/bundle"}},
            "config": {SHA_TAG: bundle.sha256},
            "model_code_path": MODEL_CODE.name,
        }
        card = card | {
            "flavors": {"python_function": flavor},
            "signature": _signature(self._mlflow, bundle.files).to_dict(),
            "artifact_path": f"models:/{model_id}",
            "model_id": model_id,
            "model_size_bytes": sum(map(len, bundle.files.values())),
            "model_uuid": uuid.uuid4().hex,
            "run_id": run_id,
            "utc_time_created": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}",
        }
        inside = {f"artifacts/bundle/{name}": body for name, body in bundle.files.items()}
        return {"MLmodel": json.dumps(card, indent=1).encode(), **files, **inside}

    @cached_property
    def _template(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """MLmodel and environment files of an empty bundle, saved once per process by MLflow itself."""
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example was not provided.*")
            empty, saved = Path(scratch, "bundle"), Path(scratch, "model")
            empty.mkdir()
            self._mlflow.pyfunc.save_model(
                saved,
                python_model=str(MODEL_CODE),
                artifacts={"bundle": str(empty)},
                signature=_signature(self._mlflow, {}),
                pip_requirements=[f"{name}=={installed(name)}" for name in REQUIREMENTS],
            )
            return yaml.safe_load((saved / "MLmodel").read_text()), {name: (saved / name).read_bytes() for name in TEMPLATE_FILES}

    def _find_experiment(self, name: str, artifact_root: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            root = artifact_root if "://" in artifact_root else Path(artifact_root).resolve().as_uri()
            return str(self._client.create_experiment(name, f"{root}/{name}"))
        return str(found.experiment_id)

    def _find(self, symbol: str, sha256: str) -> "ModelVersion | None":
        found = self._client.search_model_versions(f"name = '{check_symbol(symbol)}' and tags.{SHA_TAG} = '{sha256}'", max_results=1)
        return found[0] if found else None

    def _newest(self, symbol: str) -> str:
        found = self._client.search_model_versions(f"name = '{symbol}'", max_results=1, order_by=["version_number DESC"])
        return str(found[0].version)

    def _name(self, symbol: str) -> None:
        """Create the coin's registered model unless it exists."""
        if symbol in self._named:
            return
        try:
            self._client.create_registered_model(symbol, description=ABOUT)
        except self._mlflow.MlflowException as refusal:
            if refusal.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._named.add(symbol)


def _prepare_database(url: str) -> str:
    """Make the folder of an SQLite store and switch it to WAL, so that the UI can read while the night writes; return MLflow's URL."""
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = open_engine(url)
        engine.connect().close()
        engine.dispose()
    return parsed.render_as_string(hide_password=False)


def _signature(mlflow: ModuleType, files: Mapping[str, bytes]) -> "ModelSignature":
    """Features in, probability and edge out, `segment` as parameter; a feature that not every model reads is optional."""
    types = mlflow.types
    features = {name.removesuffix(f"/{MODEL}"): _feature_names(body) for name, body in sorted(files.items()) if name.endswith(f"/{MODEL}")}
    names = dict.fromkeys(name for of_one in features.values() for name in of_one)
    inputs = [types.ColSpec("double", name, required=all(name in of_one for of_one in features.values())) for name in names]
    outputs = [types.ColSpec("double", name) for name in ("probability", "edge_bps")]
    segment = types.ParamSpec("segment", "string", next(iter(features), "none"))
    signature: ModelSignature = mlflow.models.ModelSignature(
        types.Schema(inputs) if inputs else None, types.Schema(outputs), types.ParamSchema([segment])
    )
    return signature


def _feature_names(model: bytes) -> list[str]:
    """Read the feature names out of a LightGBM text model without parsing the rest."""
    start = model.index(b"feature_names=") + len(b"feature_names=")
    return model[start : model.index(b"\n", start)].decode().split(" ")


def _upload(location: str, files: Mapping[str, bytes], upload: Callable[[str], None]) -> None:
    """Put files at an artifact location: straight into a local folder (half the cost of copying them there), else through MLflow."""
    if location.startswith("file:"):
        _write(Path(url2pathname(urlsplit(location).path)), files)
    elif files:
        with tempfile.TemporaryDirectory() as scratch:
            _write(Path(scratch), files)
            upload(scratch)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for parent in {(folder / name).parent for name in files}:
        parent.mkdir(parents=True, exist_ok=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
