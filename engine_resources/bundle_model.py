"""The models-from-code pyfunc that MLflow keeps beside every bundle: `load_model("models:/BTCUSDT@champion")` for notebooks and people.

Hamilton never loads this way: whoever can write the artifact store could run code in the process that loads.
"""

from pathlib import Path
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # ships no types
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from hamilton_client.bundle import CALIBRATION, MODEL, verify
from hamilton_client.core.contracts import Calibration, HuracanError


class BundleModel(PythonModel):
    """One night's bundle of one coin: a booster and a calibration per segment."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read and verify the bundle folder; LightGBM sees no byte before. Raises BadBundle naming the file that was changed."""
        folder = Path(context.artifacts["bundle"])
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        verify(files, context.model_config["bundle_sha256"])
        self.models = {
            name.removesuffix(f"/{MODEL}"): lgb.Booster(model_str=body.decode())
            for name, body in sorted(files.items())
            if name.endswith(f"/{MODEL}")
        }
        self.calibrations = {segment: Calibration.from_bytes(files[f"{segment}/{CALIBRATION}"]) for segment in self.models}

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score feature rows with the segment `params["segment"]` (`1h.TREND`).

        Returns a row each: `probability` that the price rises over the horizon, and `edge_bps` of a long entry before costs.
        Raises HuracanError when the bundle holds no model for that segment.
        """
        segment = (params or {}).get("segment", "")
        if segment not in self.models:
            held = ", ".join(self.models) or "none: this bundle is rules-only"
            raise HuracanError(f"no model for segment {segment!r}; segments with a model: {held}")
        model, calibration = self.models[segment], self.calibrations[segment]
        rows = model_input[model.feature_name()].to_numpy(np.float64)
        score = np.asarray(model.predict(rows, num_threads=1), np.float64)
        columns = {"probability": calibration.probability(score), "edge_bps": calibration.edge_bps(score)}
        return pd.DataFrame(columns, index=model_input.index)


mlflow.models.set_model(BundleModel())
