"""IMAP's syntax as far as it is needed: a command's words, literals and lists (RFC 3501 4 and 9)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from imapclient.imap_utf7 import decode as from_utf7
from imapclient.imap_utf7 import encode as to_utf7

Word = Any
"""A string, or a list of words."""

_LITERAL = re.compile(rb"\{(\d+)(\+?)\}\r?\n$")
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|\x00(\d+)\x00|([()])|([^\s()"\[\x00]*\[[^\]]*\][^\s()"]*|[^\s()"\x00]+)')
_MOST = 16 * 1024 * 1024


async def read_command(reader: asyncio.StreamReader, go_on: Callable[[], Awaitable[None]]) -> list[Word] | None:
    """The words of the next command, its tag first; None at the end. Raises `ValueError` for what is no command."""
    line, literals = await reader.readline(), []
    while found := _LITERAL.search(line):
        size = int(found[1])
        if size > _MOST:
            raise ValueError("a literal that is too large")
        if not found[2]:
            await go_on()
        literals.append((await reader.readexactly(size)).decode("utf-8", "surrogateescape"))
        line = line[: found.start()] + b"\x00%d\x00" % (len(literals) - 1) + await reader.readline()
    if not line.endswith(b"\n"):
        return None
    return _nested(_tokens(line.decode("utf-8", "surrogateescape").strip(), literals))


def _tokens(text: str, literals: list[str]) -> Iterator[tuple[str, bool]]:
    """Each token, and whether it is a parenthesis."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError("this cannot be read")
        if found[3]:
            yield found[3], True
        elif found[2] is not None:
            yield literals[int(found[2])], False
        elif found[1] is not None:
            yield re.sub(r"\\(.)", r"\1", found[1]), False
        else:
            yield found[4], False
        at = found.end()
        at += len(text[at:]) - len(text[at:].lstrip(" "))


def _nested(tokens: Iterator[tuple[str, bool]]) -> list[Word]:
    stack: list[list[Word]] = [[]]
    for text, is_parenthesis in tokens:
        if not is_parenthesis:
            stack[-1].append(text)
        elif text == "(":
            stack.append([])
        elif len(stack) > 1:
            closed = stack.pop()
            stack[-1].append(closed)
        else:
            raise ValueError("a parenthesis that nothing opened")
    if len(stack) > 1:
        raise ValueError("a parenthesis that nothing closes")
    return stack[0]


def encoded_name(name: str) -> bytes:
    """A folder's name in modified UTF-7 (RFC 3501 5.1.3)."""
    return bytes(to_utf7(name))


def decoded_name(name: str) -> str:
    return str(from_utf7(name.encode()))


def quoted(data: bytes) -> bytes:
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def literal(data: bytes) -> bytes:
    return b"{%d}\r\n%b" % (len(data), data)


def number_set(text: str, highest: int) -> set[int]:
    """`1,3:5,7:*` as numbers up to `highest`. Raises `ValueError`."""
    numbers: set[int] = set()
    for part in text.split(","):
        ends = [highest if end == "*" else int(end) for end in part.split(":")]
        numbers.update(range(min(ends), min(max(ends), highest) + 1) if len(ends) == 2 else ends)
    return numbers
