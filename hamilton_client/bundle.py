"""The bundle format: one folder in the bucket that holds everything a coin is decided with.

Nothing is ever unpickled, and LightGBM sees no byte before its size and sha256 were checked: a broken text model aborts the process.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import polars as pl
from pydantic import AwareDatetime, ValidationError

from hamilton_client.core import layout
from hamilton_client.core.combine import Combiner
from hamilton_client.core.contracts import (
    Calibration,
    ChampionPointer,
    CostSnapshot,
    FloatArray,
    HuracanError,
    Market,
    Record,
    Regime,
    SegmentMetrics,
    SegmentPointer,
    SignArray,
)
from hamilton_client.core.features import FeatureRecipe
from hamilton_client.core.policy import Policy
from hamilton_client.core.regimes import REGIME_CODES, RegimeRecipe
from hamilton_client.core.signals import Scorer
from hamilton_client.golden import golden_tail, replay
from hamilton_client.store import NotFound, ObjectStore

if TYPE_CHECKING:
    import lightgbm as lgb

CARD, FEATURES, REGIMES = "bundle.json", "feature_recipe.json", "regime.json"
COMBINER, COSTS, POLICY = "combiner.json", "costs.json", "policy.json"
MODEL, CONFIG, METRICS, CALIBRATION = "model.txt", "config.json", "metrics.json", "calibration.json"
SUMS = "sha256.txt"
SUM_LINE = re.compile(r"([0-9a-f]{64})  (\d+)  ([A-Za-z0-9][A-Za-z0-9_.-]*(?:/[A-Za-z0-9][A-Za-z0-9_.-]*)?)")
RecordT = TypeVar("RecordT", bound=Record)


class BadBundle(HuracanError):  # noqa: N818  (it names what was met, as NotFound does)
    """A bundle or pointer that must not be used; the message names the file."""


class SegmentCard(SegmentPointer):
    """One timeframe × regime inside a bundle; `horizon_bars` counts bars of its own timeframe."""

    horizon_bars: int


class BundleCard(Record):
    """`bundle.json`: what this bundle is. `recipe` and `lineage` name the champion recipe; each segment carries its own lineage."""

    symbol: str
    model_id: str
    as_of: AwareDatetime
    run_id: str
    market: Market
    recipe: str
    lineage: str
    segments: dict[str, SegmentCard]
    synthetic: bool = False


@dataclass(frozen=True, slots=True)
class SegmentFiles:
    """The four files of a segment that has a model, as they are stored."""

    model: bytes
    config: bytes
    metrics: bytes
    calibration: bytes

    @classmethod
    def of(cls, files: Mapping[str, bytes], segment: str) -> Self:
        """Take a segment out of another bundle's verified files. Raises KeyError where it has no model there."""
        return cls(*(files[f"{segment}/{name}"] for name in (MODEL, CONFIG, METRICS, CALIBRATION)))

    def named(self, segment: str) -> dict[str, bytes]:
        """File name inside the bundle → bytes."""
        values = {MODEL: self.model, CONFIG: self.config, METRICS: self.metrics, CALIBRATION: self.calibration}
        return {f"{segment}/{name}": body for name, body in values.items()}


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """Files ready to be written; `sha256` is that of `sha256.txt`, `size` the bytes of all files together."""

    files: Mapping[str, bytes]
    sha256: str
    size: int


def compose(
    card: BundleCard,
    *,
    features: FeatureRecipe,
    regimes: RegimeRecipe,
    combiner: Combiner,
    costs: CostSnapshot,
    policy: Policy,
    segments: Mapping[str, SegmentFiles],
    candles: Mapping[str, pl.DataFrame],
) -> PackedBundle:
    """Put a bundle together, its golden tails included: `candles` maps timeframe → the closed bars the engine has, the more the better.

    Raises HuracanError where card, segment files and candles do not name the same things.
    """
    carded = {segment for segment, entry in card.segments.items() if entry.model_id}
    if carded != set(segments) or not _timeframes(segments) <= set(candles):
        there = f"files for {sorted(segments)}, candles for {sorted(candles)}"
        raise HuracanError(f"bundle {card.model_id}: its card names models for {sorted(carded)}, there are {there}")
    records: dict[str, Record] = {CARD: card, REGIMES: regimes, COMBINER: combiner, COSTS: costs, POLICY: policy}
    files = {name: record.to_bytes() for name, record in records.items()} | {FEATURES: _feature_file(features, regimes)}
    for segment, parts in segments.items():
        files |= parts.named(segment)
    score = scorer(_boosters({segment: parts.model for segment, parts in segments.items()}))
    golden = {timeframe: golden_tail(candles[timeframe], timeframe, features, regimes, score) for timeframe in _timeframes(segments)}
    return pack(files | {_golden_name(timeframe): body for timeframe, body in golden.items()})


