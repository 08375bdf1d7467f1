import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamilton_client.core.contracts import HuracanError
from hamilton_client.store import LocalStore, NotFound, check_key, open_store


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "bucket")


def test_put_get_list_exists_delete(store):
    for key in ("b/2", "b/1", "a", "bc/1"):
        assert store.put(key, key.encode())
    assert store.get("b/2") == b"b/2"
    assert store.list("") == ["a", "b/1", "b/2", "bc/1"]
    assert store.list("b") == ["b/1", "b/2", "bc/1"]  # a string prefix, as in S3
    assert store.list("b/") == ["b/1", "b/2"]
    assert store.list("b/2") == ["b/2"]
    assert store.list("nothing/here") == []
    store.delete("b/1")
    store.delete("b/1")
    assert not store.exists("b/1")
    assert store.exists("b/2")
    assert not store.exists("b")
    store.put("b/2", b"")
    assert store.get("b/2") == b""


@pytest.mark.parametrize("key", ["none", "b", "b/2/deeper"])
def test_a_missing_object_is_not_found(store, key):
    store.put("b/2", b"x")
    with pytest.raises(NotFound, match=key):
        store.get(key)


def test_if_absent_keeps_the_first_and_only_one_of_many_wins(store):
    assert store.put("k", b"first", if_absent=True)
    assert not store.put("k", b"second", if_absent=True)
    assert store.get("k") == b"first"
    won = []
    threads = [threading.Thread(target=lambda i=i: won.append(store.put("race", str(i).encode(), if_absent=True))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]
    assert store.list("") == ["k", "race"]


def test_a_concurrent_reader_never_sees_half_a_file_nor_a_temporary_name(store):
    bodies = {bytes([n]) * 2_000_000 for n in range(4)}
    store.put("big", b"\x00" * 2_000_000)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for body in bodies:
                store.put("big", body)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(150):
            assert store.get("big") in bodies
            assert store.list("") == ["big"]
    finally:
        stop.set()
        writer.join()


def test_a_failed_put_leaves_the_old_object_and_nothing_else(store, monkeypatch):
    store.put("k", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HuracanError, match=r"No space left on device.*HURACAN_HOME"):
        store.put("k", b"new")
    assert store.get("k") == b"old"
    assert [path.name for path in store.root.iterdir()] == ["k"]


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "a\\b", ".hidden", "a/.b", "a\0b", "a\nb", "ä", "C:/x"]
)
def test_keys_that_could_leave_the_bucket_are_refused(store, key):
    for call in (store.get, store.exists, store.delete, lambda k: store.put(k, b"")):
        with pytest.raises(HuracanError, match="refused"):
            call(key)


@given(st.text(max_size=30))
def test_an_accepted_key_stays_inside(key):
    try:
        check_key(key)
    except HuracanError:
        return
    root = Path("/bucket")
    assert root in (Path(os.path.normpath(root / key))).parents


def test_an_unwritable_root_says_which_folder_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")  # works for root too, unlike permission bits
    with pytest.raises(HuracanError, match=r"cannot write k in the folder .*file/home.*HURACAN_HOME"):
        LocalStore(tmp_path / "file" / "home").put("k", b"")


def test_a_folder_this_user_may_not_write_says_so(tmp_path):
    tmp_path.chmod(0o500)
    root = os.geteuid() == 0
    if root:  # root may write anywhere: look with the eyes of nobody
        os.seteuid(65534)
    try:
        with pytest.raises(HuracanError, match=r"Permission denied.*HURACAN_HOME"):
            LocalStore(tmp_path).put("k", b"")
    finally:
        if root:
            os.seteuid(0)


def test_open_store_takes_a_path_or_file_url_and_names_what_it_supports(tmp_path):
    folder = tmp_path / "with space"
    open_store(str(folder)).put("k", b"1")
    assert open_store(folder.as_uri()).get("k") == b"1"
    assert open_store(open_store(str(folder)).url).exists("k")
    for url in ("s3://bucket/x", "http://x", "file://host/x", ""):
        with pytest.raises(HuracanError, match=r"supported are file:///"):
            open_store(url)
