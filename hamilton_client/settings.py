"""How the operator runs this box: `config/hamilton.yaml` and `HURACAN_…` variables, checked into one frozen object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hamilton_client.configfile import ENV_PREFIX, NESTING, load_config
from hamilton_client.core.contracts import Frozen, RiskPresetName

FILE_NAME = "hamilton.yaml"


class BucketSection(Frozen):
    """Where bundles and candles are read; None is the folder below the home."""

    url: str | None = None


class RiskSection(Frozen):
    """The operator's appetite; None leaves the preset that the bundle names."""

    preset: RiskPresetName | None = None


class AccountSection(Frozen):
    """The account that sizes are computed for; None leaves the bundle's."""

    nav_usd: Annotated[float, Field(gt=0)] | None = None


class CandlesSection(Frozen):
    """How many base bars the newest closed candle may lag behind the instant that is decided for."""

    max_age_bars: Annotated[int, Field(ge=1)] = 3


class JournalSection(Frozen):
    """Whether journalled decisions also go into the bucket."""

    upload: bool = True


class HamiltonSettings(Frozen):
    """Everything the client is told; `home` holds its journal and the generations it has seen."""

    home: Path
    bucket: BucketSection = BucketSection()
    risk: RiskSection = RiskSection()
    account: AccountSection = AccountSection()
    candles: CandlesSection = CandlesSection()
    journal: JournalSection = JournalSection()

    @property
    def bucket_url(self) -> str:
        """Where the bucket is."""
        return self.bucket.url or str(self.home / "bucket")

    @property
    def state(self) -> Path:
        """The client's own folder: it survives a wiped bucket."""
        return self.home / "hamilton"


def load_settings(environ: Mapping[str, str], *, home: Path | None = None, preset: str | None = None) -> HamiltonSettings:
    """Read `$HURACAN_CONFIG/hamilton.yaml` (or `config/hamilton.yaml` here, where there is one) and the environment.

    `home` and `preset` are what the command line said and win. Raises HuracanError naming file, line and key.
    """
    folder = environ.get("HURACAN_CONFIG")
    file = Path(folder or "config") / FILE_NAME
    home = (home or Path(environ.get("HURACAN_HOME", ".huracan"))).expanduser().absolute()
    sections = set(HamiltonSettings.model_fields) - {"home"}
    ours = {name: value for name, value in environ.items() if name.removeprefix(ENV_PREFIX).lower().split(NESTING)[0] in sections}
    if preset is not None:
        ours[f"{ENV_PREFIX}RISK{NESTING}PRESET"] = preset
    return load_config(HamiltonSettings, [file] if folder or file.exists() else [], ours, {"home": home})
