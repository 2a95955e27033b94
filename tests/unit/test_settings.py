"""A wrong setting names itself, says what is wrong with it, and shows one that is right."""

from __future__ import annotations

import pytest

from outtray_schema.errors import SettingsError
from outtray_schema.settings import load_settings

WRONG = [
    ("LEASE", "soon", "OUTTRAY_LEASE: .*Example: OUTTRAY_LEASE=30s"),
    ("LEASE", "100ms", "OUTTRAY_LEASE must be at least 300ms"),
    ("WATCHDOG", "10ms", "OUTTRAY_WATCHDOG must be at least 1s"),
    ("TOKEN_LEASE", "1s", "OUTTRAY_TOKEN_LEASE must be longer than OUTTRAY_TOKEN_TIMEOUT"),
    ("KEEP_MESSAGES", "1d", "OUTTRAY_KEEP_MESSAGES must be at least 7d"),
    ("DATABASE_URL", "postgresql://outtray@db/outtray", "set both OUTTRAY_DATABASE_URL and OUTTRAY_REDIS_URL"),
    ("ENGINE_TURNS", "many", "OUTTRAY_ENGINE_TURNS: .*Example: OUTTRAY_ENGINE_TURNS=512"),
    ("ENGINE_TURNS", "0", "OUTTRAY_ENGINE_TURNS: .*greater than or equal to 1"),
    ("HOST_SHARE", "2", "OUTTRAY_HOST_SHARE: .*Example: OUTTRAY_HOST_SHARE=0.5"),
    ("LOG_FORMAT", "xml", "OUTTRAY_LOG_FORMAT: .*Example: OUTTRAY_LOG_FORMAT=text"),
    ("METRICS_PORT", "70000", "OUTTRAY_METRICS_PORT: .*Example: OUTTRAY_METRICS_PORT=9464"),
]


@pytest.mark.parametrize(("name", "value", "told"), WRONG)
def test_a_wrong_setting_names_itself_and_shows_a_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"OUTTRAY_{name}", value)
    with pytest.raises(SettingsError, match=told) as caught:
        load_settings()
    assert "docs/settings.md" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once_and_an_empty_variable_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("ENGINE_TURNS", "many"), ("LOG_FORMAT", "xml"), ("METRICS_PORT", "")):
        monkeypatch.setenv(f"OUTTRAY_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "OUTTRAY_LOG_FORMAT",
        "OUTTRAY_ENGINE_TURNS",
    ]
