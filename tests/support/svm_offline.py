"""A seller's offline checks of Solana payments, without a chain: what a transaction is refused for, if anything."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from solders.hash import Hash
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from x402kit.errors import MalformedPayment, PaymentRefused
from x402kit.model import Authorization, Json, PaymentPayload, PaymentRequirements
from x402kit.networks import svm

from .svm_payments import NETWORK, USDC, encoded, offer_for, signed, standard

__all__ = ["Desk", "reason_part"]


def _seeded(seed: int) -> Keypair:
    return Keypair.from_seed(seed.to_bytes(32, "big"))


@dataclass
class Desk:
    """One seller: fee payer, payer, an offer, and the terms of its checks."""

    fee_payer: Keypair = field(default_factory=lambda: _seeded(1))
    payer: Keypair = field(default_factory=lambda: _seeded(2))
    blockhash: Hash = field(default_factory=lambda: Hash(bytes(range(32))))
    changes: Json = field(default_factory=dict[str, Any])
    pay_to: str = ""

    @property
    def offer(self) -> PaymentRequirements:
        made = offer_for(self.fee_payer.pubkey())
        return made._replace(pay_to=self.pay_to) if self.pay_to else made

    @property
    def terms(self) -> svm.Terms:
        made = svm.Terms(USDC, bytes(_TOKEN), bytes(self.fee_payer.pubkey()))
        return made._replace(**self.changes)

    def build(self, instructions: Sequence[Instruction] | None = None, *others: Keypair) -> VersionedTransaction:
        """Signed by the payer, and whoever else."""
        steps = standard(self.payer.pubkey()) if instructions is None else instructions
        return signed(self.fee_payer.pubkey(), steps, [self.payer, *others], self.blockhash)

    def parse(self, payload: Json) -> Authorization:
        return svm.parse(PaymentPayload(2, "exact", NETWORK, payload), self.offer, 1_900_000_000)

    def refusal(self, transaction: VersionedTransaction | bytes, **extra: str) -> str:
        """The reason, without its prefix; empty when it would be signed."""
        raw = bytes(transaction)
        try:
            authorization = self.parse({"transaction": base64.b64encode(raw).decode(), **extra})
            svm.check(authorization, self.offer, self.terms)
        except (PaymentRefused, MalformedPayment) as e:
            return reason_part(e.reason)
        return ""

    def of(self, *instructions: Instruction) -> str:
        """What these instructions are refused for."""
        return self.refusal(self.build(instructions))

    def payload(self) -> Json:
        return encoded(self.build())


def reason_part(reason: str) -> str:
    """A reason without what most of them begin with."""
    return reason.removeprefix("invalid_exact_svm_payload_").removeprefix("transaction_")


_TOKEN = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
