"""Looks by real processes: the dispatcher publishes them, a worker carries them out, with a broker and without."""

from __future__ import annotations

import pytest

from acceptance.scene import scene
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]

QUICK = {"look_scale": "0.02", "settle_time": "500ms"}


@pytest.mark.parametrize("broker", [True, False])
def test_a_mail_that_got_no_answer_is_looked_for_and_then_its_policy_decides(database, services, tmp_path, broker):
    with scene(database, tmp_path, **QUICK) as town:
        town.server.add_rule(stage="dot", drop="before", times=1)
        if not broker:
            town.start()
            services.valkey.stop()
        try:
            town.enqueue(1, on_unknown="resend")
            if broker:
                town.start()
            eventually(lambda: town.states()["sent"] == 1, 40, "it was looked for, and sent again")
        finally:
            services.valkey.start()
        kinds = [
            row[0] for row in town.rows("SELECT kind FROM outtray.journal WHERE message_id IS NOT NULL ORDER BY id")
        ]
        assert kinds == ["enqueued", "gate", "unknown", "look", "resend", "gate", "sent"]
        town.fleet.assert_alive()
        town.judge()
