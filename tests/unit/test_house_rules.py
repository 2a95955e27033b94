"""What the source may not do, read from its syntax trees: Celery's own timing, imports that go round the packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOTS = {
    "outtray_schema": REPOSITORY / "schema/outtray_schema",
    "outtray": REPOSITORY / "producer/outtray",
    "outtray_worker": REPOSITORY / "worker/outtray_worker",
    "outtray_sandbox": REPOSITORY / "sandbox/outtray_sandbox",
}
# Celery's own ways to wait hold messages in a worker's memory or spend attempts; our waits live in `due_at`.
CELERYS_TIMING = {"countdown", "eta", "rate_limit", "autoretry_for", "default_retry_delay", "retry_backoff"}
# What `pip install outtray` brings without an extra.
LIGHT = {"sqlalchemy", "psycopg", "psycopg_pool", "redis", "pydantic", "pydantic_core", "pydantic_settings",
         "cryptography", "idna", "inscriptis", "lxml", "puremagic"}  # fmt: skip
HEAVY = {"alembic", "celery", "kombu", "typer", "rich", "aiosmtplib", "uvloop", "flower", "tenacity", "structlog"}
# What comes with the extra `cli`: the commands, and the migrations that one of them runs.
OF_THE_COMMAND_LINE = ("producer/outtray/cli/", "schema/outtray_schema/migrat")
# What comes with the extra `templates`.
OF_TEMPLATES = ("producer/outtray/templating.py",)
READS_THE_ENVIRONMENT = {
    "schema/outtray_schema/settings.py",
    "schema/outtray_schema/vault.py",
    # These hand the environment on to the processes that they start.
    "sandbox/outtray_sandbox/services.py",
    "sandbox/outtray_sandbox/commands.py",
    "sandbox/outtray_sandbox/demo/crew.py",
}

Rule = Callable[[ast.AST, str], Iterator[str]]


def sources() -> list[Path]:
    return sorted(path for root in ROOTS.values() for path in root.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those within functions and for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be judged"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def no_celery_timing(tree: ast.AST, _: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {word.arg}=" for word in node.keywords if word.arg in CELERYS_TIMING)
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr == "retry" and ast.unparse(called.value) != "tenacity":
                yield f"{node.lineno}: {ast.unparse(called)}()"
        elif isinstance(node, ast.Dict):
            names = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            yield from (f"{node.lineno}: {name!r} as an option" for name in names if name in CELERYS_TIMING)


def only_its_own_side(tree: ast.AST, path: str) -> Iterator[str]:
    """Schema knows nobody; producer, worker and sandbox know schema; the sandbox, which starts them, knows all."""
    for line, module in imported(tree):
        top = module.partition(".")[0]
        if top in ROOTS and top not in _known_to(path):
            yield f"{line}: imports {module}"


def _known_to(path: str) -> set[str]:
    root = path.partition("/")[0]
    if root == "sandbox":
        return set(ROOTS)
    own = {"schema": "outtray_schema", "producer": "outtray", "worker": "outtray_worker"}[root]
    return {"outtray_schema", own} | ({"outtray"} if path.startswith("worker/outtray_worker/commands") else set())


def light_where_a_crm_installs_it(tree: ast.AST, path: str) -> Iterator[str]:
    """Schema and producer need nothing that is heavier than their dependencies; the command line is an extra."""
    if not path.startswith(("schema/", "producer/")) or path.startswith(OF_THE_COMMAND_LINE + OF_TEMPLATES):
        return
    for line, module in imported(tree):
        top = module.partition(".")[0]
        if top not in LIGHT | set(ROOTS) | set(sys.stdlib_module_names):
            yield f"{line}: imports {module}"


def providers_know_no_queue(tree: ast.AST, path: str) -> Iterator[str]:
    if not path.startswith("worker/outtray_worker/providers/"):
        return
    for line, module in imported(tree):
        known = ("outtray_worker.providers", "outtray_worker.deadline", "outtray_worker.crash")
        if module.startswith("outtray_worker") and not module.startswith(known):
            yield f"{line}: imports {module}"


def environment_in_one_place(tree: ast.AST, path: str) -> Iterator[str]:
    if path in READS_THE_ENVIRONMENT:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb"):
            yield f"{node.lineno}: {ast.unparse(node)}"
    yield from (f"{line}: {name}" for line, name in imported(tree) if name in ("os.environ", "os.getenv"))


def nothing_left_undone(tree: ast.AST, path: str) -> Iterator[str]:
    if Path(path).name == "utils.py":
        yield "1: a helper belongs beside its only caller"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield f"{node.lineno}: NotImplementedError"


RULES: list[Rule] = [
    no_celery_timing, only_its_own_side, light_where_a_crm_installs_it, providers_know_no_queue,
    environment_in_one_place, nothing_left_undone,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule):
    assert len(sources()) > 50, "the roots are not where they are looked for"
    broken = [
        f"{place(path)}:{complaint}"
        for path in sources()
        for complaint in rule(ast.parse(path.read_text()), place(path))
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (no_celery_timing, "worker/outtray_worker/x.py", "task.apply_async(countdown=3)"),
        (no_celery_timing, "worker/outtray_worker/x.py", "task.apply_async(args, eta=when)"),
        (no_celery_timing, "worker/outtray_worker/x.py", "raise self.retry(exc=error)"),
        (no_celery_timing, "worker/outtray_worker/x.py", "@app.task(rate_limit='1/s')\ndef f(): ..."),
        (no_celery_timing, "worker/outtray_worker/x.py", "task.apply_async(**{'countdown': 3})"),
        (only_its_own_side, "schema/outtray_schema/x.py", "from outtray import Outtray"),
        (only_its_own_side, "producer/outtray/x.py", "def f():\n    import outtray_worker.turn"),
        (only_its_own_side, "producer/outtray/cli/x.py", "from outtray_sandbox import services"),
        (only_its_own_side, "worker/outtray_worker/turn.py", "from outtray import Message"),
        (only_its_own_side, "worker/outtray_worker/commands.py", "from outtray_sandbox import services"),
        (light_where_a_crm_installs_it, "producer/outtray/x.py", "import typer"),
        (light_where_a_crm_installs_it, "producer/outtray/x.py", "from celery import Celery"),
        (providers_know_no_queue, "worker/outtray_worker/providers/x.py", "from outtray_worker import turn"),
        (providers_know_no_queue, "worker/outtray_worker/providers/smtp/x.py", "import outtray_worker.engine"),
        (environment_in_one_place, "worker/outtray_worker/x.py", "import os\nos.environ['X']"),
        (environment_in_one_place, "worker/outtray_worker/x.py", "from os import getenv"),
        (nothing_left_undone, "worker/outtray_worker/utils.py", ""),
        (nothing_left_undone, "worker/outtray_worker/x.py", "raise NotImplementedError"),
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_forbids(rule, path, source):
    assert list(rule(ast.parse(source), path)) != []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (no_celery_timing, "worker/outtray_worker/x.py", "@tenacity.retry(stop=3)\ndef f(): ..."),
        (only_its_own_side, "worker/outtray_worker/commands.py", "from outtray import Outtray"),
        (only_its_own_side, "producer/outtray/x.py", "from outtray_schema.ids import new_id"),
        (light_where_a_crm_installs_it, "producer/outtray/cli/x.py", "import typer"),
        (providers_know_no_queue, "worker/outtray_worker/providers/x.py", "import outtray_worker.deadline"),
    ],
)  # fmt: skip
def test_the_rule_lets_pass_what_it_does_not_forbid(rule, path, source):
    assert list(rule(ast.parse(source), path)) == []


def test_importing_the_client_loads_nothing_heavy():
    program = "import sys, outtray; outtray.Outtray, outtray.Message; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "outtray_schema" in loaded
    assert loaded & (HEAVY | {"outtray_worker", "outtray_sandbox"}) == set()


# What a worker loads only once a mailbox needs it: half of the time that its start took (measured 2026-11).
LATE = {"googleapiclient", "google.auth", "httplib2", "msal", "aiohttp", "requests"}


def test_importing_a_worker_loads_no_client_of_a_provider():
    program = "import sys, outtray_worker.serve, outtray_worker.process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "outtray_worker.engine" in loaded
    assert loaded & LATE == set()
