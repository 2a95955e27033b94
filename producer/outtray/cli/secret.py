"""Secrets: by a hidden prompt, standard input or a file. Never by a flag, which every process list shows."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from outtray.cli.exits import UsageError
from outtray.cli.options import flag

MOST = 64 * 1024
"""Bytes that a secret may have: an OAuth token is a few KiB."""

FromStdin = Annotated[bool, flag("--password-stdin", text="Read the password from standard input.")]
FromFile = Annotated[
    Path | None,
    typer.Option("--password-file", metavar="FILE", help="Read the password from a file.", show_default=False),
]


def read_password(from_stdin: bool, from_file: Path | None, prompt: str = "Password") -> str:
    """The secret, without the line's end. Raises `UsageError` that names the flag and the cure."""
    secret = read_secret(from_stdin, from_file, prompt, "--password-stdin", "--password-file")
    if "\n" in secret:
        raise UsageError("a password is one line")
    return secret


def read_secret(from_stdin: bool, from_file: Path | None, prompt: str, stdin_flag: str, file_flag: str) -> str:
    """A secret that may have several lines, like a certificate. Raises `UsageError` that names flag and cure."""
    if from_stdin and from_file:
        raise UsageError(f"give either {stdin_flag} or {file_flag}, not both")
    if from_stdin:
        return _checked(sys.stdin.read(MOST + 1), stdin_flag)
    if from_file:
        return _checked(_read(from_file, file_flag), file_flag)
    if not sys.stdin.isatty():
        raise UsageError(f"no terminal to ask for it on; use {stdin_flag} or {file_flag} FILE")
    return _checked(getpass.getpass(f"{prompt}: "), "the prompt")


def _read(path: Path, named: str) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{named}: {path} cannot be read: {why}") from None


def _checked(text: str, source: str) -> str:
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret or len(secret) > MOST or "\0" in secret:
        raise UsageError(f"{source}: a secret is not empty, and has at most {MOST // 1024} KiB")
    return secret
