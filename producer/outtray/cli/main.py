"""Where the command `outtray` starts. It says what to install rather than fail on an import."""

from __future__ import annotations

import sys

NEEDED = ("typer", "rich")


def run() -> None:
    """Run the command line and exit: 0 ok, else one of `outtray.cli.exits`."""
    try:
        from outtray.cli.application import main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDED:
            raise
        print(f"The command line needs {error.name}. Run: pip install 'outtray[cli]'", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    main()


if __name__ == "__main__":
    run()
