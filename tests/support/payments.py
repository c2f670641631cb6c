"""Payment headers as payers of every dialect make them, with every field open to change."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from x402kit.model import Json
from x402kit.money import Asset
from x402kit.networks import evm
from x402kit.protocols.x402 import caip2, encode_header, v1_network

from .rails import USDC

__all__ = ["KEY", "PAYER", "Payment", "changed", "pay", "sign", "v1", "v2"]

KEY = bytes.fromhex("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d")
"""The second of anvil's well-known accounts."""
PAYER = evm.address_of(KEY)


def changed(made: Json, changes: Json | None) -> Json:
    """A copy with changes; None takes a key away."""
    return {key: value for key, value in {**made, **(changes or {})}.items() if value is not None}


def sign(entry: Json, *, key: bytes = KEY, asset: Asset = USDC, **terms: Any) -> Json:
    """A payload for an offer. ``terms`` are what is signed instead: the fields of ``evm.Transfer``."""
    amount = entry["amount"] if entry.get("amount") is not None else entry["maxAmountRequired"]
    signed: dict[str, Any] = {
        "payer": evm.address_of(key).lower(),
        "to": entry["payTo"].lower(),
        "value": int(amount),
        "valid_after": 0,
        "valid_before": int(time.time()) + 300,
        "nonce": secrets.token_bytes(32),
        **terms,
    }
    transfer = evm.Transfer(**signed, signature=b"")
    return {
        "signature": "0x" + evm.sign_digest(key, evm.digest(transfer, asset)).hex(),
        "authorization": {
            "from": evm.checksum(transfer.payer),
            "to": entry["payTo"],
            "value": str(transfer.value),
            "validAfter": str(transfer.valid_after),
            "validBefore": str(transfer.valid_before),
            "nonce": "0x" + transfer.nonce.hex(),
        },
    }


@dataclass(frozen=True)
class Payment:
    """One signed payment for one offer, to be spelled as any client does."""

    entry: Json
    payload: Json

    def spelled(self, payload: Json | None = None, **authorization: Any) -> Json:
        """The payload with fields written otherwise than they were signed."""
        made = changed(self.payload, payload)
        return {**made, "authorization": changed(made["authorization"], authorization)}

    def v2(self, echo: Json | None = None, payload: Json | None = None, **top: Any) -> str:
        """As the standard clients send it: the whole offer echoed."""
        accepted = changed(self.entry, echo)
        made = {"x402Version": 2, "accepted": accepted, "payload": self.payload if payload is None else payload}
        return encode_header(changed(made, top))

    def v1(self, **top: Any) -> str:
        """v1: no echo, and the network's short name."""
        network = v1_network(caip2(self.entry["network"]))
        made = {"x402Version": 1, "scheme": self.entry["scheme"], "network": network, "payload": self.payload}
        return encode_header(changed(made, top))

    def katana(self, echo: Json | None = None) -> str:
        """imgnAI's documented client: no ``extra`` in the echo, both amounts, times as numbers."""
        authorization = self.payload["authorization"]
        times: dict[str, Any] = {key: int(authorization[key]) for key in ("validAfter", "validBefore")}
        return self.v2(
            {"extra": None, "maxAmountRequired": self.entry["amount"], **(echo or {})}, self.spelled(None, **times)
        )

    def venice(self) -> str:
        """Version 2 in v1's shape: scheme and network at the top."""
        return encode_header(
            {"x402Version": 2, "scheme": "exact", "network": self.entry["network"], "payload": self.payload}
        )


def pay(entry: Json, **terms: Any) -> Payment:
    """Sign a payment for an offer; ``terms`` as in ``sign``."""
    return Payment(entry, sign(entry, **terms))


def v2(entry: Json, **terms: Any) -> dict[str, str]:
    """The request header of a standard payment."""
    return {"PAYMENT-SIGNATURE": pay(entry, **terms).v2()}


def v1(entry: Json, **terms: Any) -> dict[str, str]:
    return {"X-PAYMENT": pay(entry, **terms).v1()}
