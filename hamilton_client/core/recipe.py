"""A recipe: everything that defines how a model is made. Frozen and hashed; the hash is the lineage."""

from typing import Annotated, Any

from pydantic import Field

from hamilton_client.core.contracts import Frozen, Record, content_hash
from hamilton_client.core.features import FeatureRecipe
from hamilton_client.core.layout import timeframe_minutes
from hamilton_client.core.regimes import RegimeRecipe

PositiveInt = Annotated[int, Field(gt=0)]


class FoldGeometry(Frozen):
    """Walk-forward windows in days: train, then a purge gap, then test."""

    train_days: PositiveInt
    test_days: PositiveInt
    purge_days: PositiveInt


class ModelParameters(Frozen):
    """LightGBM parameters of one binary model; `rounds` trees, one thread, always deterministic."""

    rounds: PositiveInt = 60
    learning_rate: float = 0.05
    num_leaves: PositiveInt = 15
    min_data_in_leaf: PositiveInt = 40
    feature_fraction: float = 0.8
    bagging_fraction: float = 0.8
    bagging_freq: int = 1
    lambda_l2: float = 1.0
    max_bin: PositiveInt = 63
    seed: int = 7

    def lightgbm(self, device: str) -> dict[str, Any]:
        """The parameter dictionary LightGBM takes. `device` is `cpu`, `gpu` or `cuda`."""
        values = self.model_dump(exclude={"rounds"})
        fixed = {"objective": "binary", "num_threads": 1, "verbosity": -1, "deterministic": True, "force_row_wise": True}
        return values | fixed | ({} if device == "cpu" else {"device_type": device, "force_row_wise": False})


class CalibrationParameters(Frozen):
    """Knot tables fitted on earlier out-of-fold scores: at most `knots` knots, none before `min_effective_rows`."""

    knots: PositiveInt = 6
    min_effective_rows: PositiveInt = 150
    shrinkage_rows: PositiveInt = 400


class Recipe(Record):
    """How the models of one lineage are made; timeframes are keys of `horizon_bars` and `folds`."""

    name: str
    features: FeatureRecipe
    regimes: RegimeRecipe
    horizon_bars: dict[str, PositiveInt]
    folds: dict[str, FoldGeometry]
    model: ModelParameters = ModelParameters()
    calibration: CalibrationParameters = CalibrationParameters()
    off_regime_weight: Annotated[float, Field(ge=0, le=1)] = 0.3

    @property
    def hash(self) -> str:
        """The lineage id: the name is a label and does not enter."""
        return content_hash(self.model_dump(mode="json", exclude={"name"}))

    def warmup_bars(self, timeframe: str) -> int:
        """Bars before a row that its features and regime may look at."""
        return max(self.features.warmup_bars, self.regimes.by_timeframe[timeframe].warmup_bars)

    def horizon_base_bars(self, timeframe: str, base_timeframe: str) -> int:
        """Label horizon of `timeframe` counted in bars of the base timeframe."""
        return self.horizon_bars[timeframe] * timeframe_minutes(timeframe) // timeframe_minutes(base_timeframe)
