"""What is to be signed for an offer, and what the journal writes down of it. Pure, but for a blockhash."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from ..errors import NothingPayable
from .auth_offers import charge_nonce
from .challenge import Offer
from .journal import Payment
from .policy import Target, micros_of
from .steps import Step, Work
from .wallets import Prepared, Wallets, authorize

__all__ = ["draft_of", "prepare"]


def prepare(
    wallets: Wallets, offer: Offer, now: int, max_validity: int, nonces: Callable[[], bytes]
) -> Generator[Step, Any, Prepared]:
    """What is to be signed on a chain. On Solana it holds a recent blockhash, the offer's or our own node's."""
    terms, said = offer.terms, offer.solana
    if said is None:
        assert wallets.evm is not None
        challenge = offer.auth.challenge if offer.auth else None
        nonce = nonces() if challenge is None else charge_nonce(challenge)
        until = now + min(terms.max_timeout_seconds, max_validity)
        to = (offer.asset, terms.pay_to, terms.amount, until, nonce)
        return Prepared("0x" + nonce.hex(), wallets.evm.address, until, partial(authorize, wallets.evm, *to))
    assert wallets.solana is not None
    blockhash = said.blockhash
    if not blockhash:
        if wallets.node is None:
            raise NothingPayable("the offer on Solana brings no recent blockhash; Payer(svm_rpc=…) names a node")
        blockhash = yield Work(wallets.node.latest)
    from . import svm

    made = svm.prepare(wallets.solana, terms, offer.asset, said, blockhash, now)
    return Prepared(made.reference, made.payer, made.valid_before, made.payload)


def draft_of(offer: Offer, prepared: Prepared, target: Target, now: int) -> Payment:
    """The row before its signature."""
    terms = offer.terms
    return Payment(
        reference=prepared.reference,
        fingerprint=target.fingerprint,
        method=target.method,
        url=target.url,
        network=terms.network,
        asset=offer.asset.address,
        pay_to=terms.pay_to,
        payer=prepared.payer,
        amount=terms.amount,
        micros=micros_of(offer),
        created_at=now,
        valid_before=prepared.valid_before,
    )
