"""`outtray keys`: the key file that opens what is stored. Made once, kept safe, changed in steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from psycopg.types.json import Jsonb
from rich.markup import escape

from outtray.cli import options
from outtray.cli.exits import UsageError
from outtray.cli.options import Json, examples, flag
from outtray.cli.screen import count, done, errors, hint, out, print_json, table
from outtray.cli.session import database, ready_services
from outtray.door import this_user
from outtray.noting import NOTE
from outtray_schema import keyfile, sealing
from outtray_schema.rotation import keys_in_use, rotate
from outtray_schema.settings import Settings, load_settings
from outtray_schema.vault import load_vault

group = options.group("Key rings: what encrypts content, addresses and credentials.")

RingName = Literal["content", "addresses", "credentials"]
File = Annotated[Path, typer.Argument(metavar="FILE", help="The key file.")]
OwnFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="The key file. Default: OUTTRAY_KEY_FILE.", show_default=False),
]
Ring = Annotated[RingName, typer.Argument(metavar="RING", help="content, addresses or credentials.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="A key's id, like k2; `outtray keys list` shows them.")]


@group.command("new", epilog=examples("outtray keys new /etc/outtray/keys.json"))
def new(file: File, as_json: Json = False) -> None:
    """Make a key file, mode 0600.

    Back it up: without it nothing that is stored can be read.
    """
    keyfile.new_key_file(file)
    if as_json:
        print_json({"file": file})
        return
    done(
        f"{escape(str(file))} made, readable by you alone. [bold]Back it up[/]: without it nothing stored can be read."
    )
    hint(f"export OUTTRAY_KEY_FILE={file.absolute()}")


@group.command("producer", epilog=examples("outtray keys producer keys.json producer-keys.json"))
def producer(
    file: File,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The file to make.")],
    as_json: Json = False,
) -> None:
    """Derive a file for processes that only enqueue.

    With it they can neither store nor read a mailbox's password.
    """
    keyfile.without_credentials(file, target)
    if as_json:
        print_json({"file": target, "rings": ["content", "addresses"]})
        return
    done(f"{escape(str(target))} made, without the credentials ring.")


@group.command("public", epilog=examples("outtray keys public"))
def public(as_json: Json = False) -> None:
    """Show the public key with which other apps' Celery seals mail.

    It is no secret. `outtray intake` opens what was sealed with it.
    """
    key = sealing.public_text(load_vault(load_settings()).intake_key)
    if as_json:
        print_json({"public_key": key})
        return
    out.print(key, soft_wrap=True)


@group.command("add", epilog=examples("outtray keys add content", "outtray keys add credentials --standby"))
def add(
    ring: Ring,
    file: OwnFile = None,
    standby: Annotated[
        bool, flag("--standby", text="Only open with it as yet: a first step where processes restart one by one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a key to a ring and seal new values under it.

    Give every process the changed file and restart it, then rotate. Where processes restart one by one, begin with
    --standby everywhere, then `keys use`.
    """
    path = _own_file(file)
    key_id = keyfile.add_key(path, ring, primary=not standby)
    if as_json:
        print_json({"ring": ring, "key": key_id, "primary": not standby})
        return
    done(f"Key [bold]{key_id}[/] added to {ring}. Give every process the changed file and restart it; then:")
    hint(f"outtray keys use {ring} {key_id}" if standby else f"outtray keys rotate {ring}")


@group.command("use", epilog=examples("outtray keys use content k2"))
def use(ring: Ring, key_id: KeyId, file: OwnFile = None, as_json: Json = False) -> None:
    """Seal new values of a ring under this key."""
    keyfile.make_primary(_own_file(file), ring, key_id)
    if as_json:
        print_json({"ring": ring, "key": key_id, "primary": True})
        return
    done(f"New values of {ring} are sealed under [bold]{key_id}[/] once each process is restarted; then:")
    hint(f"outtray keys rotate {ring}")


@group.command("rotate", epilog=examples("outtray keys rotate content", "outtray keys rotate credentials --batch 100"))
def rotate_ring(
    ring: Ring,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=10_000, help="Rows re-encrypted in one transaction.")
    ] = 500,
    as_json: Json = False,
) -> None:
    """Re-encrypt what older keys sealed.

    In small committed batches, beside live work; stop it and go on at any time.
    """
    changed = 0
    with ready_services() as settings, database(settings) as connection, errors.status("rotating …") as status:
        for rows in rotate(connection, load_vault(settings), ring, batch=batch):
            changed += rows
            status.update(f"{count(changed, 'value')} re-encrypted …")
        told = {"ring": ring, "values": changed}
        connection.execute(NOTE, {"mailbox": None, "kind": "keys rotated", "actor": this_user(), "detail": Jsonb(told)})
    if as_json:
        print_json({"ring": ring, "rows": changed})
        return
    done(f"{count(changed, 'value')} of {ring} re-encrypted. An older key can go once `outtray keys list` says unused:")
    hint(f"outtray keys drop {ring} KEY")


@group.command("drop", epilog=examples("outtray keys drop content k1"))
def drop(
    ring: Ring,
    key_id: KeyId,
    file: OwnFile = None,
    as_json: Json = False,
) -> None:
    """Remove a key that seals nothing any more.

    Refused while any stored value still needs it.
    """
    with ready_services() as settings:
        used = _uses(settings, ring).get(key_id, 0)
    if used:
        raise UsageError(f"{count(used, 'value')} still need {key_id} of {ring}. Run first: outtray keys rotate {ring}")
    keyfile.drop_key(_own_file(file), ring, key_id)
    if as_json:
        print_json({"ring": ring, "dropped": key_id})
        return
    done(f"Key {escape(key_id)} of {ring} dropped.")


@group.command("list", epilog=examples("outtray keys list"))
def show_all(as_json: Json = False) -> None:
    """Show each ring's keys and what they sealed.

    Counts stored values, so it reads whole tables.
    """
    with ready_services() as settings:
        rings = {ring: _uses(settings, ring) for ring in _own_rings(settings)}
        primaries = {ring: load_vault(settings).ring(ring).primary for ring in rings}
    if as_json:
        print_json({ring: {"primary": primaries[ring], "values": uses} for ring, uses in rings.items()})
        return
    page = table("ring", "key", "#values", "")
    for ring, uses in rings.items():
        for key_id, values in sorted(uses.items()):
            page.add_row(ring, escape(key_id), f"{values:,}", _use_of(key_id == primaries[ring], values))
    out.print(page)


def _use_of(is_primary: bool, values: int) -> str:
    if is_primary:
        return "seals new values"
    return "still needed: rotate" if values else "unused: may be dropped"


def _own_rings(settings: Settings) -> list[str]:
    has_credentials = load_vault(settings).has_credentials
    return [ring for ring in keyfile.RINGS if ring != "credentials" or has_credentials]


def _uses(settings: Settings, ring: str) -> dict[str, int]:
    with database(settings) as connection:
        return keys_in_use(connection, load_vault(settings), ring)


def _own_file(file: Path | None) -> Path:
    """The key file that is meant: the flag's, the setting's, or the embedded default's."""
    settings = load_settings()
    named = file or settings.key_file
    if named is not None:
        return named
    if settings.keys is not None:
        raise UsageError("the keys come from OUTTRAY_KEYS; name the file that it was read from with --file FILE")
    if not settings.embedded:
        raise UsageError("OUTTRAY_KEY_FILE is not set; name the key file with --file FILE")
    return settings.data_folder / "keys.json"
