import hashlib
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bundle_making as making
from hamilton_client.bundle import BadBundle, BundleCard, SegmentFiles, compose, fetch, pack, read_bundle, verify, write_bundle
from hamilton_client.core import layout
from hamilton_client.core.contracts import ChampionIndex, HuracanError, Regime
from hamilton_client.core.regimes import REGIME_CODES
from hamilton_client.golden import golden_tail, replay
from hamilton_client.pointer import BadPointer, PointerWatch, read_index, read_pointer, write_index, write_pointer
from hamilton_client.store import LocalStore, NotFound

MODEL = "1h.TREND/model.txt"


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "bucket")


def test_a_bundle_comes_back_as_it_was_made(store):
    made = making.packed()
    bundle = read_bundle(store, making.publish(store, made))
    assert set(bundle.models) == set(bundle.calibrations) == set(bundle.metrics) == set(making.SEGMENTS)
    assert bundle.features == making.RECIPE.features
    assert bundle.regimes == making.RECIPE.regimes
    assert bundle.policy == making.POLICY
    assert bundle.combiner == making.combiner()
    assert bundle.costs == making.costs("BTCUSDT")
    assert bundle.calibrations["1h.TREND"] == making.CALIBRATION
    assert bundle.horizon_bars == {"1h": 4, "4h": 3, "1d": 2}
    assert made.size == sum(map(len, made.files.values()))


def test_scores_are_those_of_the_segments_own_model(store):
    import lightgbm as lgb

    bundle = read_bundle(store, making.publish(store, making.packed()))
    x = np.random.default_rng(1).normal(size=(40, len(making.RECIPE.features.names)))
    state = np.array(
        [REGIME_CODES.index(regime) for regime in (Regime.TREND, Regime.RANGE, Regime.PANIC, Regime.UNKNOWN)] * 10, dtype=np.int8
    )
    found = bundle.score("1h", x, state)
    for at, segment in enumerate(making.SEGMENTS[:2]):
        own = lgb.Booster(model_str=making.model_text("1h", 1 + at).decode()).predict(x)
        np.testing.assert_array_equal(found[at::4], own[at::4])
        np.testing.assert_array_equal(bundle.predict("1h", Regime(segment[3:]), x), own)
    assert np.isnan(found[2::4]).all()
    assert np.isnan(found[3::4]).all()
    assert np.isnan(bundle.predict("1d", Regime.TREND, x)).all()
    assert bundle.predict("1h", Regime.TREND, x[:0]).shape == (0,)


def test_the_feature_recipe_is_readable_and_tells_the_warm_up(store):
    written = json.loads(making.packed().files["feature_recipe.json"])
    assert written["hash"] == making.RECIPE.features.hash
    assert written["warmup_bars"] == {timeframe: making.RECIPE.warmup_bars(timeframe) for timeframe in ("1h", "4h", "1d")}
    assert tuple(written["names"]) == making.RECIPE.features.names


def test_the_sums_are_sorted_lines_of_digest_size_and_name():
    made = making.packed()
    lines = made.files["sha256.txt"].decode().splitlines()
    names = [line.split("  ")[2] for line in lines]
    assert names == sorted(set(made.files) - {"sha256.txt"})
    body = made.files[MODEL]
    assert f"{hashlib.sha256(body).hexdigest()}  {len(body)}  {MODEL}" in lines


def test_a_rules_only_bundle_needs_neither_model_nor_golden_tail(store):
    bundle = read_bundle(store, making.publish(store, making.packed(segments=())))
    assert bundle.models == {}
    assert np.isnan(bundle.predict("1h", Regime.TREND, np.zeros((3, 40)))).all()


def test_a_segment_moves_into_another_bundle_byte_for_byte(store):
    pointer = making.publish(store, making.packed())
    files = fetch(store, pointer.bucket_path, pointer.sha256, pointer.size)
    taken = SegmentFiles.of(files, "1h.TREND")
    assert taken.named("1h.TREND") == {name: body for name, body in files.items() if name.startswith("1h.TREND/")}
    with pytest.raises(KeyError):
        SegmentFiles.of(files, "1d.TREND")


def test_a_card_that_names_other_segments_than_there_are_is_not_composed():
    card = BundleCard.from_bytes(making.packed().files["bundle.json"])
    with pytest.raises(HuracanError, match="its card names models for"):
        compose(
            card, features=making.RECIPE.features, regimes=making.RECIPE.regimes, combiner=making.combiner(), costs=making.costs("BTCUSDT"),
            policy=making.POLICY, segments={}, candles={},
        )  # fmt: skip


