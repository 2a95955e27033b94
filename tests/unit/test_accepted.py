"""The sandbox's ledger: what judges us must itself be right."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from outtray_sandbox.accepted import Accepted, Ledger, most_in_any_24h

HOUR = 3600.0


def taken(at: float, message_id: str = "<a@x>", user: str = "ann", recipients: int = 1) -> Accepted:
    to = tuple(f"r{n}@x" for n in range(recipients))
    return Accepted(message_id, user, "ann@x", to, "0" * 64, 10, at, at, "s", "250")


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 4)), max_size=30))
def test_the_most_in_any_24_hours_is_what_counting_each_window_gives(mails: list[tuple[int, int]]) -> None:
    entries = [taken(hour * HOUR, recipients=count) for hour, count in mails]
    windows = [[count for hour, count in mails if start <= hour < start + 24] for start in range(101)]
    assert most_in_any_24h(entries) == max(map(len, windows))
    assert most_in_any_24h(entries, "recipients") == max(map(sum, windows))


def test_a_ledger_is_read_back_whole_by_another_process_that_appends_too(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "l"), Ledger(tmp_path / "l")
    first.append(taken(1, "<1@x>"))
    second.append(taken(2, "<2@x>"))
    first.append(taken(3, "<1@x>", user="bob"))
    assert [mail.rfc_message_id for mail in second.read()] == ["<1@x>", "<2@x>", "<1@x>"]
    assert {message_id: len(several) for message_id, several in first.twice().items()} == {"<1@x>": 2}
    assert first.count_in_any_24h("ann") == 2
    assert first.count_in_any_24h("nobody") == 0
    assert set(first.by_user()) == {"ann", "bob"}


def test_a_last_line_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.append(taken(1))
    with (tmp_path / "l").open("a") as file:
        file.write('{"rfc_message_id": "<2@')
    assert len(ledger.read()) == 1
