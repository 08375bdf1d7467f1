import shutil
from pathlib import Path

import pytest

from engine_resources.settings import REPOSITORY, load_settings
from hamilton_client.core.contracts import HuracanError, RiskPresetName


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "config", tmp_path / "config"))


@pytest.fixture
def load(folder):
    """Load the shipped configuration with one text replaced in one file."""

    def load(before="", after="", file="engine.yaml", **environ):
        if before:
            text = (folder / file).read_text()
            assert text.count(before) == 1, f"{before!r} is not unique in {file}"
            (folder / file).write_text(text.replace(before, after))
        return load_settings(environ={"HURACAN_CONFIG": str(folder), "HURACAN_HOME": str(folder.parent / "home"), **environ})

    return load


def line_of(folder: Path, text: str, file: str = "engine.yaml") -> str:
    lines = (folder / file).read_text().splitlines()
    return f"{file}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


def test_the_shipped_configuration_makes_recipe_and_policy(load):
    settings = load()
    recipe, policy = settings.recipe(), settings.policy()
    assert set(recipe.folds) == set(recipe.horizon_bars) == set(recipe.regimes.by_timeframe) == set(settings.timeframes.train)
    assert recipe.name == settings.recipes.champion
    assert recipe.features.names
    assert (policy.base_timeframe, policy.nav_usd, policy.market) == (settings.timeframes.base, settings.account.nav_usd, settings.market)
    assert set(policy.risk_presets) == set(RiskPresetName)
    assert settings.source_path.is_dir()


def test_home_is_where_everything_lies_unless_urls_say_otherwise(load, folder):
    settings, home = load(), (folder.parent / "home").resolve()
    assert (settings.home, settings.bucket, settings.ray_address) == (home, home / "bucket", None)
    assert settings.database_url == f"sqlite:///{home}/huracan.db"
    told = load(DATABASE_URL="postgresql://h/d", MLFLOW_TRACKING_URI="http://m", RAY_ADDRESS="ray://r")
    assert (told.database_url, told.mlflow_url, told.ray_address) == ("postgresql://h/d", "http://m", "ray://r")


def test_the_environment_overrides_both_files(load):
    settings = load(
        HURACAN_TRAINING__MAX_CONCURRENT="4",
        HURACAN_GATES__MIN_SHARPE="1.5",
        HURACAN_TIMEFRAMES__TRAIN="[1h, 4h]",
        HURACAN_VALIDATION__WALK_FORWARD__GEOMETRY__1H__TRAIN_DAYS="99",
        HURACAN_CONSENSUS__ADAPTIVE_THRESHOLDS__TREND="0.7",
        HURACAN_RISK__LIMITS_PCT_OF_NAV__GLOBAL="120",
    )
    assert (settings.training.max_concurrent, settings.gates.min_sharpe, settings.timeframes.train) == (4, 1.5, ("1h", "4h"))
    assert settings.recipe().folds["1h"].train_days == 99
    assert settings.policy().consensus.adaptive_thresholds["TREND"] == 0.7
    assert settings.policy().risk.limits_pct_of_nav.global_ == 120


