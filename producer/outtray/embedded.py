"""The embedded servers, for a client whose settings name none: started, migrated, with a first app.

Whoever offers them names a context manager from settings to settings in the entry points `outtray.embedded`: the
sandbox does, and the producer need not know it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import entry_points

import psycopg

from outtray.revision import newest_revision, revision
from outtray_schema.database import connect_options, conninfo
from outtray_schema.errors import SettingsError
from outtray_schema.ids import new_id
from outtray_schema.settings import Settings

Embedded = Callable[[Settings], AbstractContextManager[Settings]]

# Inserts the first app of an empty installation; locks nothing that exists.
FIRST_APP = """
INSERT INTO outtray.app (id, name) SELECT %(id)s, %(name)s WHERE NOT EXISTS (SELECT FROM outtray.app)
ON CONFLICT (name) DO NOTHING
"""


@contextmanager
def embedded_services(settings: Settings) -> Iterator[Settings]:
    """Settings that lead to running servers. Raises `SettingsError` with the cure if nobody offers them."""
    with _offered()(settings) as ready:
        with psycopg.connect(conninfo(ready), autocommit=True, **connect_options(ready, "producer")) as connection:
            if (revision(connection) or "") < newest_revision():
                from outtray_schema.migrate import migrate  # noqa: PLC0415 - slow to import, and needed once

                migrate(ready)
            connection.execute(FIRST_APP, {"id": new_id(), "name": settings.app})
        yield ready


def _offered() -> Embedded:
    for offered in entry_points(group="outtray.embedded"):
        embedded: Embedded = offered.load()
        return embedded
    raise SettingsError(
        "OUTTRAY_DATABASE_URL and OUTTRAY_REDIS_URL are not set, and the embedded servers are not installed. "
        "Set both, or run: pip install 'outtray[sandbox]' (docs/settings.md)"
    )