FAULTS = {
    "edited": (lambda body: body[:-200] + b"7" + body[-199:], "sha256 differs"),
    "truncated": (lambda body: body[: len(body) // 2], "truncated or edited"),
    "empty": (lambda body: b"", "truncated or edited"),
    "longer": (lambda body: body + b"\n", "truncated or edited"),
    "missing": (lambda body: None, "missing"),
}


@pytest.mark.parametrize("name", [MODEL, "policy.json", "golden/1h.parquet", "1h.RANGE/calibration.json"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_damaged_file_is_named_and_refused(store, name, fault):
    damage, said = FAULTS[fault]
    made = making.packed()
    pointer = making.publish(store, making.edited(made, **{name: damage(made.files[name])}))
    with pytest.raises(BadBundle, match=said) as refusal:
        read_bundle(store, pointer)
    assert name in str(refusal.value)
    assert pointer.bucket_path in str(refusal.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_flipped_byte_anywhere_passes(data):
    made = making.packed()
    name = data.draw(st.sampled_from(sorted(made.files)))
    at = data.draw(st.integers(0, len(made.files[name]) - 1))
    body = bytearray(made.files[name])
    body[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadBundle, match=name.replace(".", r"\.")):
        verify({**made.files, name: bytes(body)}, made.sha256, made.size)


def test_an_unlisted_file_and_a_wrong_size_are_refused():
    made = making.packed()
    verify(made.files, made.sha256, made.size)
    with pytest.raises(BadBundle, match=r"extra\.txt: is not listed"):
        verify({**made.files, "extra.txt": b"x"}, made.sha256)
    with pytest.raises(BadBundle, match="where the pointer promises"):
        verify(made.files, made.sha256, made.size + 1)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../b", "a/b/c"])
def test_names_that_leave_the_bundle_are_never_fetched(store, name):
    sums = f"{'0' * 64}  3  {name}\n".encode()
    store.put("models/BTCUSDT/x/sha256.txt", sums)
    with pytest.raises(BadBundle, match="line 1 cannot be read"):
        fetch(store, "models/BTCUSDT/x", hashlib.sha256(sums).hexdigest())


def test_a_wrong_sha256_in_the_pointer_is_refused(store):
    pointer = making.publish(store, making.packed())
    with pytest.raises(BadBundle, match=r"sha256\.txt: is not the one the pointer names"):
        read_bundle(store, pointer.model_copy(update={"sha256": "0" * 64}))


def test_a_bundle_of_another_coin_is_refused(store):
    pointer = making.publish(store, making.packed())
    with pytest.raises(BadBundle, match=r"bundle\.json describes"):
        read_bundle(store, pointer.model_copy(update={"symbol": "ETHUSDT"}))


@pytest.mark.parametrize("damage", ["truncated", "edited"])
def test_a_broken_model_is_refused_where_lightgbm_itself_would_abort(store, damage):
    """LightGBM 4 ends the process on a truncated text: the same bytes, once without and once with our checks, each in its own process."""
    made = making.packed()
    body = made.files[MODEL]
    broken = body[: len(body) // 2] if damage == "truncated" else body.replace(b"split_feature=", b"split_feature=99999 ", 1)
    pointer = making.publish(store, making.edited(made, **{MODEL: broken}))
    raw = (
        f"import lightgbm, pathlib; lightgbm.Booster(model_str=pathlib.Path({str(store.root / pointer.bucket_path / MODEL)!r}).read_text())"
    )
    assert subprocess.run([sys.executable, "-c", raw], capture_output=True, check=False).returncode not in (0, 1)
    ours = (
        "from hamilton_client.bundle import *; from hamilton_client.pointer import *; from hamilton_client.store import LocalStore\n"
        f"store = LocalStore({str(store.root)!r})\n"
        "try: read_bundle(store, read_pointer(store, 'BTCUSDT'))\n"
        "except BadBundle as fault: print(fault)"
    )
    done = subprocess.run([sys.executable, "-c", ours], capture_output=True, check=False, text=True)
    assert done.returncode == 0
    assert MODEL in done.stdout


def test_a_machine_that_computes_otherwise_refuses(store):
    """A planted difference in one feature value of the golden tail, sealed with right sums: only the replay can notice."""
    made = making.packed()
    name = "golden/1h.parquet"
    for column in ("feature.return_1", "score.TREND"):
        tail = pl.read_parquet(io.BytesIO(made.files[name]))
        moved = tail.with_columns(pl.col(column) + 1e-7)
        buffer = io.BytesIO()
        moved.write_parquet(buffer)
        files = {each: body for each, body in made.files.items() if each != "sha256.txt"} | {name: buffer.getvalue()}
        other = pack(files)
        pointer = making.pointer_to(other)
        write_bundle(store, pointer.bucket_path, other)
        with pytest.raises(BadBundle, match=f"golden/1h.parquet: this machine computes another {column}"):
            read_bundle(store, pointer)


def test_the_golden_tail_shows_that_a_tail_equals_the_whole_history():
    made = making.packed()
    tail = pl.read_parquet(io.BytesIO(made.files["golden/1h.parquet"]))
    assert tail.height < making.series("1h").height
    assert tail["regime"].drop_nulls().len() == 16
    assert tail["score.TREND"].drop_nulls().len() == 16
    assert tail["score.PANIC"].drop_nulls().is_nan().all()


def test_a_golden_tail_of_nothing_proves_nothing():
    def score(timeframe, x, state):
        return np.zeros(len(x))

    arguments = ("1h", making.RECIPE.features, making.RECIPE.regimes, score)
    golden = golden_tail(making.series("1h"), *arguments)
    assert replay(golden, *arguments) is None
    buffer = io.BytesIO()
    pl.read_parquet(io.BytesIO(golden)).with_columns(pl.lit(None, pl.String).alias("regime")).write_parquet(buffer)
    assert replay(buffer.getvalue(), *arguments) == "regime"


def test_a_golden_tail_that_is_missing_is_refused(store):
    made = making.packed()
    other = pack({name: body for name, body in made.files.items() if name not in ("sha256.txt", "golden/4h.parquet")})
    pointer = making.pointer_to(other)
    write_bundle(store, pointer.bucket_path, other)
    with pytest.raises(BadBundle, match=r"golden/4h\.parquet is missing"):
        read_bundle(store, pointer)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"hello", b'{"symbol": "BTCUSDT"'])
def test_a_half_written_pointer_is_an_error_to_act_on(store, body):
    pointer = making.publish(store, making.packed(segments=()))
    store.put(layout.champion_pointer("BTCUSDT"), body)
    with pytest.raises(BadPointer, match="huracan reconcile"):
        read_pointer(store, "BTCUSDT")
    write_pointer(store, pointer)
    assert read_pointer(store, "BTCUSDT") == pointer


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_a_pointer_cut_anywhere_is_whole_or_refused(tmp_path_factory, cut):
    store = LocalStore(tmp_path_factory.mktemp("bucket"))
    pointer = making.pointer_to(making.packed())
    body = pointer.to_bytes()
    store.put(layout.champion_pointer("BTCUSDT"), body[:cut])
    if cut >= len(body):
        assert read_pointer(store, "BTCUSDT") == pointer
    else:
        with pytest.raises(BadPointer):
            read_pointer(store, "BTCUSDT")


@pytest.mark.parametrize("change", [{"symbol": "ETHUSDT"}, {"sha256": "xyz"}, {"generation": 0}, {"bucket_path": "../../etc"}])
def test_a_pointer_that_points_elsewhere_is_refused(store, change):
    pointer = making.pointer_to(making.packed()).model_copy(update=change)
    store.put(layout.champion_pointer("BTCUSDT"), pointer.to_bytes())
    with pytest.raises(BadPointer, match="not a pointer of BTCUSDT"):
        read_pointer(store, "BTCUSDT")


def test_no_pointer_says_what_to_run(store):
    with pytest.raises(NotFound, match="huracan nightly --coins BTCUSDT"):
        read_pointer(store, "BTCUSDT")


def test_a_pointer_only_moves_forward_and_keeps_its_history(store):
    first, second = making.packed(segments=()), making.packed(segments=(), version=2)
    one, two = making.publish(store, first), making.publish(store, second, generation=2)
    with pytest.raises(HuracanError, match="a rollback is a new generation"):
        write_pointer(store, one)
    assert read_pointer(store, "BTCUSDT") == two
    back = making.publish(store, first, generation=3)
    assert read_pointer(store, "BTCUSDT") == back
    assert [key[-11:] for key in store.list("champion/BTCUSDT/history/")] == ["000001.json", "000002.json", "000003.json"]
    with pytest.raises(HuracanError, match="already names"):
        write_pointer(store, two.model_copy(update={"generation": 3}))


def test_readers_see_one_whole_pointer_or_the_other_while_it_moves(store):
    bundles = [making.packed(segments=(), version=version) for version in (1, 2)]
    making.publish(store, bundles[1])

    def write() -> None:
        for generation in range(2, 60):
            making.publish(store, bundles[generation % 2], generation=generation)

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        watch, seen = PointerWatch(), 0
        while not writing.done():
            pointer = read_pointer(store, "BTCUSDT")
            watch.accept(pointer)
            read_bundle(store, pointer)
            seen += 1
        writing.result()
    assert seen > 5


def test_the_watch_never_goes_back_not_even_after_a_restart(tmp_path):
    file = tmp_path / "state" / "generations.json"
    new, old = making.pointer_to(making.packed(), generation=5), making.pointer_to(making.packed(), generation=4)
    watch = PointerWatch(file)
    watch.accept(new)
    watch.accept(new)
    for each in (watch, PointerWatch(file)):
        with pytest.raises(BadPointer, match="offers generation 4, this client has used 5"):
            each.accept(old)
    PointerWatch(file).accept(new.model_copy(update={"symbol": "ETHUSDT", "generation": 1}))
    assert json.loads(file.read_text()) == {"BTCUSDT": 5, "ETHUSDT": 1}
    file.write_text("{")
    with pytest.raises(HuracanError, match="damaged"):
        PointerWatch(file)


def test_the_index_is_the_union_of_pointers(store):
    assert read_index(store) == ChampionIndex(champions={})
    index = ChampionIndex(champions={"BTCUSDT": making.pointer_to(making.packed())})
    write_index(store, index)
    assert read_index(store) == index
    store.put(layout.CHAMPION_INDEX, b"{")
    with pytest.raises(BadPointer, match="huracan reconcile"):
        read_index(store)
