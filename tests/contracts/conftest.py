"""The contract's fixtures: `rig` is every provider in turn, `smtp` one SMTP rig in clear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from provider_rigs import MemoryRig, Rig, SmtpRig

SMTP_RIGS = [
    ("clear", "asyncio"),
    ("clear", "uvloop"),
    ("starttls", "uvloop"),
    ("starttls", "asyncio"),
    ("implicit", "uvloop"),
]


@pytest.fixture(params=["memory", *SMTP_RIGS], ids=lambda param: param if isinstance(param, str) else "-".join(param))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
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
