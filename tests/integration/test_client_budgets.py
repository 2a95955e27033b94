"""Budgets by the client and by command line: made, joined by name or by tenant, exact, raised and taken away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from command_line import CommandLine
from inside import Inside, inside
from outtray import NotFound, Outtray, Refused, UsageRow
from outtray_schema.consent import SCOPES
from world import run

SECRET = "canary-client-secret"


@pytest.fixture
def client(database):
    with Outtray(database.settings, actor="tester") as client:
        client.apps.add("default")
        yield client


def test_a_tenants_budget_is_microsofts_formula_or_what_the_admin_centre_says(client):
    assert client.budgets.add(tenant="contoso.example", licences=10).per_day == 12_006
    assert client.budgets.set("contoso.example", external=9_000).per_day == 9_000
    trial = client.budgets.add("trial", trial=True)
    assert (trial.measure, trial.per_day, trial.tenant) == ("external", 5_000, None)
    assert [each.name for each in client.budgets.list()] == ["contoso.example", "trial"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "x"}, "limit"),
        ({"name": "x", "external": 5, "trial": True}, "limit"),
        ({"external": 5}, "name"),
        ({"name": "x", "licences": 0}, "licences"),
        ({"name": "x", "external": -1}, "external"),
        ({"tenant": "common", "external": 5}, "tenant"),
    ],
)
def test_a_budget_that_says_too_little_or_too_much_is_refused(client, fields, field):
    with pytest.raises(Refused) as refused:
        client.budgets.add(fields.pop("name", None), **fields)
    assert [problem.field for problem in refused.value.problems] == [field]


def test_a_name_is_taken_once_and_a_measure_stays(client):
    client.budgets.add("contoso", external=5)
    with pytest.raises(Refused, match="there is a budget 'contoso' already"):
        client.budgets.add("contoso", external=6)
    with pytest.raises(Refused, match="this budget counts external"):
        client.budgets.set("contoso", messages=6)
    with pytest.raises(NotFound):
        client.budgets.set("fabrikam", messages=6)
    with pytest.raises(NotFound):
        client.budgets.remove("fabrikam")


# ── joining ───────────────────────────────────────────────────────────────────────────────────────────────────────


def connected(client: Outtray, address: str, provider_app: str) -> Any:
    return client.mailboxes.add_microsoft(
        address, refresh_token="canary", provider_app=provider_app, scopes=[*SCOPES["microsoft"]["compose"]]
    )


def test_mailboxes_of_the_tenants_provider_apps_join_by_themselves_before_and_after(client):
    client.provider_apps.add("entra", "microsoft", client_id="a", secret=SECRET, tenant="t-1")
    client.provider_apps.add("other", "microsoft", client_id="b", secret=SECRET, tenant="t-2")
    ann, eve = connected(client, "ann@example.org", "entra"), connected(client, "eve@example.org", "other")
    made = client.budgets.add("contoso", tenant="t-1", external=100)
    assert made.mailboxes == 1
    bob = connected(client, "bob@example.org", "entra")
    budgets = {box.id: client.mailboxes.get(box.id).budgets for box in (ann, bob, eve)}
    assert budgets == {ann.id: ("contoso",), bob.id: ("contoso",), eve.id: ()}


def test_a_mailbox_leaves_and_a_budget_that_there_is_not_changes_nothing(client):
    client.budgets.add("contoso", external=100)
    box = client.mailboxes.add_smtp("ann@example.org", host="smtp.example.org", password="x")
    assert client.mailboxes.set(box.id, budget="contoso").budgets == ("contoso",)
    assert client.mailboxes.set(box.id, leave_budget="contoso").budgets == ()
    with pytest.raises(NotFound, match="does not share"):
        client.mailboxes.set(box.id, leave_budget="contoso")
    with pytest.raises(NotFound, match="no budget 'fabrikam'"):
        client.mailboxes.set(box.id, limits={"messages": 3}, budget="fabrikam")
    assert client.mailboxes.get(box.id).limits.messages == 500, "nothing of it was done"


def test_what_a_newcomer_used_today_comes_with_it_once(client):
    client.budgets.add("contoso", recipients=100)
    box = client.mailboxes.add_smtp("ann@example.org", host="smtp.example.org", password="x")
    now = datetime.now(UTC)
    rows = [UsageRow(now - timedelta(hours=h), messages=1, recipients=5, external=1) for h in (1, 3, 23, 25)]
    client.mailboxes.import_usage(box.id, rows)
    for _ in range(2):
        client.mailboxes.set(box.id, budget="contoso")
    (budget,) = client.budgets.list()
    assert (budget.used, budget.mailboxes) == (15, 1)


# ── spending ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def tenant(office: Inside, external: int, boxes: int) -> list[UUID]:
    office.client.budgets.add("contoso", external=external)
    made = [await office.mailbox() for _ in range(boxes)]
    for box in made:
        office.client.mailboxes.set(box, budget="contoso")
    return made


def test_all_mailboxes_together_send_exactly_the_budget_and_a_raised_one_lets_them_go_on(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            boxes = await tenant(office, 20, 3)
            for box in boxes:
                office.enqueue(box, 6, to=["a@example.net", "b@example.net"])
            await office.until_idle()
            assert len(office.accepted) == 10, "two external recipients each"
            waiting = await office.w.rows("SELECT id FROM outtray.message WHERE state = 'queued'")
            reasons = {office.client.explain(row["id"]).limit for row in waiting}
            assert "budget contoso" in reasons
            assert office.client.budgets.set("contoso", external=25).used == 20
            await office.until_idle()
            assert len(office.accepted) == 12
            office.client.budgets.remove("contoso")
            await office.until_idle()
            assert len(office.accepted) == 18

    run(scene())


def test_a_mailbox_that_leaves_goes_on_at_once(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            (box,) = await tenant(office, 2, 1)
            office.enqueue(box, 3)
            await office.until_idle()
            assert len(office.accepted) == 2
            office.client.mailboxes.set(box, leave_budget="contoso")
            await office.until_idle()
            assert len(office.accepted) == 3

    run(scene())


# ── by command line ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_by_command_line(database):
    outtray = CommandLine.on(database.settings)
    outtray.ok("app", "add", "default")
    made = outtray.ok("budget", "add", "--tenant", "contoso.example", "--external", "300", "--json").json
    fields = {"tenant": "contoso.example", "measure": "external", "per_day": 300, "used": 0, "mailboxes": 0}
    assert made == {"name": "contoso.example"} | fields
    outtray("mailbox", "add", "smtp", "ann@example.org", "--host", "h.example", "--password-stdin", stdin="secret\n")
    joined = outtray.ok("mailbox", "set", "ann@example.org", "--budget", "contoso.example", "--json").json
    assert joined["budgets"] == ["contoso.example"]
    assert "contoso.example" in outtray.ok("mailbox", "show", "ann@example.org").out
    assert outtray.ok("budget", "list", "--json").json[0]["mailboxes"] == 1
    listed = outtray.ok("budget", "list").out.splitlines()[1].split()
    assert listed == ["contoso.example", "contoso.example", "external", "300", "0", "1"]
    assert outtray.ok("budget", "set", "contoso.example", "--licences", "1", "--json").json["per_day"] == 10_000
    left = outtray.ok("mailbox", "set", "ann@example.org", "--leave-budget", "contoso.example", "--json").json
    assert left["budgets"] == []
    assert outtray.ok("budget", "remove", "contoso.example", "--json").json["removed"] is True
    assert outtray("budget", "add", "x", "--json").error["problems"][0]["field"] == "limit"


def test_paces_of_a_provider_app_and_forgetting_by_command_line(database):
    outtray = CommandLine.on(database.settings)
    outtray.ok("app", "add", "default")
    add = ("provider-app", "add", "google", "--client-id", "123", "--from-stdin", "--json")
    assert outtray.ok(*add, stdin="secret").json["units_per_minute"] is None
    kept = outtray.ok(
        "provider-app", "set", "google", "--units-per-minute", "1200000", "--user-units-per-minute", "6000", "--json"
    ).json
    assert (kept["units_per_minute"], kept["user_units_per_minute"], kept["per_minute"]) == (1_200_000, 6_000, None)
    assert outtray("provider-app", "set", "google").code == 2
    outtray("mailbox", "add", "smtp", "ann@example.org", "--host", "h.example", "--password-stdin", stdin="secret\n")
    with database.connect() as connection:
        connection.execute(
            "UPDATE outtray.mailbox SET learned = jsonb_build_object('messages', jsonb_build_object("
            "'limit', 40, 'used', 40, 'at', outtray.outtray_now()))"
        )
    shown = outtray.ok("mailbox", "show", "ann@example.org").out
    assert "40 messages in 24 h" in shown and "refused at 40 messages" in shown
    outtray.ok("mailbox", "set", "ann@example.org", "--forget-learned")
    shown = outtray.ok("mailbox", "show", "ann@example.org").out
    assert "500 messages in 24 h" in shown and "refused" not in shown
