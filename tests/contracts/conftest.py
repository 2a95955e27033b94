"""The contract's fixtures: `rig` is every provider in turn, `smtp` one SMTP rig in clear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gmail_rig import COMPOSE, METADATA, SEND, GmailRig
from graph_rig import GraphRig
from provider_rigs import MemoryRig, Rig, SmtpRig

SMTP_RIGS = [
    ("clear", "asyncio"),
    ("clear", "uvloop"),
    ("starttls", "uvloop"),
    ("starttls", "asyncio"),
    ("implicit", "uvloop"),
]


GMAIL_RIGS = {"gmail-draft": ((COMPOSE, METADATA), "uvloop"), "gmail-send": ((SEND,), "asyncio")}


GRAPH_RIGS = {"graph-draft": ("draft", "uvloop"), "graph-sendmail": ("sendMail", "asyncio")}


@pytest.fixture(
    params=["memory", *SMTP_RIGS, *GMAIL_RIGS, *GRAPH_RIGS],
    ids=lambda param: param if isinstance(param, str) else "-".join(param),
)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    if request.param in GMAIL_RIGS:
        with GmailRig(tmp_path, *GMAIL_RIGS[request.param]) as gmail_rig:
            yield gmail_rig
        return
    if request.param in GRAPH_RIGS:
        with GraphRig(tmp_path, *GRAPH_RIGS[request.param]) as graph_rig:
            yield graph_rig
        return
    tls, loop = request.param
    with SmtpRig(tmp_path, tls, loop) as smtp_rig:
        yield smtp_rig


@pytest.fixture(params=SMTP_RIGS, ids="-".join)
def every_smtp(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmtpRig]:
    tls, loop = request.param
    with SmtpRig(tmp_path, tls, loop) as smtp_rig:
        yield smtp_rig


@pytest.fixture
def smtp(tmp_path: Path) -> Iterator[SmtpRig]:
    with SmtpRig(tmp_path) as smtp_rig:
        yield smtp_rig
