"""CPU time of a request in process: bare, unpriced, challenged and paid, ours and the peer's in turns."""

from __future__ import annotations

import binascii
import json
import time
from collections.abc import Sequence
from typing import Any, Final

from starlette.types import ASGIApp

from x402kit.money import Asset
from x402kit.networks import evm
from x402kit.networks.assets import DEFAULTS

from .asgi import drive, offer_of
from .processes import Probe
from .results import Rounds, Row
from .stubs import NETWORKS, NoLedger, Payers, bare_app, paid_app

__all__ = ["measure"]

ROUNDS: Final = 11
REQUESTS: Final = 600
"""In each round, of each case of ours."""
AT_ONCE: Final = 16
"""Requests under way at a time, as on a server with some load; the peer's too."""
PEER_REQUESTS: Final = {"unpriced": 150, "challenge": 80, "paid": 60}


def bare_check(header: bytes, asset: Asset) -> None:
    """From the header's bytes to the payer, by the shortest way, and without any other check: the unit of a payment."""
    payment: dict[str, Any] = json.loads(binascii.a2b_base64(header))["payload"]
    signed = payment["authorization"]
    transfer = evm.Transfer(
        signed["from"].lower(),
        signed["to"].lower(),
        int(signed["value"]),
        int(signed["validAfter"]),
        int(signed["validBefore"]),
        bytes.fromhex(signed["nonce"][2:]),
        bytes.fromhex(payment["signature"][2:]),
    )
    assert evm.recover(evm.digest(transfer, asset), transfer.signature) == transfer.payer


async def _timed(app: ASGIApp, path: str, payments: Sequence[bytes | None], status: int) -> float:
    started = time.process_time()
    seen = await drive(app, path, payments, AT_ONCE)
    spent = time.process_time() - started
    assert seen == {status}, seen
    return spent / len(payments)


async def measure(peer: Probe | None, rounds: int = ROUNDS) -> list[Row]:
    """The rows of this part. The floors are those of the project's promise: multiples of what can't be avoided."""
    bare = bare_app()
    paywall, ours = paid_app(NoLedger())
    offer, echo = await offer_of(ours, "/weather")
    payers, asset = Payers(), DEFAULTS[NETWORKS[0]]
    unpaid = [None] * REQUESTS
    seen = Rounds()
    for _ in range(rounds):
        payments = payers.pay_often(offer, echo, REQUESTS)
        seen.add("bare", await _timed(bare, "/free", unpaid, 200))
        seen.add("unpriced", await _timed(ours, "/free", unpaid, 200))
        seen.add("challenge", await _timed(ours, "/weather", unpaid, 402))
        seen.add("check", _timed_checks(payments, asset))
        seen.add("paid", await _timed(ours, "/weather", payments, 200))
        if peer is not None:
            for case, count in PEER_REQUESTS.items():
                seen.add(f"peer {case}", await peer.seconds(case, count))
    await paywall.stop()
    return _rows(seen, with_peer=peer is not None)


def _timed_checks(payments: Sequence[bytes], asset: Asset) -> float:
    started = time.process_time()
    for payment in payments:
        bare_check(bytes(bytearray(payment)), asset)
    return (time.process_time() - started) / len(payments)


def _rows(seen: Rounds, *, with_peer: bool) -> list[Row]:
    def row(what: str, case: str, base: str, floor: float) -> Row:
        theirs = seen.shown(f"peer {case}", base) if with_peer else ""
        return Row(what, seen.ratio(case, base), seen.shown(case, base), floor, unit=" ×", peer=theirs)

    return [
        Row("a bare Starlette app", 0, f"{seen.micros('bare'):.1f} µs"),
        row("an unpriced route, × bare", "unpriced", "bare", 1.2),
        row("a 402 with two offers, × bare", "challenge", "bare", 4),
        Row("the bare check: header to payer", 0, f"{seen.micros('check'):.1f} µs"),
        row("a paid call, no ledger, × bare check", "paid", "check", 2.5),
    ]
