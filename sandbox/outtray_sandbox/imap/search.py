"""SEARCH as far as a look needs it: what an index that may lag finds, by substring, in any case (RFC 3501 6.4.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from outtray_sandbox.imap.post import Post, Stored
from outtray_sandbox.imap.words import Word

Fits = Callable[[Stored], bool]
_ENVELOPE = {"message-id", "subject", "from", "to", "cc", "date", "in-reply-to"}


class Unsearchable(Exception):
    """The tagged answer to a search that this server does not carry out."""


def matching(post: Post, mails: list[Stored], words: list[Word]) -> Iterator[tuple[int, Stored]]:
    """The mails that fit, with their numbers. Raises `Unsearchable`."""
    words = words[2:] if words and str(words[0]).upper() == "CHARSET" else words
    fits = list(_criteria(post, words))
    known = [(number, mail) for number, mail in enumerate(mails, 1) if mail.found_from <= post.now()]
    return ((number, mail) for number, mail in known if all(each(mail) for each in fits))


def _criteria(post: Post, words: list[Word]) -> Iterator[Fits]:
    left = list(words)
    if not left:
        raise Unsearchable("BAD nothing to search for")
    while left:
        key = str(left.pop(0)).upper()
        needed = {"ALL": 0, "HEADER": 2, "SINCE": 1, "X-GM-RAW": 1}.get(key)
        if needed is None or len(left) < needed or (key == "X-GM-RAW" and not post.gmail):
            raise Unsearchable("BAD [CLIENTBUG] no such search here")
        arguments = [str(left.pop(0)) for _ in range(needed)]
        if key == "HEADER":
            yield _by_header(post, *arguments)
        elif key == "SINCE":
            yield _since(arguments[0])
        elif key == "X-GM-RAW":
            yield _by_gmail(arguments[0])


def _by_header(post: Post, name: str, text: str) -> Fits:
    if not post.searches_headers and name.lower() not in _ENVELOPE:
        raise Unsearchable("NO [CANNOT] this header is in no index")
    return lambda mail: any(text.lower() in value.lower() for value in mail.values(name))


def _since(date: str) -> Fits:
    since = datetime.strptime(date, "%d-%b-%Y").replace(tzinfo=UTC).timestamp()
    return lambda mail: mail.at >= since


def _by_gmail(query: str) -> Fits:
    """Only `rfc822msgid:` (Gmail's page of IMAP extensions, 2026-11)."""
    operator, _, wanted = query.partition(":")
    if operator != "rfc822msgid":
        raise Unsearchable("BAD Could not parse command")
    return lambda mail: any(value.strip("<>") == wanted.strip("<>") for value in mail.values("Message-ID"))