def test_hamiltons_variables_and_tools_switches_are_left_alone(load):
    assert load(HURACAN_CANDLES__MAX_AGE_BARS="5", HURACAN_BUCKET__URL="/b", HURACAN_JOURNAL__UPLOAD="false", HURACAN_SOAK="1") == load()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("max_concurrent: 12", "max_concurent: 12", "unknown key 'training.max_concurent'; did you mean 'max_concurrent'?"),
        ("\nvalidation:", "\nvalidatoin:", "unknown key 'validatoin'; did you mean 'validation'?"),
        ("num_leaves: 15", "num_leafs: 15", "unknown key 'recipes.definitions.base.model.num_leafs'; did you mean 'num_leaves'?"),
        ("{er_bars: 48,", "{er_barz: 48,", "unknown key 'regimes.by_timeframe.1h.er_barz'; did you mean 'er_bars'?"),
        (
            "{train_days: 120,",
            "{trian_days: 120,",
            "unknown key 'validation.walk_forward.geometry.1h.trian_days'; did you mean 'train_days'?",
        ),
        ("{train_days: 120,", "{train_days: soon,", "validation.walk_forward.geometry.1h.train_days: Input should be a valid integer"),
        ("mode: hybrid", "mode: hybird", "training.mode: Input should be 'sequential', 'parallel' or 'hybrid' (found 'hybird')"),
        ("retry_attempts: 3", "retry_attempts: -1", "training.retry_attempts: Input should be greater than or equal to 0"),
        ("min_dsr: 0.95", "min_dsr: .nan", "gates.min_dsr: must be a finite number"),
        ("champion: base", "champion: bass", "recipes.champion: recipe 'bass' is not defined; defined: base"),
        ("challengers: []", "challengers: [bass]", "recipes.challengers: recipe 'bass' is not defined; defined: base"),
        ("train: [1h, 4h, 1d]", "train: [1h, 4x]", "timeframes.train.1: unknown timeframe '4x'; known: 1m,"),
        ("train: [1h, 4h, 1d]", "train: [1h, 15m]", "timeframes: 15m cannot be derived from base 1h"),
        ("train: [1h, 4h, 1d]", "train: [4h, 1d]", "timeframes: train names each timeframe once, the base 1h among them"),
        ("train: [1h, 4h, 1d]", "train: [1h, 1h]", "timeframes: train names each timeframe once, the base 1h among them"),
        ("15m: 8, 1h: 4", "15x: 8, 1h: 4", "validation.horizon_bars.15x: unknown timeframe '15x'"),
    ],
)
def test_a_fault_names_key_file_and_line(load, folder, before, after, said):
    with pytest.raises(HuracanError) as error:
        load(before, after)
    assert str(error.value).startswith(f"{line_of(folder, after.strip())}: {said}")


def test_an_unknown_feature_kind_names_the_nearest(load):
    with pytest.raises(HuracanError, match=r"^engine\.yaml:\d+: recipes\.definitions\.base\.features: .*'parkinsen'.* 'parkinson'"):
        load("parkinson:", "parkinsen:")


def test_a_fault_in_the_policy_names_its_file(load, folder):
    with pytest.raises(HuracanError) as error:
        load("soft_trades:", "soft_trade:", file="policy.yaml")
    assert (
        str(error.value) == f"{line_of(folder, 'soft_trade:', 'policy.yaml')}: unknown key 'risk.soft_trade'; did you mean 'soft_trades'?"
    )


@pytest.mark.parametrize(
    ("before", "table"),
    [
        ("      4h: {train_days: 180, test_days: 30, purge_days: 2}\n", "validation.walk_forward.geometry"),
        ("4h: 3, ", "validation.horizon_bars"),
        ("    4h: {er_bars: 24,", "regimes.by_timeframe"),
    ],
)
def test_a_trained_timeframe_needs_an_entry_in_every_table(load, folder, before, table):
    with pytest.raises(HuracanError) as error:
        load(before, before.replace("4h", "8h"))
    assert str(error.value) == f"{line_of(folder, table.rpartition('.')[2] + ':')}: {table}: lacks the trained timeframe 4h"


def test_what_a_file_lacks_is_named_and_no_secret_is_shown(load, folder):
    (folder / "policy.yaml").write_text("")
    with pytest.raises(HuracanError) as error:
        load(DATABASE_URL="postgresql://huracan:hunter2@db/huracan")
    assert "engine.yaml + policy.yaml: consensus: Field required" in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("file", ["engine.yaml", "policy.yaml"])
def test_a_missing_file_names_its_path(load, folder, file):
    (folder / file).unlink()
    with pytest.raises(HuracanError) as error:
        load()
    assert str(error.value).startswith(f"{folder / file}: cannot be read")


@pytest.mark.parametrize("key", ["home", "database_url"])
def test_what_the_environment_says_is_refused_in_a_file(load, folder, key):
    with (folder / "engine.yaml").open("a") as file:
        file.write(f"\n{key}: elsewhere\n")
    with pytest.raises(HuracanError, match=rf"^engine\.yaml:\d+: {key} comes from the environment"):
        load()
