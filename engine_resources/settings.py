"""The one settings object of the engine: `config/engine.yaml` + `config/policy.yaml` + `HURACAN_…` variables, checked by pydantic."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from hamilton_client.configfile import load_config, section_of
from hamilton_client.core.contracts import Frozen, HuracanError, Market, RiskPresetName
from hamilton_client.core.engines import ENGINES
from hamilton_client.core.features import FeatureRecipe
from hamilton_client.core.layout import timeframe_minutes
from hamilton_client.core.policy import (
    ConsensusPolicy,
    CostPolicy,
    ExitRule,
    Policy,
    RegimeGates,
    RiskPolicy,
    RiskPreset,
)
from hamilton_client.core.recipe import CalibrationParameters, FoldGeometry, ModelParameters, Recipe
from hamilton_client.core.regimes import RegimeRecipe
from hamilton_client.settings import HamiltonSettings

REPOSITORY = Path(__file__).resolve().parent.parent
LEARNED_TIMEFRAMES = tuple(engine.timeframe for engine in ENGINES.values() if engine.timeframe)
PositiveInt = Annotated[int, Field(gt=0)]


def _known_timeframe(timeframe: str) -> str:
    try:
        timeframe_minutes(timeframe)
    except HuracanError as error:
        raise ValueError(str(error)) from None
    return timeframe


Timeframe = Annotated[str, AfterValidator(_known_timeframe)]


class EngineSection(Frozen):
    """Width of the system; `active_coins` throttles what Hamilton watches."""

    max_coins: PositiveInt = 400
    active_coins: PositiveInt = 20
    heartbeat_seconds: PositiveInt = 30


class AccountSection(Frozen):
    """The account that sizes are computed for."""

    nav_usd: Annotated[float, Field(gt=0)] = 100_000.0


class SourceSection(Frozen):
    """Where candles come from; `bundled` is a folder of parquet files with a clock of its own."""

    kind: Literal["bundled"] = "bundled"
    path: str = "data/quickstart"


class TimeframesSection(Frozen):
    """The stored base timeframe, and those that models are trained for."""

    base: Timeframe = "1h"
    train: tuple[Timeframe, ...] = ("1h", "4h", "1d")

    @model_validator(mode="after")
    def _derivable(self) -> "TimeframesSection":
        if self.base not in self.train or len(set(self.train)) < len(self.train):
            raise ValueError(f"train names each timeframe once, the base {self.base} among them: its regime gates every decision")
        base = timeframe_minutes(self.base)
        for timeframe in self.train:
            if timeframe_minutes(timeframe) % base:
                raise ValueError(f"{timeframe} cannot be derived from base {self.base}")
        return self


class RecipeSection(Frozen):
    """The parts of a recipe that differ between recipes; fold geometry and horizons come from `validation`."""

    features: FeatureRecipe
    model: ModelParameters = ModelParameters()
    calibration: CalibrationParameters = CalibrationParameters()
    off_regime_weight: Annotated[float, Field(ge=0, le=1)] = 0.3

    @model_validator(mode="before")
    @classmethod
    def _plain_features(cls, value: Any) -> Any:
        """Let YAML name kinds right below `features`."""
        features = value.get("features") if isinstance(value, dict) else None
        if isinstance(features, dict) and not isinstance(features.get("features"), dict):
            return {**value, "features": {"features": features}}
        return value


class RecipesSection(Frozen):
    """The champion recipe, the challenger recipes, and their definitions."""

    champion: str
    challengers: tuple[str, ...] = ()
    definitions: dict[str, RecipeSection]


class TrainingSection(Frozen):
    """How the night's units are run."""

    mode: Literal["sequential", "parallel", "hybrid"] = "hybrid"
    backend: Literal["ray", "threads"] = "ray"
    max_concurrent: PositiveInt = 12
    num_workers: PositiveInt | None = None
    retry_attempts: Annotated[int, Field(ge=0)] = 3
    timeout_seconds: PositiveInt = 1800
    coins_per_gpu: PositiveInt = 12
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpu_min_rows: PositiveInt = 200_000
    threads_per_fit: Literal[1] = 1
    symbols_allowed: tuple[str, ...] = ()


class WalkForwardSection(Frozen):
    """Fold geometry per timeframe and what a segment needs before it is judged."""

    geometry: dict[Timeframe, FoldGeometry]
    min_windows: PositiveInt = 5
    min_test_trades: PositiveInt = 100


class ValidationSection(Frozen):
    """Walk-forward geometry and label horizons."""

    walk_forward: WalkForwardSection
    horizon_bars: dict[Timeframe, PositiveInt]
    pooled_max_rows: PositiveInt = 200_000


