"""`outtray mailbox connect`, `disconnect`, `revoke`, `consents`: mailboxes that log in by their owner's consent.

The consent itself needs the providers' libraries, which come with the worker: it contributes `connect` (`commands`).
"""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, Protocol

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli import options
from outtray.cli.exits import Exit, UsageError
from outtray.cli.mailboxes import Mailbox, limits_line, mailbox_name
from outtray.cli.options import AppName, Json, Yes, examples, flag
from outtray.cli.screen import done, errors, hint, moment, out, print_json, table, warn
from outtray.cli.session import client
from outtray.mailboxes import Mailbox as MailboxView
from outtray_schema.address import normalise_address
from outtray_schema.consent import SCOPES, Consented, Guarantee, Issuer, Reach, canonical, guarantee, missing
from outtray_schema.settings import Settings

CONSUMERS = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The tenant of personal Microsoft accounts (learn.microsoft.com/entra/identity-platform/id-token-claims, 2026-11)."""

Smtp = Annotated[bool, flag("--smtp", text="Send by SMTP instead of by the provider's API.")]
App = Annotated[
    str | None,
    typer.Option("--provider-app", metavar="NAME", help="The OAuth client. Default: the only one.", show_default=False),
]
Scopes = Annotated[
    Literal["send", "compose", "full"],
    typer.Option("--scopes", help="What to ask for: more lets more be promised, see docs/connecting.md."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="Default: that of who logs in.", show_default=False),
]
PlanName = Annotated[
    str | None, typer.Option("--plan", metavar="PLAN", help="Default: the provider's smallest.", show_default=False)
]
SenderName = Annotated[
    str | None, typer.Option("--name", metavar="TEXT", help='The name that recipients see, e.g. "Ann Lee".')
]
NoBrowser = Annotated[bool, flag("--no-browser", text="Only write the page's address; open it yourself.")]


class Ask(Protocol):
    """Asks a person for their consent: `outtray_worker.auth.consent.obtain`."""

    def __call__(
        self,
        settings: Settings,
        issuer: Issuer,
        provider_app: str,
        scopes: Sequence[str],
        *,
        device: bool,
        hint: str | None,
        browser: bool,
        quiet: bool,
    ) -> Consented: ...


Learn = Callable[[Outtray, MailboxView], MailboxView]
"""Learns which From addresses a mailbox may use, where its provider shows them: returns it as it is then."""


def tell(text: str) -> None:
    """Tell a person what to do; on standard error, since standard output may be a machine's."""
    errors.print(text, markup=False, soft_wrap=True)
    sys.stderr.flush()


def open_page(url: str, browser: bool, quiet: bool) -> None:
    """Show a page in this machine's browser, and write its address. `quiet`: not where a browser shows it anyway."""
    if not (browser and quiet):
        tell(f"Log in and consent here, within five minutes:\n{url}")
    if browser:
        webbrowser.open(url)


def commands(ask: Ask, learn: Learn) -> typer.Typer:
    """`outtray mailbox connect` with a way to ask for consents, and one to learn the From addresses afterwards."""
    group = options.group("Connect a mailbox by its owner's consent.")

    @group.command(
        "google",
        epilog=examples(
            "outtray mailbox connect google",
            "outtray mailbox connect google --scopes full --plan workspace",
            "outtray mailbox connect google --smtp --no-browser",
        ),
    )
    def google(
        smtp: Smtp = False,
        scopes: Scopes = "compose",
        provider_app: App = None,
        address: Address = None,
        no_browser: NoBrowser = False,
        name: SenderName = None,
        plan: PlanName = None,
        app: AppName = None,
        as_json: Json = False,
    ) -> None:
        """Connect a Gmail or Workspace mailbox, or connect it again.

        A page opens in the browser; its queue goes on as soon as its owner has consented.
        """
        wish = _Wish("google", smtp, scopes, address, name, plan)
        _connect(ask, learn, wish, provider_app, app, as_json, browser=not no_browser)

    @group.command(
        "microsoft",
        epilog=examples(
            "outtray mailbox connect microsoft",
            "outtray mailbox connect microsoft --device",
            "outtray mailbox connect microsoft --address info@example.com",
        ),
    )
    def microsoft(
        smtp: Smtp = False,
        scopes: Scopes = "compose",
        provider_app: App = None,
        address: Address = None,
        no_browser: NoBrowser = False,
        device: Annotated[bool, flag("--device", text="Show a code to type in on any other machine.")] = False,
        name: SenderName = None,
        plan: PlanName = None,
        app: AppName = None,
        as_json: Json = False,
    ) -> None:
        """Connect a Microsoft mailbox, or connect it again.

        With another address than the person's own it is a shared mailbox, in which they may send.
        """
        wish = _Wish("microsoft", smtp, scopes, address, name, plan)
        _connect(ask, learn, wish, provider_app, app, as_json, browser=not no_browser, device=device)

    return group


