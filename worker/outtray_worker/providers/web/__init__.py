"""HTTP for the providers that speak it, Gmail and Microsoft Graph: one attempt is one request on the wire.

    web = Web(settings)                            one per process, shared; its connections are made on first use
    request = Request("POST", url, headers, body)  `body`: bytes, or a `Stream` of known length; none at all: None
    answer = await web.ask(request, within)        before the handover or for reading; raises `NoAnswer`, `ContentLost`
    answer = await web.commit(request, begin_by, answer_by)   the handover: an `Answer`, or the `Outcome` without one
    answer.status, answer.headers, answer.json()
    await web.close()                              at the process's end; a later call connects anew

`commit` looks at `begin_by` once the connection stands, right before the first byte, and knows whether that byte was
written: before it everything is definite (`NotBegun`, `Parked` for the connection), after it all but a whole answer is
`Unknown`. It never decides what an answer means. Nothing follows redirects, keeps cookies, unpacks or sends again.

A provider keeps what answers mean as data: `rows.Row`, found by `rows.Table.classify(Signal(…))`, whose `unknown-…`
rows are counted by `signals.Signals` (`providers/gmail/answers.py` shows the use). No error of aiohttp may leave this
package: its text holds the URL, and upload URLs are secrets.

Only `Web` loads aiohttp, 0.15 s of CPU (measured 2026-11): a process that never meets HTTP does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from outtray_worker.providers.web.exchange import Answer, ContentLost, NoAnswer, Request, Stream

if TYPE_CHECKING:
    from outtray_worker.providers.web.client import Web

__all__ = ["Answer", "ContentLost", "NoAnswer", "Request", "Stream", "Web"]


def __getattr__(name: str) -> Any:
    if name != "Web":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.client").Web
