"""The bucket: a flat namespace of immutable-looking objects, behind one small protocol; here, a local folder."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from hamilton_client.core.contracts import HuracanError

KEY_SEGMENT = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9_=+.-]*")
HIDDEN = "."  # no key segment begins with it, so a half-written file can never be listed or read


class NotFound(HuracanError):  # noqa: N818  (it is an answer as often as a fault)
    """No object has that key."""


class ObjectStore(Protocol):
    """What every bucket can do. Keys are `/`-separated; a put is all or nothing for every reader."""

    url: str

    def put(self, key: str, body: bytes, *, if_absent: bool = False) -> bool:
        """Write an object whole; with `if_absent`, return False and change nothing where the key is taken."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises NotFound."""
        ...

    def exists(self, key: str) -> bool:
        """Say whether the key is taken."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix` (a plain string prefix), sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; a key that is not there is no error."""
        ...


def check_key(key: str) -> str:
    """Return `key` if it stays inside the bucket: no `..`, no absolute path, no backslash, no hidden name. Raises HuracanError."""
    if not all(KEY_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise HuracanError(f"object key {key!r} is refused: keys are names of A-Z a-z 0-9 _ = + - . joined by /, none starting with a dot")
    return key


class LocalStore:
    """A folder as bucket: one file per object, replaced atomically."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = self.root.as_uri()

    def put(self, key: str, body: bytes, *, if_absent: bool = False) -> bool:
        """Write to a hidden file in the same folder, fsync, then rename (or link, which fails where the key is taken)."""
        path = self._path(key)
        partial = path.parent / f"{HIDDEN}{path.name[:100]}.{os.getpid()}.{secrets.token_hex(6)}"
        with self._explained("write", key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("xb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                if not if_absent:
                    partial.replace(path)
                    return True
                try:
                    path.hardlink_to(partial)
                except FileExistsError:
                    return False
                return True
            finally:
                partial.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises NotFound, or HuracanError where the file cannot be read."""
        path = self._path(key)
        with self._explained("read", key):
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise NotFound(f"no object {key} in {self.url}") from None

    def exists(self, key: str) -> bool:
        """Say whether the key is taken."""
        return self._path(key).is_file()

    def list(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted; half-written files are never among them."""
        folder, _, _ = prefix.rpartition("/")
        start = self._path(folder) if folder else self.root
        found: list[str] = []
        for directory, folders, files in os.walk(start):
            folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            base = Path(directory).relative_to(self.root).as_posix()
            lead = "" if base == "." else f"{base}/"
            found.extend(f"{lead}{name}" for name in files if not name.startswith(HIDDEN))
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; a key that is not there is no error."""
        with self._explained("delete", key):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise HuracanError(
                f"cannot {verb} {key} in the folder {self.root}: {fault.strerror or fault}. "
                "Give this user the right to use that folder and room in it, or choose another one with HURACAN_HOME"
            ) from fault


def open_store(url: str) -> ObjectStore:
    """Open the bucket at `file:///folder` or a plain path. Raises HuracanError for a scheme this build does not speak."""
    parts = urlsplit(url)
    if not url or (parts.scheme and parts.scheme != "file") or (parts.scheme and parts.netloc not in ("", "localhost")):
        raise HuracanError(f"bucket {url!r} is refused: supported are file:///absolute/folder and a plain folder path")
    return LocalStore(unquote(parts.path) if parts.scheme else url)
