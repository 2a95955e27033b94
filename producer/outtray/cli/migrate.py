"""`outtray migrate`: bring the database's tables to this version."""

from __future__ import annotations

from outtray.cli.options import Json, examples
from outtray.cli.screen import done, print_json
from outtray.cli.session import database, services
from outtray.revision import newest_revision, revision

EXAMPLES = examples("outtray migrate", "outtray migrate --json")


def migrate(as_json: Json = False) -> None:
    """Bring the database to this version.

    Safe to run at any time, and from several places at once.
    """
    from outtray_schema.migrate import migrate as bring_to_newest

    with services() as settings:
        with database(settings) as connection:
            before = revision(connection)
        bring_to_newest(settings)
    now = newest_revision()
    if as_json:
        print_json({"before": before, "now": now, "changed": before != now})
    elif before == now:
        done(f"The database is at migration {now} already.")
    else:
        done(f"The database went from {before or 'empty'} to migration {now}.")
