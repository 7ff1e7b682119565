"""What docs/security.md says was tried is what the tests try."""

import re
import subprocess
import sys

from tests.attacks import ROOT, shown


def test_table_of_attempts_is_what_the_tests_try():
    # In a process of its own: pytest does not collect within itself.
    made = subprocess.run(
        [sys.executable, "-m", "tests.attacks"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert made == shown(), "run: python -m tests.attacks --write"
    assert int(re.search(r"\*\*all\*\* \| \*\*(\d+)\*\*", made)[1]) >= 100
