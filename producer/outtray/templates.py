"""Templates: stored by name, in versions that never change. What is made from one is frozen when it is enqueued.

Rendering needs Jinja2, the extra `templates`; an app that enqueues finished messages does without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray.door import Door
from outtray.plan import Plan, Row, rows
from outtray_schema import bindings
from outtray_schema.errors import NotFound, Problem, Refused, SettingsError

if TYPE_CHECKING:
    from outtray.templating import Compiled, Source

# Reads one version of a template, or the latest; locks nothing.
FIND = """
SELECT t.name, t.version, t.source, t.variables, t.actor, t.created_at FROM outtray.template t
WHERE t.app_id = %(app)s AND t.name = %(name)s AND (%(version)s::int IS NULL OR t.version = %(version)s)
ORDER BY t.version DESC LIMIT 1
"""

# Reads the latest version of each template of an app; locks nothing.
LIST = """
SELECT DISTINCT ON (t.name) t.name, t.version, t.variables, t.actor, t.created_at FROM outtray.template t
WHERE t.app_id = %(app)s ORDER BY t.name, t.version DESC
"""

# Inserts a version, and tells of it; nothing if somebody else has just taken its number. Locks what it inserts.
ADD = """
WITH added AS (
    INSERT INTO outtray.template (app_id, name, version, source, variables, actor)
    VALUES (%(app)s, %(name)s, %(version)s, %(source)s, %(variables)s, %(actor)s)
    ON CONFLICT DO NOTHING RETURNING name, version, variables, actor, created_at),
told AS (
    INSERT INTO outtray.event (app_id, kind, data)
    SELECT %(app)s, 'template.added', %(data)s FROM added),
noted AS (
    INSERT INTO outtray.journal (kind, actor, detail) SELECT 'template added', %(actor)s, %(data)s FROM added)
SELECT * FROM added
"""

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@([1-9][0-9]{0,8}))?")
_SUBJECT = re.compile(r"subject:[ \t]*(.*?)[ \t]*\r?\n(?:[ \t]*\r?\n)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TemplateView:
    """One version of a template. `source` holds its parts, where it was asked for."""

    name: str
    version: int
    variables: tuple[str, ...]
    actor: str
    created_at: datetime
    created: bool = False
    """Whether this call made it."""
    source: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def full_name(self) -> str:
        """`intro@3`: what a message made from it remembers."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A template ready to render."""

    full_name: str
    compiled: Compiled = field(repr=False)


def add(
    door: Door, name: str, *, subject: str | None = None, text: str | None = None, html: str | None = None
) -> Plan[TemplateView]:
    """Store a template, or a new version of it; what is the same as the latest makes none. Raises `Refused`.

    `text` and `html` are Jinja2, cut down (docs/templates.md). Without a `subject`, it is for a message that answers
    the one before it.
    """
    if "@" in name or _NAME.fullmatch(name) is None:
        raise Refused(Problem("name", "has 1 to 64 letters, digits, dots, hyphens and underscores"))
    engine = _engine()
    source = engine.Source(subject, text, html)
    compiled = engine.Compiled(source)
    app_id = yield from door.app()
    while True:
        found = yield from rows(FIND, app=app_id, name=name, version=None)
        if found and (latest := _view(door, app_id, found[0])).source == source.parts():
            return latest
        version = found[0]["version"] + 1 if found else 1
        sealed = door.vault.content.encrypt(
            json.dumps(source.parts(), ensure_ascii=False).encode(), bindings.template(app_id, name, version)
        )
        added = yield from rows(
            ADD,
            app=app_id,
            name=name,
            version=version,
            source=sealed,
            variables=list(compiled.variables),
            actor=door.actor,
            data=Jsonb({"template": f"{name}@{version}"}),
        )
        if added:
            return _seen(added[0], created=True, source=source.parts())


def list_all(door: Door) -> Plan[list[TemplateView]]:
    """The latest version of each of the app's templates, by name."""
    app_id = yield from door.app()
    return [_seen(row) for row in (yield from rows(LIST, app=app_id))]


def show(door: Door, name: str) -> Plan[TemplateView]:
    """A template with its source: the latest version, or `name@version`. Raises `NotFound`."""
    app_id = yield from door.app()
    match = _NAME.fullmatch(name)
    found: list[Row] = []
    if match is not None:
        version = int(match[2]) if match[2] else None
        found = yield from rows(FIND, app=app_id, name=match[1], version=version)
    if not found:
        raise NotFound(f"there is no template {name!r}; see `outtray template list`")
    return _view(door, app_id, found[0])


def preview(door: Door, name: str, row: Mapping[str, Any]) -> Plan[dict[str, str]]:
    """What a row makes of a template: `subject`, `text`, `html`, as far as it has them.

    Raises `NotFound`, and `InvalidMessage` naming a variable that is missing.
    """
    loaded = yield from load(door, [name])
    return loaded[0].compiled.render(row)


def load(door: Door, names: Sequence[str]) -> Plan[list[Loaded]]:
    """Templates by their names, ready to render. Raises `NotFound`; `SettingsError` without Jinja2."""
    engine = _engine()
    found = []
    for name in names:
        view = yield from show(door, name)
        found.append(Loaded(view.full_name, engine.Compiled(engine.Source(**view.source))))
    return found


def read_source(text: str, html: str | None = None) -> Source:
    """A template from a file: a first line `Subject: …`, if it has one, then the text.

    A file that holds HTML is given as `html`; `text` may then be empty.
    """
    subject = None
    if match := _SUBJECT.match(text):
        subject, text = match[1], text[match.end() :]
    elif html is not None and (match := _SUBJECT.match(html)):
        subject, html = match[1], html[match.end() :]
    source: Source = _engine().Source(subject or None, text or None, html)
    return source


def _view(door: Door, app_id: UUID, row: Row) -> TemplateView:
    opened = door.vault.content.decrypt(row["source"], bindings.template(app_id, row["name"], row["version"]))
    return _seen(row, source=json.loads(opened))


def _seen(row: Row, created: bool = False, source: Mapping[str, str] | None = None) -> TemplateView:
    variables = tuple(row["variables"])
    return TemplateView(
        row["name"], row["version"], variables, row["actor"], row["created_at"], created, dict(source or {})
    )


def _engine() -> Any:
    try:
        from outtray import templating  # noqa: PLC0415 - only who renders has it installed
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "markupsafe"):
            raise
        raise SettingsError("templates need Jinja2. Run: pip install 'outtray[templates]'") from None
    return templating
