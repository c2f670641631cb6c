"""I1 to I9 and I11 of the catalogue, as far as they can be seen from outside: after every step of every test.

Sources are the answers that payers got, the ledger's tables on disk, the chain's own logs, and what the handlers wrote
down; ``check`` asks nothing of the library. ``check_books`` asks a store, of either kind, for its log and adds it up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from tests.support.shop import Shop
from x402kit.ledger.port import Store
from x402kit.ledger.rules import OPEN
from x402kit.model import Account, Claim, Entry

__all__ = ["check", "check_books", "settled_down"]

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
    _check_tables(shop, reorganised=reorganised)


def _check_handlers(shop: Shop, claims: dict[str, Claim]) -> None:
    paid = {claim.reference for claim in claims.values() if claim.state in _PAID or claim.reason == "reversed"}
    if any(reference.startswith("req_") for reference in shop.runs()):
        paid |= {request_id for (request_id,) in shop.query("SELECT request_id FROM holds")}
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


def _check_tables(shop: Shop, *, reorganised: bool) -> None:
    """The books as they are on disk, in one state of the file."""
    if not shop.query("SELECT 1 FROM sqlite_master WHERE name = 'log'"):
        return
    sums = "SELECT sum(external), sum(available), sum(held), sum(revenue), sum(suspense) FROM log"
    stand = "SELECT ifnull(sum(available), 0), ifnull(sum(held), 0), ifnull(min(available), 0) FROM accounts"
    booked = "SELECT ifnull(sum(amount), 0) FROM claims WHERE booked_at <> 0"
    open_holds = "SELECT ifnull(sum(amount), 0) FROM holds WHERE state = 'open'"
    sql = f"SELECT * FROM ({sums}), ({stand}), ({booked}), ({open_holds})"
    external, *columns, available, held, least, paid, holds = [number or 0 for number in shop.query(sql)[0]]
    assert external + sum(columns) == 0, "I1: the log does not add up"
    assert (available, held) == tuple(columns[:2]), "I1: balances are not what the log says"
    assert held == holds, "I6: something is held that no hold knows of"
    assert least >= 0, "I2: a balance below zero"
    if not reorganised:
        assert -external == paid + shop.deposited, "I1: more or less was booked than was paid"
    more = "SELECT count(*) FROM holds WHERE captured > amount"
    assert shop.query(more) == [(0,)], "I5: more captured than reserved"
    more = "SELECT count(*) FROM claims WHERE captured > amount OR state IN ('served', 'credited') AND booked_at = 0"
    assert shop.query(more) == [(0,)], "I5: more captured than paid, or served and not booked"


async def check_books(store: Store, accounts: Iterable[Account], *, overage: bool = False, lost: int = 0) -> None:
    """I1, I2, I3, I5 and I6 by the log of a store of either kind. ``overage``: calls may be charged above their hold;
    ``lost`` is what reorganisations took.
    """
    assert await store.verify() == []
    for sums in (await store.totals()).values():
        columns = [sums[name] for name in ("external", "available", "held", "revenue", "suspense")]
        assert sum(columns) == 0, "I1: the log does not add up"
        assert min(sums["available"], sums["held"]) >= 0, "I2: a balance below zero"
        assert sums["held"] == sums["holds"], "I6: something is held that no hold knows of"
        assert sums["suspense"] == sums["payouts"] - lost, "I1: money in suspense that nobody waits for"
    for account in accounts:
        _check_log((await store.entries(account, limit=10_000))[::-1], overage=overage)


def _check_log(entries: list[Entry], *, overage: bool) -> None:
    assert len({entry.key for entry in entries}) == len(entries), "I3: a move was made twice"
    available = held = 0
    reserved: dict[str, int] = {}
    for entry in entries:
        available, held = available + entry.available, held + entry.held
        assert available == entry.balance, "I1: the running balance is another"
        assert min(available, held) >= 0, "I2: below zero"
        kind, _, name = entry.key.partition(":")
        if kind == "reserve":
            reserved[name] = entry.held
        elif kind == "end":
            most = reserved.pop(name)  # once: I6
            assert entry.held == -most
            assert entry.revenue <= most or overage, "I5: more captured than reserved"
        elif kind == "claim":
            assert 0 <= entry.revenue <= -entry.external, "I5: more captured than paid"
    assert sum(reserved.values()) == held, "I6: a reserve that neither ended nor is held"


def settled_down(shop: Shop, *, seconds: float = 15) -> None:
    """What must hold once reconcile had its turn: nothing open or held, no lease, no nonce held and never used."""
    shop.wait_for(lambda: not any(claim.state in OPEN for claim in shop.claims()), seconds)
    shop.wait_for(lambda: not shop.open_holds(), seconds)
    shop.wait_for(lambda: all(claim.lease_until < time.monotonic() * 1000 for claim in shop.claims()), 3)
    check(shop)
    for wallet, nonce in shop.query("SELECT wallet, nonce FROM nonces WHERE free = 0"):
        used = int(shop.chain.rpc("eth_getTransactionCount", wallet.rpartition(":")[2], "latest"), 16)
        assert nonce < used, "B15: a nonce is held and will never be used"