def _timeframes(segments: Iterable[str]) -> set[str]:
    return {segment.partition(".")[0] for segment in segments}


def _golden_name(timeframe: str) -> str:
    return f"golden/{timeframe}.parquet"


def _boosters(texts: Mapping[str, bytes]) -> dict[str, "lgb.Booster"]:
    """Parse models whose bytes are known to be whole."""
    if not texts:
        return {}
    import lightgbm as lgb  # 1 s: only who predicts pays for it

    try:
        return {segment: lgb.Booster(model_str=text.decode()) for segment, text in texts.items()}
    except (lgb.basic.LightGBMError, UnicodeDecodeError) as fault:
        raise BadBundle(f"a {MODEL} of {', '.join(texts)} is no LightGBM text: {fault}") from None


def scorer(models: Mapping[str, "lgb.Booster"]) -> Scorer:
    """Score rows each by the model of their own regime, as `core.signals` asks for; NaN where the segment has none."""

    def score(timeframe: str, x: FloatArray, state: SignArray) -> FloatArray:
        scores = np.full(len(x), np.nan)
        for code in np.unique(state):
            model = models.get(layout.segment(timeframe, REGIME_CODES[code]))
            if model is not None:
                scores[state == code] = model.predict(x[state == code], num_threads=1)
        return scores

    return score


def _feature_file(features: FeatureRecipe, regimes: RegimeRecipe) -> bytes:
    warmup = {timeframe: max(features.warmup_bars, params.warmup_bars) for timeframe, params in regimes.by_timeframe.items()}
    readable = {"names": features.names, "warmup_bars": warmup, "hash": features.hash}
    return json.dumps(features.model_dump(mode="json") | readable, sort_keys=True, indent=1).encode()


def pack(files: Mapping[str, bytes]) -> PackedBundle:
    """Add `sha256.txt`: a line `<sha256>  <size>  <name>` per file, sorted by name."""
    lines = [f"{hashlib.sha256(body).hexdigest()}  {len(body)}  {name}\n" for name, body in sorted(files.items())]
    sums = "".join(lines).encode()
    return PackedBundle({**files, SUMS: sums}, hashlib.sha256(sums).hexdigest(), len(sums) + sum(map(len, files.values())))


def write_bundle(store: ObjectStore, path: str, packed: PackedBundle) -> None:
    """Write every file below `path`, `sha256.txt` last: a bundle without it is not finished."""
    for name, body in packed.files.items():
        if name != SUMS:
            store.put(f"{path}/{name}", body)
    store.put(f"{path}/{SUMS}", packed.files[SUMS])


def verify(files: Mapping[str, bytes], sha256: str, size: int | None = None) -> None:
    """Check every byte of a bundle in memory against `sha256` of its `sha256.txt`. Raises BadBundle naming the file."""
    listed = _listed(files.get(SUMS, b""), sha256)
    total = len(files[SUMS]) + sum(length for _, length in listed.values())
    if size is not None and total != size:
        raise BadBundle(f"{SUMS}: lists {total} bytes where the pointer promises {size}")
    for name, (digest, length) in listed.items():
        if name not in files:
            raise BadBundle(f"{name}: is missing")
        if len(files[name]) != length:
            raise BadBundle(f"{name}: has {len(files[name])} bytes, {length} were written (truncated or edited)")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise BadBundle(f"{name}: its bytes were changed (sha256 differs)")
    if extra := set(files) - set(listed) - {SUMS}:
        raise BadBundle(f"{sorted(extra)[0]}: is not listed in {SUMS}")


def _listed(sums: bytes, sha256: str) -> dict[str, tuple[str, int]]:
    if hashlib.sha256(sums).hexdigest() != sha256:
        raise BadBundle(f"{SUMS}: is not the one the pointer names (sha256 {sha256[:12]}… expected)")
    matches = [SUM_LINE.fullmatch(line) for line in sums.decode("ascii", "replace").splitlines()]
    if not matches or not all(matches):
        raise BadBundle(f"{SUMS}: line {matches.index(None) + 1 if matches else 1} cannot be read")
    return {match[3]: (match[1], int(match[2])) for match in matches if match}


