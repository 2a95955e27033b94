"""`make model`: the same model, deeper: more faults and acts in each scenario, up to a bound on states."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from model.explore import Search
from model.scenarios import EVERY


def main() -> int:
    """Explore every scenario; 1 if a property breaks in one of them."""
    parser = argparse.ArgumentParser(prog="make model", description=__doc__)
    parser.add_argument("--faults", type=int, default=1, help="faults beyond those of make test")
    parser.add_argument("--acts", type=int, default=0, help="acts of the app beyond those of make test")
    parser.add_argument("--states", type=int, default=2_000_000, help="states at most in one scenario: some 2 GB")
    asked = parser.parse_args()
    broken = 0
    for scenario in EVERY:
        deeper = replace(
            scenario,
            faults=scenario.faults + (asked.faults if scenario.fault_kinds else 0),
            acts=scenario.acts + (asked.acts if scenario.act_kinds else 0),
        )
        found = Search(deeper).run(asked.states)
        cut = "" if found.states < asked.states else "  (cut: not whole, and *never stuck* was not asked)"
        print(f"{found}{cut}", flush=True)
        broken += bool(found.broken)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
