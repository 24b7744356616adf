"""Says what the tests of a tox run came to, from their JUnit files; fails if a test that could have run did not.

usage: report.py FOLDER

Prints each skip with its reason, each test that a nested guest ran again, each demand that is not met, and as the
last line `N passed, N failed, N skipped`.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PYTHONS = ("py311", "py312", "py313")
SETS = ("core", "vfio_user", "kvm", "all")
MUST_RUN = (*(f"{python}-{name}" for python in PYTHONS for name in SETS), "docs", "guest", "xen")

# Reasons (regular expressions, whole text) that excuse a skip on the kind of machine that CI has. What needs a KVM that
# is complete runs in the guest environment, inside a guest that has one. Nothing excuses a skip of what needs Xen: its
# test bed runs wherever QEMU does.
ALLOWED_SKIPS: tuple[str, ...] = (
    r"this host's KVM emulates guests in part only \(.*\); the TCG guest runs this test",
    r".* \(the same tests run inside a TCG guest: test_in_guest.py\)",
    r".* \(the fixture kvm_guest has it: kvm_guest.pytest\(...\) runs these tests there\)",
)


@dataclass
class Outcome:
    """What one environment's tests came to."""

    passed: int = 0
    failed: int = 0
    skips: Counter[str] = field(default_factory=Counter)
    again: list[str] = field(default_factory=list)


def read(path: Path) -> Outcome:
    """Count the test cases of one JUnit file; a collection error is a failed case."""
    outcome = Outcome()
    for case in ET.parse(path).iter("testcase"):  # noqa: S314 our own run wrote it
        skipped = case.find("skipped")
        outcome.again += [item.get("value", "") for item in case.iter("property") if item.get("name") == "again"]
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        elif skipped is not None:
            outcome.skips[skipped.get("message") or "no reason given"] += 1
        else:
            outcome.passed += 1
    return outcome


def complaints(outcomes: dict[str, Outcome]) -> list[str]:
    """What stands against calling the run complete."""
    found = [f"{name}: ran no test" for name in MUST_RUN if name not in outcomes or not outcomes[name].passed]
    for name, outcome in outcomes.items():
        found += [
            f"{name}: skipped without an allowed reason: {reason}"
            for reason in outcome.skips
            if not any(re.fullmatch(allowed, reason) for allowed in ALLOWED_SKIPS)
        ]
    return found


def main(folder: Path) -> int:
    """Print the report; 0 when nothing failed and nothing is missing."""
    outcomes = {path.stem: read(path) for path in sorted(folder.glob("*.xml"))}
    print("== tests by environment")
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome.passed} passed, {outcome.failed} failed, {outcome.skips.total()} skipped")
        for reason, count in sorted(outcome.skips.items()):
            print(f"    skipped {count}: {reason}")
        for tests in outcome.again:
            print(f"    not passed in a nested guest, and run again: {tests}")
    found = complaints(outcomes)
    for complaint in found:
        print(f"FAILED {complaint}")
    passed = sum(outcome.passed for outcome in outcomes.values())
    failed = sum(outcome.failed for outcome in outcomes.values())
    skipped = sum(outcome.skips.total() for outcome in outcomes.values())
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
