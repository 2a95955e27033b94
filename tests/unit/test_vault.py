"""The vault: values open only where they belong, and keys come from files that nobody else reads."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema import bindings
from outtray_schema.errors import CannotOpen, SettingsError, UnknownKey
from outtray_schema.ids import new_id
from outtray_schema.keyfile import new_keys
from outtray_schema.settings import Settings
from outtray_schema.vault import (
    Ring,
    Vault,
    add_key,
    drop_key,
    load_vault,
    make_primary,
    new_key_file,
    vault_of,
    without_credentials,
)

APP, OTHER = UUID(int=1), UUID(int=2)
RING = Ring("content", "k1", {"k1": bytes(32)})


def vault_from(path: Path) -> Vault:
    return load_vault(Settings(key_file=path, database_url="postgresql://x/y", redis_url="redis://x"))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    new_key_file(path)
    return path


@given(st.binary(max_size=5000), st.text(max_size=50))
def test_a_sealed_value_opens_where_it_belongs(data: bytes, place: str) -> None:
    assert RING.decrypt(RING.encrypt(data, place), place) == data


def test_the_same_value_looks_different_each_time() -> None:
    assert RING.encrypt(b"secret", "row") != RING.encrypt(b"secret", "row")
    assert b"secret" not in RING.encrypt(b"secret", "row")


def test_a_value_copied_to_another_row_does_not_open() -> None:
    first, second = new_id(), new_id()
    blob = RING.encrypt(b"body", bindings.body(first))
    for place in (bindings.body(second), bindings.head(first), bindings.chunk(first, 0), ""):
        with pytest.raises(CannotOpen):
            RING.decrypt(blob, place)


def test_a_value_of_another_ring_does_not_open_even_under_the_same_key() -> None:
    twin = Ring("addresses", "k1", {"k1": bytes(32)})
    with pytest.raises(CannotOpen):
        twin.decrypt(RING.encrypt(b"x", "row"), "row")


def test_a_value_cut_off_anywhere_or_changed_in_any_byte_does_not_open() -> None:
    blob = RING.encrypt(b"some content", "row")
    for length in range(len(blob)):
        with pytest.raises(CannotOpen):
            RING.decrypt(blob[:length], "row")
    for at in range(len(blob)):
        with pytest.raises(CannotOpen):
            RING.decrypt(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :], "row")


def test_an_unknown_key_is_named_and_nothing_else() -> None:
    blob = Ring("content", "k9", {"k9": bytes(32)}).encrypt(b"secret", "row")
    with pytest.raises(UnknownKey) as caught:
        RING.decrypt(blob, "row")
    assert caught.value.key_id == "k9"
    assert "secret" not in str(caught.value)
    assert RING.key_of(blob) == "k9"
    assert not RING.is_current(blob)


def test_no_repr_shows_a_key(key_file: Path) -> None:
    keys = json.loads(key_file.read_text())
    shown = repr(vault_from(key_file))
    assert "k1" in shown
    assert not any(key in shown for ring in keys.values() for key in ring["keys"].values())


def test_a_blind_index_finds_every_spelling_within_one_app_only(key_file: Path) -> None:
    vault = vault_from(key_file)
    index = vault.blind_index(APP, "Ann@Example.com")
    assert len(index) == 16
    assert index == vault.blind_index(APP, "ann@example.COM")
    assert index != vault.blind_index(OTHER, "ann@example.com")
    assert index != vault.blind_index(APP, "bob@example.com")


def test_a_keyed_hash_is_bound_to_its_owner_and_purpose(key_file: Path) -> None:
    vault = vault_from(key_file)
    hashes = {vault.keyed_hash(owner, purpose, b"x") for owner in (APP, OTHER) for purpose in ("a", "b")}
    assert len(hashes) == 4
    other_keys = vault_of(new_keys(), "test")
    assert other_keys.keyed_hash(APP, "a", b"x") not in hashes


def test_a_key_file_is_for_its_owner_only_and_never_overwritten(key_file: Path) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600
    before = key_file.read_text()
    with pytest.raises(SettingsError, match="exists already"):
        new_key_file(key_file)
    assert key_file.read_text() == before
    assert os.listdir(key_file.parent) == ["keys.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_file_that_others_may_use_is_refused_with_the_cure(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        vault_from(key_file)


def test_a_deployment_without_keys_refuses_to_start_and_says_how_to_make_them(tmp_path: Path) -> None:
    own = {"database_url": "postgresql://x/y", "redis_url": "redis://x", "data_folder": tmp_path}
    for settings in (Settings(**own), Settings(**own, key_file=tmp_path / "none.json")):
        with pytest.raises(SettingsError, match="outtray keys new"):
            load_vault(settings)
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        vault_from(tmp_path)


def test_the_embedded_default_makes_its_keys_once_however_many_start(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path / "new" / "data")
    with ThreadPoolExecutor(8) as threads:
        vaults = list(threads.map(lambda _: load_vault(settings), range(16)))
    path = settings.data_folder / "keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({vault.keyed_hash(APP, "x", b"") for vault in vaults}) == 1
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = new_keys()
    monkeypatch.setenv("OUTTRAY_KEYS", json.dumps(keys))
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x", data_folder=tmp_path)
    blob = vault_of(keys, "test").content.encrypt(b"x", "row")
    assert load_vault(settings).content.decrypt(blob, "row") == b"x"
    assert not any(ring["keys"]["k1"] in repr(settings) for ring in keys.values())


@pytest.mark.parametrize("ring", ["content", "addresses", "credentials"])
def test_keys_that_are_wrong_are_named_but_not_shown(ring: str) -> None:
    secret = "c2hvcnQgc2VjcmV0"
    keys: dict[str, Any] = new_keys()
    keys[ring]["keys"]["k1"] = secret
    with pytest.raises(SettingsError) as caught:
        vault_of(keys, "keys.json")
    assert f"{ring}.keys.k1" in str(caught.value)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"content": 1}', '{"content": {"primary": "k1", "keys": {}}}', "{secret"]
)
def test_a_file_that_is_no_key_file_is_refused_without_being_quoted(text: str) -> None:
    settings = Settings(keys=text or " ", database_url="postgresql://x/y", redis_url="redis://x")
    with pytest.raises(SettingsError) as caught:
        load_vault(settings)
    assert "secret" not in str(caught.value)


def test_a_producer_without_the_credentials_ring_starts_and_cannot_read_a_credential(key_file: Path) -> None:
    mailbox = new_id()
    sealed = vault_from(key_file).credentials.encrypt(b"password", bindings.credentials(mailbox, 1))
    derived = key_file.with_name("producer.json")
    without_credentials(key_file, derived)
    producer = vault_from(derived)
    assert derived.stat().st_mode & 0o777 == 0o600
    assert producer.content.decrypt(vault_from(key_file).content.encrypt(b"x", "row"), "row") == b"x"
    assert not producer.has_credentials
    with pytest.raises(SettingsError, match="credentials ring"):
        _ = producer.credentials
    for ring in (producer.content, producer.addresses):
        with pytest.raises(CannotOpen):
            ring.decrypt(sealed, bindings.credentials(mailbox, 1))
    full, own = json.loads(key_file.read_text()), derived.read_text()
    assert not any(key in own for key in full["credentials"]["keys"].values())


def test_a_new_primary_key_seals_and_the_old_one_still_opens(key_file: Path) -> None:
    blob = vault_from(key_file).content.encrypt(b"old", "row")
    assert add_key(key_file, "content") == "k2"
    vault = vault_from(key_file)
    assert vault.content.key_of(vault.content.encrypt(b"new", "row")) == "k2"
    assert vault.content.decrypt(blob, "row") == b"old"
    assert vault.addresses.primary == "k1"
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_a_key_can_be_known_everywhere_before_anyone_seals_with_it(key_file: Path) -> None:
    new = add_key(key_file, "content", primary=False)
    assert vault_from(key_file).content.primary == "k1"
    make_primary(key_file, "content", new)
    assert vault_from(key_file).content.primary == "k2"
    with pytest.raises(SettingsError, match="k7"):
        make_primary(key_file, "content", "k7")


def test_only_a_key_that_is_not_primary_can_be_dropped(key_file: Path) -> None:
    blob = vault_from(key_file).content.encrypt(b"x", "row")
    with pytest.raises(SettingsError, match="primary"):
        drop_key(key_file, "content", "k1")
    add_key(key_file, "content")
    drop_key(key_file, "content", "k1")
    with pytest.raises(UnknownKey):
        vault_from(key_file).content.decrypt(blob, "row")
    with pytest.raises(SettingsError, match="no key"):
        drop_key(key_file, "content", "k1")


def test_keys_added_at_once_are_all_kept(key_file: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda _: add_key(key_file, "addresses"), range(12)))
    assert set(json.loads(key_file.read_text())["addresses"]["keys"]) == {"k1", *added}
    assert len(set(added)) == 12


@pytest.mark.parametrize("text", ["{secret", '{"content": {"primary": "k1"}}', "[]"])
def test_a_damaged_key_file_is_neither_changed_nor_quoted(key_file: Path, text: str) -> None:
    key_file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        add_key(key_file, "content")
    assert "secret" not in str(caught.value)
    assert key_file.read_text() == text
    assert os.listdir(key_file.parent) == ["keys.json"]
