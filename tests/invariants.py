"""I1 to I9 and I11 of the catalogue, as far as they can be seen from outside: after every step of every test.

Sources are the answers that payers got, the claims table on disk, the chain's own logs, and what the handlers wrote
down. Nothing here asks the library.
"""

from __future__ import annotations

import time
from collections import Counter

from tests.support.shop import Shop
from x402kit.ledger.rules import OPEN
from x402kit.model import Claim

__all__ = ["check", "settled_down"]

_PAID = ("settled", "served", "credited")


def check(shop: Shop, *, reorganised: bool = False) -> None:
    """What must hold at any instant. ``reorganised``: blocks were taken back, so claims may know of money that left."""
    claims = {claim.payment_id.split(":", 3)[3]: claim for claim in shop.claims()}
    transfers = shop.transfers()
    moved = Counter(found.payment for found in transfers)
    assert all(count == 1 for count in moved.values()), "I3: an authorization settled twice"
    for found in transfers:
        claim = claims.get(found.payment)
        assert claim is not None, "I9: money moved that no claim knows of"
        # A facilitator says its transaction afterwards.
        known = found.transaction == claim.reference or (shop.setup.facilitator and claim.state in OPEN)
        assert known, "I9: the transaction was not stored before it was sent"
        assert claim.state != "failed", "I7: called failed, and the money moved"
        assert found.amount == claim.amount
    if not reorganised:
        for payment, claim in claims.items():
            assert claim.state not in _PAID or moved[payment], "I1: called paid, and no money moved"
    _check_handlers(shop, claims)
    _check_answers(shop)
    _check_secrets(shop)


def _check_handlers(shop: Shop, claims: dict[str, Claim]) -> None:
    paid = {claim.reference for claim in claims.values() if claim.state in _PAID or claim.reason == "reversed"}
    for reference in shop.runs():
        assert reference in (*paid, "unsettled"), "I8: a handler ran before its claim was durable"


def _check_answers(shop: Shop) -> None:
    fulfilled = Counter(shown.payment.id for shown in shop.shown if shown.fulfilled)
    assert all(count == 1 for count in fulfilled.values()), "I4: one payment, twice the goods"
    for shown in shop.shown:
        assert not (shown.status == 402 and shown.moved), "I7: a fresh challenge after the money moved"
        assert (shown.status == 402) == ("payment-required" in shown.headers), "I7: a challenge with another status"
        ours = shown.body != b"Internal Server Error"  # the server's own, when it is cut off
        assert "cache-control" in shown.headers or not ours
        if shown.status in (409, 504):
            assert shown.outcome == "unknown"
            assert "retry-after" in shown.headers


def _check_secrets(shop: Shop) -> None:
    said = [shown.body.decode("latin-1") + repr(shown.headers) for shown in shop.shown]
    secrets = (shop.setup.key, shop.setup.rpc, shop.setup.rpc.removeprefix("http://").rstrip("/"), "SECRET")
    for text in (*said, shop.log):
        assert not any(secret in text for secret in secrets), "I11: a secret or an address of the node got out"
    assert not any("Traceback" in text for text in said), "I11: a stack trace got out"


def settled_down(shop: Shop, *, seconds: float = 15) -> None:
    """What must hold once reconcile had its turn: nothing open, no lease, no nonce that is held and never used."""
    shop.wait_for(lambda: not any(claim.state in OPEN for claim in shop.claims()), seconds)
    shop.wait_for(lambda: all(claim.lease_until < time.monotonic() * 1000 for claim in shop.claims()), 3)
    check(shop)
    for wallet, nonce in shop.query("SELECT wallet, nonce FROM nonces WHERE free = 0"):
        used = int(shop.chain.rpc("eth_getTransactionCount", wallet.rpartition(":")[2], "latest"), 16)
        assert nonce < used, "B15: a nonce is held and will never be used"
