"""What `outtray send` is given its mail by: flags alone, `--eml`, `--file` or `--csv`. Which flags go with which.

A flag that would change nothing is refused by its name: whoever writes `--file list.ndjson --tag spring` believes that
the tag is on every message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import typer

from outtray.cli.exits import UsageError

WITH_FILE = frozenset({"file", "key", "mailbox", "dry_run", "keep_going", "refused", "app", "as_json"})
"""All that goes with `--file`, whose rows say everything else."""

NOT_WITH_CSV = frozenset(
    {"to", "cc", "bcc", "subject", "in_reply_to", "reference", "reply_to_message", "answering", "text_file",
     "html_file", "inline", "eml", "wait"}
)  # fmt: skip
NOT_WITH_EML = frozenset({"text_file", "html_file"})
ONLY_WITH_CSV = frozenset({"template", "then", "after", "column"})
ONLY_WITH_MANY = frozenset({"keep_going", "refused"})


def given_flags(context: typer.Context) -> dict[str, str]:
    """The flags that stand on the command line, by their parameters' names: `sender` → `--from`."""
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }


def refuse_mixtures(given: Mapping[str, str]) -> None:
    """Raises `UsageError` that names what does not go together."""
    if "file" in given:
        _leave_out("--file brings whole messages", given, given.keys() - WITH_FILE)
    if "csv" in given:
        _leave_out("--csv brings the addresses and --template the text", given, NOT_WITH_CSV)
        if "template" not in given:
            raise UsageError("--csv needs --template, which brings the text")
    else:
        _belongs(given, ONLY_WITH_CSV, "--csv")
    if not {"file", "csv"} & given.keys():
        _belongs(given, ONLY_WITH_MANY, "--file or --csv")
    if "eml" in given:
        _leave_out("--eml brings a whole mail", given, NOT_WITH_EML)


def _leave_out(brings: str, given: Mapping[str, str], foreign: Iterable[str]) -> None:
    if named := _named(given, foreign):
        raise UsageError(f"{brings}: leave out {named}")


def _belongs(given: Mapping[str, str], some: Iterable[str], to: str) -> None:
    if named := _named(given, some):
        raise UsageError(f"{named}: only with {to}")


def _named(given: Mapping[str, str], some: Iterable[str]) -> str:
    wanted = set(some)
    return ", ".join(flag for name, flag in given.items() if name in wanted)