class _Wish:
    """What somebody wants to connect."""

    def __init__(
        self, issuer: Issuer, smtp: bool, reach: Reach, address: str | None, name: str | None, plan: str | None
    ) -> None:
        self.issuer, self.smtp, self.address, self.name, self.plan = issuer, smtp, address, name, plan
        self.scopes = SCOPES[issuer]["smtp" if smtp else reach]
        if address is not None and issuer == "microsoft" and not smtp:  # perhaps a shared one, which is seen afterwards
            self.scopes += tuple(f"{scope}.Shared" for scope in self.scopes if scope.startswith("Mail."))
        self.provider = "smtp" if smtp else {"google": "gmail", "microsoft": "microsoft"}[issuer]

    def place(self, consented: Consented) -> tuple[str, bool]:
        """The mailbox's address, and whether it is another one's than that of who logged in."""
        address = self.address or consented.address
        if address is None:
            raise UsageError("the provider does not say whose mailbox it is; name it: --address ADDRESS")
        own = consented.address is None or normalise_address(address) == normalise_address(consented.address)
        if not own and (self.issuer == "google" or self.smtp):
            raise UsageError("somebody else logged in than the mailbox's owner; log in as its owner")
        return address, not own


def _connect(
    ask: Ask,
    learn: Learn,
    wish: _Wish,
    provider_app: str | None,
    app: str | None,
    as_json: bool,
    *,
    browser: bool,
    device: bool = False,
) -> None:
    with client(app) as outtray:
        chosen = _only_app(outtray, wish.issuer, provider_app)
        consented = ask(
            outtray.settings,
            wish.issuer,
            chosen,
            wish.scopes,
            device=device,
            hint=wish.address,
            browser=browser,
            quiet=as_json,
        )
        box = learn(outtray, _store(outtray, wish, chosen, consented))
    holds = guarantee(box.provider, box.scopes)
    unticked = missing(wish.scopes, consented.scopes)
    if as_json:
        print_json({"mailbox": box, "guarantee": holds, "not_granted": unticked})
        return
    done(f"Mailbox [bold]{escape(box.address)}[/] connected, {limits_line(box.limits)}.")
    _show(holds, unticked)
    hint(f"try it: outtray mailbox test {box.address}")


def _only_app(outtray: Outtray, issuer: Issuer, named: str | None) -> str:
    if named is not None:
        return outtray.provider_apps.get(named).name
    fitting = [each.name for each in outtray.provider_apps.list() if (each.provider, each.kind) == (issuer, "oauth")]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UsageError(f"there is no OAuth client for {issuer} yet. Run: outtray provider-app add {issuer}")
    raise UsageError(f"there are several OAuth clients; choose one: --provider-app {' | '.join(fitting)}")


def _store(outtray: Outtray, wish: _Wish, provider_app: str, consented: Consented) -> MailboxView:
    """Add the mailbox, or give a known one its new consent."""
    address, shared = wish.place(consented)
    granted = sorted(canonical(consented.scopes))
    known = next((each for each in outtray.mailboxes.list() if _same(each.address, address)), None)
    if known is not None:
        if known.provider != wish.provider:
            raise UsageError(f"the mailbox sends by {known.provider} now; remove it first, or connect it as it is")
        return outtray.mailboxes.connect(
            known.id,
            refresh_token=consented.refresh_token,
            scopes=granted,
            provider_app=provider_app,
            tenant=consented.tenant,
        )
    first = not any(each.is_default for each in outtray.mailboxes.list())
    fields: dict[str, Any] = {
        "refresh_token": consented.refresh_token, "scopes": granted, "provider_app": provider_app, "smtp": wish.smtp,
        "name": wish.name, "plan": wish.plan, "default": first,
    }  # fmt: skip
    if wish.issuer == "google":
        return outtray.mailboxes.add_google(address, **fields)
    if consented.tenant == CONSUMERS:  # Outlook.com: limits and an SMTP server of its own
        fields |= {"plan": wish.plan or "outlook", "server": {"host": "smtp-mail.outlook.com"} if wish.smtp else None}
    return outtray.mailboxes.add_microsoft(address, **fields, tenant=consented.tenant, shared=shared)


