"""The pages about providers: what they name is what the code asks for, and every link leads somewhere."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from outtray_schema.consent import SCOPES, Issuer, Reach
from outtray_schema.mime import PROVIDER_SIZE
from outtray_schema.settings import load_settings
from outtray_worker.providers.gmail.scopes import PREFIX, grants_of
from outtray_worker.providers.late import LateWeb
from outtray_worker.providers.web.signals import Signals
from outtray_worker.quotas.units import units_of_handover
from outtray_worker.reconcile.schedule import GOING_ON, SCHEDULES
from outtray_worker.serve import default_providers

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]
REGISTERING: dict[Issuer, str] = {"google": "register-google.md", "microsoft": "register-microsoft.md"}
TITLES = {"gmail": "Gmail", "microsoft": "Microsoft", "smtp": "SMTP"}


def read(page: str) -> str:
    return (DOCS / page).read_text()


def row(page: str, begin: str) -> str:
    """The first row of a page's tables whose first cell begins like this."""
    found = re.search(rf"^ *\| *{re.escape(begin)}.*$", read(page), re.MULTILINE)
    assert found is not None, f"{page} has no row {begin!r}"
    return found[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_page_is_found_from_the_index() -> None:
    index = read("README.md")
    assert [page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name})" not in index] == []


@pytest.mark.parametrize("issuer", REGISTERING)
@pytest.mark.parametrize("reach", ["send", "compose", "full", "smtp"])
def test_the_registering_page_names_every_scope_that_is_asked_for(issuer: Issuer, reach: Reach) -> None:
    begin = "`--smtp`" if reach == "smtp" else f"`{reach}`"
    told = row(REGISTERING[issuer], begin)
    asked = [scope.removeprefix("https://www.googleapis.com/auth/") for scope in SCOPES[issuer][reach]]
    named = [scope.rpartition("outlook.office.com/")[2] for scope in asked]
    if "the same" in told:  # `full` adds to the row before it
        named = [scope for scope in named if scope not in SCOPES[issuer]["compose"]]
    assert [scope for scope in named if f"`{scope}`" not in told] == []


@pytest.mark.parametrize(
    ("granted", "requests"),
    [("send", 1), ("send metadata", 2), ("compose", 2), ("compose metadata", 3), ("modify", 3)],
)
def test_the_requests_of_a_gmail_route_are_those_that_its_units_pay_for(granted: str, requests: int) -> None:
    scopes = [f"{PREFIX}gmail.{name}" for name in granted.split()]
    grants = grants_of(frozenset(scopes))
    assert requests == 1 + grants.drafts + grants.see_messages
    assert units_of_handover("gmail", scopes) == 100 + 10 * grants.drafts + 20 * grants.see_messages
    begin = "`compose` + `readonly`, `modify`" if granted == "modify" else " + ".join(f"`{n}`" for n in granted.split())
    cell = row("scopes.md", begin).split("|")[2]
    assert sum(int(number) for number in re.findall(r"\d+", cell)) == requests


def _in_words(wait: timedelta) -> str:
    return f"{wait.seconds // 60} min" if wait.seconds >= 60 else f"{wait.seconds} s"


@pytest.mark.parametrize("provider", TITLES)
def test_the_scopes_page_tells_when_is_looked_and_when_silence_counts(provider: str) -> None:
    schedule = SCHEDULES[provider]
    tables = read("scopes.md").partition('What "settling" is')[2]
    told = re.search(rf"^\| {TITLES[provider]} \| (.*?) \| (\d+) minutes", tables, re.MULTILINE)
    assert told is not None
    assert told[1] == ", ".join(map(_in_words, schedule.steps))
    assert timedelta(minutes=int(told[2])) == schedule.settle
    assert GOING_ON[:2] == (timedelta(minutes=15), timedelta(hours=1))


def test_the_features_page_has_a_column_and_a_page_for_every_provider() -> None:
    settings = load_settings()
    assert set(TITLES) == set(default_providers(settings, LateWeb(settings), Signals()))
    page = read("features.md")
    for name, title in TITLES.items():
        assert title in page.splitlines()[2]
        assert (DOCS / f"{name}.md").exists()
    assert f"{PROVIDER_SIZE['gmail']:,} bytes" in row("features.md", "**largest mail**")
    assert f"{PROVIDER_SIZE['microsoft'] >> 20} MiB" in row("features.md", "**largest mail**")
