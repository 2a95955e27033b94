"""The request that both arms make of a message's bytes."""

from __future__ import annotations

CONTENT_TYPE = "message/rfc822"
"""What Gmail's media upload takes (`uploadType=media`): the MIME itself, so neither arm spends anything on encoding."""
