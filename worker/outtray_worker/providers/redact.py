"""Reply texts become evidence only after redaction: servers echo addresses, log-in links and sometimes what we sent."""

from __future__ import annotations

import re

from outtray_worker.providers import Mail

_LONGEST = 300
_RULES = (
    # Google's 534 carries a log-in link with a token between the brackets (support.google.com, seen 2026-11).
    (re.compile(r"<[^<>]*>"), "<…>"),
    (re.compile(r"\S*@\S*"), "<address>"),
    (re.compile(r"[?#]\S+"), "?…"),
    (re.compile(r"[A-Za-z0-9+/=_-]{32,}"), "<token>"),
    (re.compile(r"[^\x20-\x7e\xa0-\ud7ff…]+"), " "),
)


class Redactor:
    """Takes out what looks private, and every word in `secrets` wherever it stands, whatever its case."""

    def __init__(self, *secrets: str) -> None:
        self._secrets = sorted({word.casefold() for word in secrets if len(word) >= 3}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """`text` without addresses, links' parameters, long tokens, our secrets or control characters; 300 at most."""
        folded = text.casefold()
        for word in self._secrets:
            if word in folded:
                text = re.sub(re.escape(word), "<secret>", text, flags=re.IGNORECASE)
        for pattern, stand_in in _RULES:
            text = pattern.sub(stand_in, text)
        return text.strip()[:_LONGEST]


def names_of(mail: Mail) -> tuple[str, ...]:
    """What must not stand in evidence: the addresses of a mail, and their local parts, which servers quote alone."""
    addresses = (mail.sender, *mail.recipients)
    return tuple(part for address in addresses for part in (address, address.rpartition("@")[0]))