def fetch(store: ObjectStore, path: str, sha256: str, size: int | None = None) -> dict[str, bytes]:
    """Read all files of a bundle and verify every byte. Raises BadBundle naming bundle and file."""
    try:
        files = {SUMS: store.get(f"{path}/{SUMS}")}
        files |= {name: store.get(f"{path}/{name}") for name in _listed(files[SUMS], sha256)}
        verify(files, sha256, size)
    except NotFound as fault:
        raise BadBundle(f"bundle {path} is refused: a file is missing ({fault})") from None
    except BadBundle as fault:
        raise BadBundle(f"bundle {path} is refused: {fault}") from None
    return files


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle, parsed; `models`, `calibrations` and `metrics` are keyed by segment (`1h.TREND`)."""

    path: str
    card: BundleCard
    features: FeatureRecipe
    regimes: RegimeRecipe
    combiner: Combiner
    costs: CostSnapshot
    policy: Policy
    models: Mapping[str, "lgb.Booster"]
    calibrations: Mapping[str, Calibration]
    metrics: Mapping[str, SegmentMetrics]

    @property
    def horizon_bars(self) -> dict[str, int]:
        """Label horizon of each timeframe, in its own bars."""
        return {segment.partition(".")[0]: entry.horizon_bars for segment, entry in self.card.segments.items()}

    @property
    def score(self) -> Scorer:
        """The scorer over this bundle's models."""
        return scorer(self.models)

    def predict(self, timeframe: str, regime: Regime, x: FloatArray) -> FloatArray:
        """Raw score P(price rises) of rows `x` (n × F) by one segment's model: (n,), all NaN where it has none."""
        return self.score(timeframe, x, np.full(len(x), REGIME_CODES.index(regime), dtype=np.int8))


def read_bundle(store: ObjectStore, pointer: ChampionPointer, *, parity: bool = True) -> Bundle:
    """Fetch, verify, parse and replay the bundle a pointer names. Raises BadBundle saying which file must not be used and why.

    `parity=False` leaves out the golden tails: for the engine, which wrote them on this machine.
    """
    bundle = open_bundle(pointer.bucket_path, fetch(store, pointer.bucket_path, pointer.sha256, pointer.size), parity=parity)
    promised = {segment: entry.model_id for segment, entry in pointer.segments.items()}
    held = {segment: entry.model_id for segment, entry in bundle.card.segments.items()}
    if (bundle.card.symbol, bundle.card.model_id, held) != (pointer.symbol, pointer.model_id, promised):
        raise BadBundle(f"bundle {bundle.path} is refused: {CARD} describes {bundle.card.model_id}, the pointer names {pointer.model_id}")
    return bundle


def open_bundle(path: str, files: Mapping[str, bytes], *, parity: bool = True) -> Bundle:
    """Parse files that `fetch` or `verify` passed, and replay their golden tails. Raises BadBundle."""

    def parse(model: type[RecordT], name: str) -> RecordT:
        try:
            return model.from_bytes(files[name])
        except KeyError:
            raise BadBundle(f"bundle {path} is refused: {name} is missing") from None
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise BadBundle(f"bundle {path} is refused: {name}: {where} {problem['msg']}; another version of huracan wrote it") from None

    card = parse(BundleCard, CARD)
    named = [segment for segment, entry in card.segments.items() if entry.model_id]
    bundle = Bundle(
        path=path,
        card=card,
        features=parse(FeatureRecipe, FEATURES),
        regimes=parse(RegimeRecipe, REGIMES),
        combiner=parse(Combiner, COMBINER),
        costs=parse(CostSnapshot, COSTS),
        policy=parse(Policy, POLICY),
        calibrations={segment: parse(Calibration, f"{segment}/{CALIBRATION}") for segment in named},
        metrics={segment: parse(SegmentMetrics, f"{segment}/{METRICS}") for segment in named},
        models=_boosters({segment: files[f"{segment}/{MODEL}"] for segment in named}),
    )
    for segment, model in bundle.models.items():
        if model.num_feature() != len(bundle.features.names):
            raise BadBundle(
                f"bundle {path} is refused: {segment}/{MODEL} takes {model.num_feature()} features, {FEATURES} names another number"
            )
    if parity:
        _check_parity(bundle, files)
    return bundle


def _check_parity(bundle: Bundle, files: Mapping[str, bytes]) -> None:
    """Replay every golden tail on this machine."""
    for timeframe in sorted(_timeframes(bundle.models)):
        name = _golden_name(timeframe)
        if name not in files:
            raise BadBundle(f"bundle {bundle.path} is refused: {name} is missing, so parity cannot be shown")
        if differs := replay(files[name], timeframe, bundle.features, bundle.regimes, bundle.score):
            raise BadBundle(
                f"bundle {bundle.path} is refused: {name}: this machine computes another {differs} than the engine that wrote it; "
                f"install the versions that the bundle's {CONFIG} names"
            )
