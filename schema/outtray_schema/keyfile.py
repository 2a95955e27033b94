"""Key files: made with mode 0600, changed as a whole or not at all, never overwritten by accident.

    {"content":     {"primary": "k1", "keys": {"k1": "<32 bytes, base64>"}},
     "addresses":   {"primary": "k1", "keys": {…}, "index": "<32 bytes, base64>"},
     "credentials": {"primary": "k1", "keys": {…}}}

To change a key while processes run: `add_key(primary=False)` everywhere and restart, `make_primary` and restart,
`rotation.rotate`, `drop_key`. With one machine and one file, `add_key` and a restart of everything at once will do.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outtray_schema.errors import SettingsError

RINGS = ("content", "addresses", "credentials")


def new_keys() -> dict[str, Any]:
    """A fresh content for a key file: one key per ring, and the index key."""
    keys: dict[str, Any] = {name: {"primary": "k1", "keys": {"k1": _new_key()}} for name in RINGS}
    keys["addresses"]["index"] = _new_key()
    return keys


def new_key_file(path: Path) -> None:
    """Make a key file with mode 0600. Raises `SettingsError` if there is one already: its keys may be the only ones."""
    try:
        create_key_file(path, new_keys())
    except FileExistsError:
        raise SettingsError(f"{path} exists already and is kept: what its keys sealed, no others open") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


def without_credentials(source: Path, target: Path) -> None:
    """Derive a producer's key file, which can neither store nor read a mailbox's password. `target` must be new."""
    keys = parse_keys(read_key_file(source), str(source))
    keys.pop("credentials", None)
    try:
        create_key_file(target, keys)
    except FileExistsError:
        raise SettingsError(f"{target} exists already; remove it first") from None


def add_key(path: Path, ring: str, *, primary: bool = True) -> str:
    """Add a new key to a ring and return its id. `primary=False` only lets it open, for a rollout in steps."""
    with _changing(path) as keys:
        members = _ring_of(keys, ring, path)["keys"]
        numbers = [int(match[1]) for key_id in members if (match := re.fullmatch(r"k(\d{1,9})", key_id))]
        key_id = f"k{max(numbers, default=0) + 1}"
        members[key_id] = _new_key()
        if primary:
            keys[ring]["primary"] = key_id
    return key_id


def make_primary(path: Path, ring: str, key_id: str) -> None:
    """Seal new values of a ring under a key that it already has. Raises `SettingsError` if it has not."""
    with _changing(path) as keys:
        if key_id not in _ring_of(keys, ring, path)["keys"]:
            raise SettingsError(f"{path}: the ring {ring!r} has no key {key_id!r}; add one with `outtray keys add`")
        keys[ring]["primary"] = key_id


def drop_key(path: Path, ring: str, key_id: str) -> None:
    """Remove a key. What it sealed and rotation has not reached is lost: look at `rotation.keys_in_use` first."""
    with _changing(path) as keys:
        members = _ring_of(keys, ring, path)["keys"]
        if keys[ring].get("primary") == key_id:
            raise SettingsError(f"{path}: {key_id!r} is the primary key of {ring!r}; add another first")
        if members.pop(key_id, None) is None:
            raise SettingsError(f"{path}: the ring {ring!r} has no key {key_id!r}")


def read_key_file(path: Path) -> str:
    """The text of a key file. Raises `SettingsError` if it is absent, unreadable, or readable by others."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise SettingsError(f"{path} may be read by others; run: chmod 600 {path}")
            return file.read()
    except FileNotFoundError:
        raise SettingsError(
            f"OUTTRAY_KEY_FILE: there is no {path}. Make it once with `outtray keys new {path}`; every process needs it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(
            f"OUTTRAY_KEY_FILE: {path} cannot be read ({why}). It must belong to this process's user, mode 600; "
            f"a new one is made with `outtray keys new FILE`"
        ) from None


def parse_keys(text: str, source: str) -> dict[str, Any]:
    """The JSON of a key file. Raises `SettingsError`, which never quotes the text: it holds keys."""
    try:
        keys = json.loads(text)
    except ValueError:
        keys = None
    if not isinstance(keys, dict):
        raise SettingsError(f"{source} is not the JSON object that `outtray keys new FILE` writes")
    return keys


def create_key_file(path: Path, keys: dict[str, Any]) -> None:
    """Write a key file that appears whole, with mode 0600. Raises `FileExistsError` rather than overwrite."""
    draft = _write_draft(path, keys)
    try:
        # Unlike a rename, a link never replaces: of two processes that make the embedded keys, one wins.
        os.link(draft, path)
    finally:
        draft.unlink()
    _sync_folder(path)


def _write_draft(path: Path, keys: dict[str, Any]) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(keys, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return draft


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """Hold the folder's lock, read, let the caller change, and put the file in place in one step."""
    with _folder(path) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        owner = path.stat() if path.exists() else None
        keys = parse_keys(read_key_file(path), str(path))
        yield keys
        draft = _write_draft(path, keys)
        if owner is not None and os.geteuid() == 0:
            os.chown(draft, owner.st_uid, owner.st_gid)
        os.replace(draft, path)
        os.fsync(folder)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SettingsError(f"{path.parent} cannot be opened: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with _folder(path) as folder:
        os.fsync(folder)


def _ring_of(keys: dict[str, Any], ring: str, path: Path) -> dict[str, Any]:
    if ring not in RINGS or not isinstance(keys.get(ring), dict) or not isinstance(keys[ring].get("keys"), dict):
        raise SettingsError(f"{path} has no key ring {ring!r}; the rings are {', '.join(RINGS)}")
    found: dict[str, Any] = keys[ring]
    return found


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()