class GatesSection(Frozen):
    """Gates every champion passes; PSR and DSR are probabilities."""

    min_sharpe: float = 1.0
    min_hit_rate: float = 0.50
    max_drawdown_pct: float = 15.0
    min_net_pnl_pct: float = 1.0
    min_sample_size: int = 100
    min_effective_sample: float = 100.0
    min_psr: float = 0.95
    min_dsr: float = 0.95


class PromotionSection(Frozen):
    """When and how a pointer may move."""

    min_duration_days: PositiveInt = 14
    fdr_q: Annotated[float, Field(gt=0, lt=1)] = 0.10


class Settings(Frozen):
    """Everything the engine is told."""

    engine: EngineSection = EngineSection()
    market: Market = Market()
    account: AccountSection = AccountSection()
    source: SourceSection = SourceSection()
    timeframes: TimeframesSection = TimeframesSection()
    recipes: RecipesSection
    regimes: RegimeRecipe
    training: TrainingSection = TrainingSection()
    validation: ValidationSection
    gates: GatesSection = GatesSection()
    promotion: PromotionSection = PromotionSection()
    consensus: ConsensusPolicy
    regime_gates: RegimeGates
    cost_model: CostPolicy
    risk: RiskPolicy = RiskPolicy()
    risk_presets: dict[RiskPresetName, RiskPreset]
    exits: ExitRule = ExitRule()
    home: Path
    database_url: str
    mlflow_url: str
    ray_address: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        for timeframe in self.timeframes.train:
            for name, table in (
                ("validation.walk_forward.geometry", self.validation.walk_forward.geometry),
                ("validation.horizon_bars", self.validation.horizon_bars),
                ("regimes.by_timeframe", self.regimes.by_timeframe),
            ):
                if timeframe not in table:
                    raise ValueError(f"{name}: lacks the trained timeframe {timeframe}")
            if timeframe not in LEARNED_TIMEFRAMES:
                raise ValueError(f"timeframes.train: no learned engine votes for {timeframe}; there are {', '.join(LEARNED_TIMEFRAMES)}")
        recipes = self.recipes
        for role, names in (("champion", (recipes.champion,)), ("challengers", recipes.challengers)):
            for name in names:
                if name not in recipes.definitions:
                    raise ValueError(f"recipes.{role}: recipe {name!r} is not defined; defined: {', '.join(recipes.definitions)}")
        return self

    @property
    def bucket(self) -> Path:
        """The folder that is the bucket of the embedded default."""
        return self.home / "bucket"

    @property
    def source_path(self) -> Path:
        """The candle folder; relative paths are below the repository."""
        return REPOSITORY / self.source.path

    def recipe(self, name: str | None = None) -> Recipe:
        """Compose one recipe (the champion recipe by default)."""
        name = name or self.recipes.champion
        part = self.recipes.definitions[name]
        wanted = self.timeframes.train
        regimes = RegimeRecipe(by_timeframe={timeframe: self.regimes.by_timeframe[timeframe] for timeframe in wanted})
        return Recipe(
            name=name,
            features=part.features,
            regimes=regimes,
            horizon_bars={timeframe: self.validation.horizon_bars[timeframe] for timeframe in wanted},
            folds={timeframe: self.validation.walk_forward.geometry[timeframe] for timeframe in wanted},
            model=part.model,
            calibration=part.calibration,
            off_regime_weight=part.off_regime_weight,
        )

    def policy(self) -> Policy:
        """What is frozen into every bundle."""
        return Policy(
            market=self.market,
            nav_usd=self.account.nav_usd,
            base_timeframe=self.timeframes.base,
            consensus=self.consensus,
            regime_gates=self.regime_gates,
            cost_model=self.cost_model,
            risk=self.risk,
            risk_presets=self.risk_presets,
            exits=self.exits,
        )


def load_settings(config_dir: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration folder and the environment. Raises HuracanError naming file, line and key."""
    folder = config_dir or Path(environ.get("HURACAN_CONFIG", REPOSITORY / "config"))
    home = Path(environ.get("HURACAN_HOME", ".huracan")).expanduser().resolve()
    extra: dict[str, Any] = {
        "home": home,
        "database_url": environ.get("DATABASE_URL", f"sqlite:///{home / 'huracan.db'}"),
        "mlflow_url": environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}"),
        "ray_address": environ.get("RAY_ADDRESS"),
    }
    skipped = {*HamiltonSettings.model_fields} - {*Settings.model_fields} | {"home", "config"}  # one environment serves both programs
    ours = {name: value for name, value in environ.items() if section_of(name) not in skipped}
    return load_config(Settings, [folder / "engine.yaml", folder / "policy.yaml"], ours, extra)
