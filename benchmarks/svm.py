"""CPU time of a call that is paid on Solana, in process, with the real checks and a stubbed chain."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.token.associated import get_associated_token_address
from solders.transaction import VersionedTransaction
from starlette.applications import Starlette
from starlette.routing import Route

from x402kit import Paywall
from x402kit.asgi.gate import Gate
from x402kit.model import Authorization, Claim, Intent, Json, Outcome, PaymentRequirements
from x402kit.networks import SvmRail
from x402kit.networks.port import Nonces
from x402kit.protocols.x402 import encode_header

from .asgi import drive, offer_of
from .processes import Probe
from .results import Rounds, Row
from .stubs import ORIGIN, NoLedger, weather

__all__ = ["measure"]

ROUNDS: Final = 11
REQUESTS: Final = 400
AT_ONCE: Final = 16
PEER_REQUESTS: Final = 60
NETWORK: Final = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
_MEMO: Final = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
_TOKEN: Final = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")


class StubbedSolana(SvmRail):
    """The rail with its real offline checks, on a chain that agrees with everything at once."""

    async def start(self) -> None:
        pass

    async def ready(self) -> None:
        pass

    async def verify(self, authorization: Authorization, offer: PaymentRequirements) -> None:
        pass

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        return Intent(authorization.payment_id, b"")

    async def send(self, intent: Intent) -> Outcome:
        return Outcome("settled", reference=intent.reference, block=1, final=True)

    async def outcome(self, claim: Claim) -> Outcome:
        return Outcome("settled", reference=claim.reference, block=1, final=True)


class SolanaPayers:
    """Some wallets that sign in turn; a payment is a header's value, good for one call."""

    def __init__(self, count: int = 32) -> None:
        self._pairs = [Keypair() for _ in range(count)]
        self._turn = 0

    def pay(self, offer: PaymentRequirements, echo: Json) -> bytes:
        """A payment of ``offer`` as standard clients build it; ``echo`` is how it stands in the challenge."""
        pair = self._pairs[self._turn % len(self._pairs)]
        self._turn += 1
        transaction = payment(pair, offer.asset, offer.pay_to, offer.amount, str(offer.extra["feePayer"]))
        return encode_header({"x402Version": 2, "accepted": echo, "payload": {"transaction": transaction}}).encode()

    def pay_often(self, offer: PaymentRequirements, echo: Json, count: int) -> list[bytes]:
        return [self.pay(offer, echo) for _ in range(count)]


def payment(pair: Keypair, asset: str, pay_to: str, amount: int, fee_payer: str) -> str:
    """Base64 of a transfer, signed by the payer alone."""
    mint, owner = Pubkey.from_string(asset), pair.pubkey()
    accounts = [
        AccountMeta(get_associated_token_address(owner, mint), is_signer=False, is_writable=True),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(get_associated_token_address(Pubkey.from_string(pay_to), mint), is_signer=False, is_writable=True),
        AccountMeta(owner, is_signer=True, is_writable=False),
    ]
    steps = [
        set_compute_unit_limit(20_000),
        set_compute_unit_price(1),
        Instruction(_TOKEN, b"\x0c" + amount.to_bytes(8, "little") + b"\x06", accounts),
        Instruction(_MEMO, os.urandom(16).hex().encode(), []),
    ]
    message = MessageV0.try_compile(Pubkey.from_string(fee_payer), steps, [], Hash.new_unique())
    signatures = [Signature.default(), pair.sign_message(to_bytes_versioned(message))]
    return base64.b64encode(bytes(VersionedTransaction.populate(message, signatures))).decode()


def bare_check(header: bytes) -> None:
    """From the header's bytes to the payer, by the shortest way, and without any other check: the unit of a payment."""
    found: dict[str, Any] = json.loads(base64.b64decode(header))["payload"]
    transaction = VersionedTransaction.from_bytes(base64.b64decode(found["transaction"]))
    message = transaction.message
    assert transaction.signatures[1].verify(message.account_keys[1], to_bytes_versioned(message))


def paid_app() -> tuple[Paywall, Gate]:
    """A handler for a cent behind our gate."""
    rail = StubbedSolana(NETWORK, pay_to=str(Keypair().pubkey()), fee_payer=str(Keypair().pubkey()))
    paywall = Paywall([rail], NoLedger(), origin=ORIGIN)
    return paywall, paywall.protect(Starlette(routes=[Route("/weather", paywall.paid("$0.01")(weather))]))


def _timed_checks(payments: Sequence[bytes]) -> float:
    started = time.process_time()
    for each in payments:
        bare_check(bytes(bytearray(each)))
    return (time.process_time() - started) / len(payments)


async def _timed_calls(app: Gate, payments: Sequence[bytes]) -> float:
    started = time.process_time()
    seen = await drive(app, "/weather", payments, AT_ONCE)
    spent = time.process_time() - started
    assert seen == {200}, seen
    return spent / len(payments)


async def measure(peer: Probe | None, rounds: int = ROUNDS) -> list[Row]:
    """The rows of this part."""
    paywall, ours = paid_app()
    offer, echo = await offer_of(ours, "/weather")
    payers = SolanaPayers()
    seen = Rounds()
    for _ in range(rounds):
        payments = payers.pay_often(offer, echo, REQUESTS)
        seen.add("check", _timed_checks(payments))
        seen.add("paid", await _timed_calls(ours, payments))
        if peer is not None:
            seen.add("peer paid", await peer.seconds("solana", PEER_REQUESTS))
    await paywall.stop()
    theirs = seen.shown("peer paid", "check") if peer is not None else ""
    rows = [
        Row("Solana: the bare check, header to payer", 0, f"{seen.micros('check'):.1f} µs"),
        Row(
            "a call paid on Solana, no ledger, × bare check",
            seen.ratio("paid", "check"),
            seen.shown("paid", "check"),
            2.5,
            unit=" ×",
            peer=theirs,
        ),
    ]
    if peer is not None:
        times = seen.ratio("peer paid", "paid")
        rows.append(Row("the same through the peer and its facilitator ÷ ours", times, f"{times:.2f} ×", 3, ">=", " ×"))
    return rows
