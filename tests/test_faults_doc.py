"""docs/faults.md says what is true: every case has a test, or a reason to wait."""

from __future__ import annotations

from tests.faults import CASES, PAGE, WAITS, page, played_by_case


def test_every_case_is_played_or_says_why_it_waits() -> None:
    known = {case for cases in CASES.values() for case in cases}
    played = set(played_by_case())
    assert known - played - set(WAITS) == set()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page()