def _same(one: str, other: str) -> bool:
    return normalise_address(one) == normalise_address(other)


def _show(holds: Guarantee, unticked: Iterable[str]) -> None:
    """What is promised for this mailbox, and what its owner did not grant."""
    for scope in unticked:
        warn(f"not granted: {scope}")
    for sentence in holds.sentences:
        hint(sentence)


def disconnect(name: Mailbox, yes: Yes = False, app: AppName = None, as_json: Json = False) -> None:
    """Erase a mailbox's tokens; its queue waits.

    The consent itself stands at the provider until its owner takes it back there, or you revoke it.
    """
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        if not yes and not as_json and not typer.confirm(f"Disconnect {box.address}? Its queue waits then."):
            raise typer.Exit(Exit.REFUSED)
        gone = outtray.mailboxes.disconnect(box.id)
    _show_gone(gone, "disconnected", as_json)


def revoke(
    name: Mailbox,
    force: Annotated[bool, flag("--force", text="Also if it ends the person's other connections.")] = False,
    yes: Yes = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """End a consent at Google itself.

    Google ends all that the person granted to the project, so it is refused on any but their last connection. Elsewhere
    only the person can do it: see `disconnect`.
    """
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        if not yes and not as_json and not typer.confirm(f"Revoke the consent of {box.address} at Google?"):
            raise typer.Exit(Exit.REFUSED)
        gone = outtray.mailboxes.revoke(box.id, force=force)
    _show_gone(gone, "revoked", as_json)


def _show_gone(gone: Any, word: str, as_json: bool) -> None:
    if as_json:
        print_json(gone)
        return
    done(f"Mailbox [bold]{escape(gone.mailbox.address)}[/] {word}; its queue waits for a new consent.")
    if gone.warning:
        warn(gone.warning)


def consents(name: Mailbox, app: AppName = None, as_json: Json = False) -> None:
    """Show who agreed to what for a mailbox, and when."""
    with client(app) as outtray:
        found = outtray.mailboxes.consents(mailbox_name(name))
    if as_json:
        print_json(found)
        return
    page = table("when", "what", "by", "provider app", "scopes")
    for each in found:
        page.add_row(
            moment(each.at),
            each.kind,
            escape(each.actor),
            escape(each.provider_app or ""),
            escape(" ".join(each.scopes)),
        )
    out.print(page if found else "No consent: it logs in by a password.")


def add_delegated(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The mailbox's address.")],
    provider_app: Annotated[
        str, typer.Option("--provider-app", metavar="NAME", help="A service account, or a client with --app-only.")
    ],
    scopes: Scopes = "compose",
    smtp: Smtp = False,
    name: SenderName = None,
    plan: PlanName = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Connect a mailbox of an organisation that delegated it.

    By a Google service account with domain-wide delegation, or a Microsoft client with permissions of its own; no
    person has to consent. The scopes are those that the organisation's administrator granted.
    """
    with client(app) as outtray:
        issuer: Issuer = "google" if outtray.provider_apps.get(provider_app).provider == "google" else "microsoft"
        first = not any(each.is_default for each in outtray.mailboxes.list())
        box = outtray.mailboxes.add_delegated(
            address, provider_app=provider_app, scopes=SCOPES[issuer]["smtp" if smtp else scopes], smtp=smtp, name=name,
            plan=plan, default=first,
        )  # fmt: skip
    holds = guarantee(box.provider, box.scopes)
    if as_json:
        print_json({"mailbox": box, "guarantee": holds, "not_granted": []})
        return
    done(f"Mailbox [bold]{escape(box.address)}[/] added, {limits_line(box.limits)}.")
    _show(holds, ())
    hint(f"try it: outtray mailbox test {box.address}")


DISCONNECT_EXAMPLES = examples("outtray mailbox disconnect ann@example.com")
REVOKE_EXAMPLES = examples("outtray mailbox revoke ann@example.com", "outtray mailbox revoke ann@example.com --force")
CONSENTS_EXAMPLES = examples("outtray mailbox consents ann@example.com")
DELEGATED_EXAMPLES = examples("outtray mailbox add delegated ann@example.com --provider-app robot")
