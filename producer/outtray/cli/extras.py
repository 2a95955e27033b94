"""Parts that are installed by choice: a command that needs one says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from outtray.cli.exits import UsageError

_OURS = ("outtray", "outtray_schema", "outtray_worker", "outtray_sandbox")


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of an extra's libraries. Raises `UsageError` that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _OURS:
            raise
        raise UsageError(f"this command needs {missing}. Run: pip install 'outtray[{extra}]'") from None
