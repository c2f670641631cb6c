"""The claims' tests of the embedded store, on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.test_store import (
    test_a_failed_claim_can_be_claimed_again_and_no_other,
    test_a_lease_is_kept_alive_by_the_writer_and_ends_with_its_release,
    test_a_move_by_who_lost_the_claim_is_refused,
    test_B15_a_freed_nonce_that_the_chain_has_passed_is_not_given,
    test_B15_nonces_are_given_once_and_a_freed_one_first,
    test_C01_of_many_claims_for_one_payment_one_wins,
    test_C07_claims_are_forgotten_only_after_the_payment_can_no_longer_land,
    test_due_lists_what_nobody_works_on,
    test_every_move_starts_only_where_the_rules_say,
    test_J06_a_process_that_forked_after_opening_is_refused,
    test_unserved_settlements_are_listed_after_their_deadline,
)
from x402kit.ledger.postgres import PostgresStore

__all__ = [
    "test_B15_a_freed_nonce_that_the_chain_has_passed_is_not_given",
    "test_B15_nonces_are_given_once_and_a_freed_one_first",
    "test_C01_of_many_claims_for_one_payment_one_wins",
    "test_C07_claims_are_forgotten_only_after_the_payment_can_no_longer_land",
    "test_J06_a_process_that_forked_after_opening_is_refused",
    "test_a_failed_claim_can_be_claimed_again_and_no_other",
    "test_a_lease_is_kept_alive_by_the_writer_and_ends_with_its_release",
    "test_a_move_by_who_lost_the_claim_is_refused",
    "test_due_lists_what_nobody_works_on",
    "test_every_move_starts_only_where_the_rules_say",
    "test_unserved_settlements_are_listed_after_their_deadline",
]


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(database, lease_seconds=0.3)
    await made.start()
    yield made
    await made.close()
