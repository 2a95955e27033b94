"""The page of sent mail: what a person looks at after having sent to the sandbox."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from outtray_sandbox.web.house import SentMail

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem; font-weight: 600 } h1 small { font-weight: 400; opacity: .6 }
details { border-top: 1px solid color-mix(in srgb, currentColor 18%, transparent); padding: .5rem 0 }
summary { display: grid; grid-template-columns: 5rem 14rem 1fr; gap: 1rem; cursor: pointer; list-style: none }
summary time, dt { opacity: .6; font-variant-numeric: tabular-nums }
summary span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
dl { display: grid; grid-template-columns: 9rem 1fr; margin: .7rem 0; font-size: .85rem }
dd { margin: 0; overflow-wrap: anywhere } pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .7rem 0 }
"""


def sent_page(title: str, mails: Iterable[SentMail]) -> str:
    """HTML with the newest first. Everything of a mail is escaped: a mail is somebody else's text."""
    shown = list(mails)[::-1]
    entries = "".join(map(_entry, shown)) or "<p>Nothing was sent yet.</p>"
    count = f"{len(shown)} mail{'' if len(shown) == 1 else 's'} sent"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)} <small>{count}</small></h1>{entries}"
    )


def _entry(mail: SentMail) -> str:
    at = datetime.fromtimestamp(mail.at, UTC)
    to = ", ".join(mail.recipients)
    facts = {"user": mail.user, "from": mail.sender, "recipients": to, **mail.ids}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f'<details><summary><time datetime="{at.isoformat()}">{at:%H:%M:%S}</time><span>{escape(to)}</span>'
        f"<span>{escape(mail.subject or '(no subject)')}</span></summary><dl>{rows}</dl>"
        f"<pre>{escape(mail.text)}</pre></details>"
    )
