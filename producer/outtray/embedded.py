"""Finding the embedded servers: whoever offers them names a context manager in the entry points `outtray.embedded`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import entry_points

from outtray_schema.errors import SettingsError
from outtray_schema.settings import Settings

Embedded = Callable[[Settings], AbstractContextManager[Settings]]


def embedded_services(settings: Settings) -> AbstractContextManager[Settings]:
    """Running servers for settings that name none. Raises `SettingsError` with the cure if nobody offers them."""
    for offered in entry_points(group="outtray.embedded"):
        use: Embedded = offered.load()
        return use(settings)
    raise SettingsError(
        "OUTTRAY_DATABASE_URL and OUTTRAY_REDIS_URL are not set, and the embedded servers are not installed. "
        "Set both, or run: pip install 'outtray[sandbox]' (docs/settings.md)"
    )
