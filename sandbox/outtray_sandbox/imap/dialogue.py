"""The IMAP server's side of one connection, with every answer scriptable."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from fnmatch import translate

from outtray_sandbox.imap.post import Folder, Post, Stored
from outtray_sandbox.imap.script import Rule, Stage
from outtray_sandbox.imap.search import Unsearchable, matching
from outtray_sandbox.imap.words import Word, decoded_name, encoded_name, literal, number_set, quoted, read_command
from outtray_sandbox.smtp.bearer import bearer_of
from outtray_sandbox.smtp.house import BY_TOKEN

_FIELDS = re.compile(r"BODY(?:\.PEEK)?\[HEADER(?:\.FIELDS \(([^)]*)\))?\]", re.IGNORECASE)
_STAGES: dict[str, Stage] = {
    "CAPABILITY": "capability", "STARTTLS": "starttls", "LOGIN": "login", "AUTHENTICATE": "login", "LIST": "list",
    "SELECT": "select", "EXAMINE": "select", "SEARCH": "search", "FETCH": "fetch", "APPEND": "append",
    "LOGOUT": "logout",
}  # fmt: skip


class Gone(Exception):
    """The connection ends here."""


class Dialogue:
    """One connection. `context`: STARTTLS is offered, and no login before it."""

    def __init__(
        self, post: Post, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext | None
    ) -> None:
        self.post = post
        self.user = ""
        self._reader, self._writer = reader, writer
        self._context = context
        self._secured = context is None
        self._selected: list[Stored] | None = None
        self._muted = False

    async def serve(self) -> None:
        self.post.seen["connections"] += 1
        try:
            await self._staged("connect", "*", lambda: self._say(f"* OK [CAPABILITY {self._capabilities()}] ready"))
            while not self._writer.is_closing():
                await self._next()
        except (Gone, OSError, asyncio.IncompleteReadError, ssl.SSLError):
            return
        except Exception as error:
            self.post.seen["errors"] += 1
            logging.getLogger("outtray.sandbox").error("the sandbox's IMAP server failed", exc_info=error)

    async def _next(self) -> None:
        try:
            words = await read_command(self._reader, lambda: self._say("+ go on"))
        except ValueError:
            return await self._say("* BAD this cannot be read")
        if words is None:
            raise Gone
        if len(words) < 2 or not all(isinstance(word, str) for word in words[:2]):
            return await self._say("* BAD a tag and a command are needed")
        tag, command, arguments = words[0], words[1].upper(), words[2:]
        by_uid = command == "UID" and bool(arguments)
        if by_uid:
            command, arguments = str(arguments[0]).upper(), arguments[1:]
        work = getattr(self, f"_do_{command.lower()}", None)
        if work is None or (by_uid and command not in ("SEARCH", "FETCH")):
            return await self._say(f"{tag} BAD no such command here")
        more = (by_uid,) if command in ("SEARCH", "FETCH") else ()

        async def steps() -> None:
            await work(tag, arguments, *more)

        stage = _STAGES.get(command)
        await (self._staged(stage, tag, steps) if stage else steps())
        return None

    # ── the script ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _staged(self, stage: Stage, tag: str, work: Callable[[], Awaitable[None]]) -> None:
        rule = self.post.rule(stage, self.user)
        await (work() if rule is None else self._play(rule, tag, work))

    async def _play(self, rule: Rule, tag: str, work: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(rule.late)
        if rule.silent:
            await asyncio.get_running_loop().create_future()
        if rule.drop == "before":
            raise Gone
        if rule.raw is not None:
            await self._write(rule.raw.encode("latin-1"))
        elif rule.reply is not None:
            await self._say(f"{tag} {rule.reply}")
        else:
            self._muted = rule.drop == "after"
            await work()
        if rule.drop == "after":
            raise Gone

    async def _say(self, line: str) -> None:
        await self._write(line.encode() + b"\r\n")

    async def _write(self, data: bytes) -> None:
        if not self._muted:
            self._writer.write(data)
            await self._writer.drain()

    # ── before the login ────────────────────────────────────────────────────────────────────────────────────────

    def _capabilities(self) -> str:
        post = self.post
        offered = ["IMAP4rev1", "UIDPLUS"]
        if not self._secured:
            return " ".join([*offered, "STARTTLS", "LOGINDISABLED"])
        if not self.user:
            return " ".join(
                [*offered, *(f"AUTH={each}" for each in post.mechanisms), *([] if post.login else ["LOGINDISABLED"])]
            )
        if post.special_use != "never":
            offered += ["SPECIAL-USE", "LIST-EXTENDED"]
        return " ".join([*offered, *(["X-GM-EXT-1"] if post.gmail else [])])

    async def _do_capability(self, tag: str, words: list[Word]) -> None:
        await self._say(f"* CAPABILITY {self._capabilities()}")
        await self._say(f"{tag} OK done")

    async def _do_noop(self, tag: str, words: list[Word]) -> None:
        await self._say(f"{tag} OK done")

    async def _do_logout(self, tag: str, words: list[Word]) -> None:
        await self._say("* BYE until later")
        await self._say(f"{tag} OK done")
        raise Gone

    async def _do_starttls(self, tag: str, words: list[Word]) -> None:
        if self._secured or self._context is None:
            return await self._say(f"{tag} BAD not here")
        await self._say(f"{tag} OK begin")
        await self._writer.start_tls(self._context)
        self._secured = True

    async def _do_login(self, tag: str, words: list[Word]) -> None:
        if len(words) != 2 or not self.post.login:
            return await self._say(f"{tag} BAD not like this")
        await self._log_in(tag, "LOGIN", words[0], words[1])

    async def _do_authenticate(self, tag: str, words: list[Word]) -> None:
        mechanism = str(words[0]).upper() if words else ""
        if mechanism not in self.post.mechanisms:
            return await self._say(f"{tag} NO [CANNOT] no such mechanism")
        await self._say("+ ")
        try:
            said = base64.b64decode((await self._reader.readline()).strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return await self._say(f"{tag} BAD this cannot be read")
        parts = re.split("[\x00\x01]", said)
        if mechanism == "PLAIN" and len(parts) == 3:
            return await self._log_in(tag, mechanism, parts[1], parts[2])
        if mechanism == "XOAUTH2" and len(parts) == 4:
            user, token = parts[0].removeprefix("user="), parts[1].removeprefix("auth=Bearer ")
            return await self._log_in(tag, mechanism, user, token)
        if mechanism == "OAUTHBEARER" and (bearer := bearer_of(said)):
            return await self._log_in(tag, mechanism, *bearer)
        await self._say(f"{tag} BAD this cannot be read")

    async def _log_in(self, tag: str, mechanism: str, user: str, secret: str) -> None:
        self.post.seen["logins"] += 1
        if not self._secured or self.user:
            return await self._say(f"{tag} NO [PRIVACYREQUIRED] not here")
        if self.post.knows(mechanism, user, secret):
            self.user = user
            return await self._say(f"{tag} OK [CAPABILITY {self._capabilities()}] welcome")
        if mechanism in BY_TOKEN:
            said = json.dumps({"status": "400", "schemes": "Bearer", "scope": "https://mail.google.com/"})
            await self._say(f"+ {base64.b64encode(said.encode()).decode()}")
            if (await self._reader.readline()).strip() != (b"" if mechanism == "XOAUTH2" else b"AQ=="):
                return await self._say(f"{tag} BAD another answer was due")
        # As real servers do it names whom it refuses.
        await self._say(f"{tag} NO [AUTHENTICATIONFAILED] Invalid credentials of {user} (Failure)")

    # ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _do_list(self, tag: str, words: list[Word]) -> None:
        if not self.user:
            return await self._say(f"{tag} BAD log in first")
        asked = bool(words) and isinstance(words[0], list) and "SPECIAL-USE" in [each.upper() for each in words[0]]
        names = [word for word in words if isinstance(word, str)]
        if len(names) < 2 or (asked and self.post.special_use == "never"):
            return await self._say(f"{tag} BAD not like this")
        wanted = re.compile(translate((names[0] + names[1]).replace("%", "*")))
        for folder in self.post.box(self.user):
            if wanted.match(encoded_name(folder.name).decode()) and (folder.special or not asked):
                await self._list(folder, asked)
        await self._say(f"{tag} OK done")

    async def _list(self, folder: Folder, asked: bool) -> None:
        flags = ["\\HasNoChildren"] + ([] if folder.selectable else ["\\Noselect"])
        if folder.special and (self.post.special_use == "always" or asked):
            flags.append(folder.special)
        name = encoded_name(folder.name)
        shown = literal(name) if self.post.literal_names else quoted(name)
        line = f'* LIST ({" ".join(flags)}) "{self.post.delimiter}" '.encode()
        await self._write(line + shown + b"\r\n")

    async def _do_select(self, tag: str, words: list[Word]) -> None:
        await self._open(tag, words, "READ-WRITE")

    async def _do_examine(self, tag: str, words: list[Word]) -> None:
        await self._open(tag, words, "READ-ONLY")

    async def _open(self, tag: str, words: list[Word], how: str) -> None:
        self._selected = None
        folder = self.post.folder(self.user, decoded_name(words[0])) if self.user and words else None
        if folder is None or not folder.selectable:
            return await self._say(f"{tag} NO [NONEXISTENT] no such folder")
        self._selected = self.post.listed(folder)
        await self._say(f"* {len(self._selected)} EXISTS")
        await self._say("* 0 RECENT")
        await self._say("* FLAGS (\\Seen \\Answered)")
        await self._say(f"* OK [UIDVALIDITY 1] valid\r\n* OK [UIDNEXT {folder.uid_next}] next")
        await self._say(f"{tag} OK [{how}] done")

    async def _do_append(self, tag: str, words: list[Word]) -> None:
        if not self.user or len(words) < 2:
            return await self._say(f"{tag} BAD not like this")
        mail = words[-1].encode("utf-8", "surrogateescape")
        headers = mail.partition(b"\r\n\r\n")[0] + b"\r\n"
        try:
            self.post.add(self.user, decoded_name(words[0]), headers, size=len(mail))
        except KeyError:
            return await self._say(f"{tag} NO [TRYCREATE] no such folder")
        await self._say(f"{tag} OK done")

    # ── mails ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _do_search(self, tag: str, words: list[Word], by_uid: bool) -> None:
        if self._selected is None:
            return await self._say(f"{tag} BAD select a folder first")
        try:
            found = matching(self.post, self._selected, words)
        except Unsearchable as refusal:
            return await self._say(f"{tag} {refusal}")
        numbers = (mail.uid if by_uid else number for number, mail in found)
        await self._say(" ".join(["* SEARCH", *map(str, numbers)]))
        await self._say(f"{tag} OK done")

    async def _do_fetch(self, tag: str, words: list[Word], by_uid: bool) -> None:
        if self._selected is None or len(words) != 2:
            return await self._say(f"{tag} BAD not here")
        items = words[1] if isinstance(words[1], list) else [words[1]]
        highest = max((mail.uid for mail in self._selected), default=0) if by_uid else len(self._selected)
        try:
            wanted = number_set(words[0], highest)
        except ValueError:
            return await self._say(f"{tag} BAD no numbers")
        for number, mail in enumerate(self._selected, 1):
            if (mail.uid if by_uid else number) in wanted:
                parts = [self._item(mail, item) for item in (["UID"] if by_uid else []) + items]
                if any(part is None for part in parts):
                    return await self._say(f"{tag} BAD this cannot be fetched")
                await self._write(b"* %d FETCH (%b)\r\n" % (number, b" ".join(part for part in parts if part)))
        await self._say(f"{tag} OK done")

    def _item(self, mail: Stored, item: str) -> bytes | None:
        at = datetime.fromtimestamp(mail.at, UTC).strftime("%d-%b-%Y %H:%M:%S +0000")
        simple = {"UID": str(mail.uid), "FLAGS": "()", "INTERNALDATE": f'"{at}"', "RFC822.SIZE": str(mail.size)}
        if self.post.gmail:
            simple |= {"X-GM-MSGID": str(mail.gmail_id), "X-GM-THRID": str(mail.gmail_id)}
        if item.upper() in simple:
            return f"{item.upper()} {simple[item.upper()]}".encode()
        found = _FIELDS.fullmatch(item)
        if found is None:
            return None
        block = mail.headers if found[1] is None else _only(mail.headers, found[1].lower().split())
        return re.sub(r"\.PEEK", "", item, flags=re.IGNORECASE).encode() + b" " + literal(block + b"\r\n")


def _only(headers: bytes, names: list[str]) -> bytes:
    """The header fields of these names, as they are folded."""
    fields = re.findall(rb"[^\r\n]+\r\n(?:[ \t][^\r\n]*\r\n)*", headers)
    return b"".join(each for each in fields if each.partition(b":")[0].decode("latin-1").strip().lower() in names)
