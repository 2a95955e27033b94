"""Flags of `outtray send` that do not go together are named, each with what it does not go with."""

from __future__ import annotations

import pytest
import typer

from outtray.cli import send_forms
from outtray.cli.application import build
from outtray.cli.exits import UsageError
from outtray.cli.send_forms import refuse_mixtures

SEND = {
    parameter.name: parameter.opts[0]
    for parameter in typer.main.get_command(build()).commands["send"].params  # type: ignore[attr-defined]
}


def given(*names: str) -> dict[str, str]:
    return {name: SEND[name] for name in names}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("file", "to", "tag", "sender"), "--file brings whole messages: leave out --to, --tag, --from"),
        (("file", "csv", "template"), "--file brings whole messages: leave out --csv, --template"),
        (("csv", "template", "subject"), "--csv brings the addresses and --template the text: leave out --subject"),
        (("csv", "template", "eml"), "leave out --eml"),
        (("csv",), "--csv needs --template"),
        (("template", "then"), "--template, --then: only with --csv"),
        (("to", "keep_going"), "--keep-going: only with --file or --csv"),
        (("eml", "html_file"), "--eml brings a whole mail: leave out --html-file"),
    ],
)
def test_what_would_change_nothing_is_refused_by_name(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        refuse_mixtures(given(*names))


@pytest.mark.parametrize(
    "names",
    [
        ("to", "subject", "tag", "eml"),
        ("file", "key", "mailbox", "keep_going", "refused", "dry_run", "as_json"),
        ("csv", "template", "then", "after", "column", "tag", "keep_going", "attach", "send_at"),
    ],
)
def test_what_goes_together_passes(names: tuple[str, ...]) -> None:
    refuse_mixtures(given(*names))


def test_every_flag_that_is_named_exists() -> None:
    named = (
        send_forms.WITH_FILE | send_forms.NOT_WITH_CSV | send_forms.NOT_WITH_EML | send_forms.ONLY_WITH_CSV
        | send_forms.ONLY_WITH_MANY
    )  # fmt: skip
    assert named <= SEND.keys()
