"""The Gmail API as its installed discovery document describes it, read once per process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any


@lru_cache(maxsize=1)
def discovery() -> dict[str, Any]:
    """The installed description of the API. No network."""
    cache = import_module("googleapiclient.discovery_cache")  # at its first use: its client need not be loaded for it
    document: dict[str, Any] = json.loads(cache.get_static_doc("gmail", "v1"))
    return document


@lru_cache(maxsize=1)
def scopes_of() -> dict[str, frozenset[str]]:
    """By method, as in `drafts.send`: any one of these scopes allows it."""
    found: dict[str, frozenset[str]] = {}

    def collect(resource: Mapping[str, Any], prefix: str) -> None:
        for name, method in resource.get("methods", {}).items():
            found[f"{prefix}{name}"] = frozenset(method["scopes"])
        for name, inner in resource.get("resources", {}).items():
            collect(inner, f"{prefix}{name}.")

    collect(discovery()["resources"]["users"], "")
    return found
