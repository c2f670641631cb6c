"""Our facilitator as the x402-conformance package's offline checks want to see one: its stand-in payments made real.

The package's payments are ``{tx, memo, amount, finalized, mint, dest, net}``. Here each becomes an EIP-3009
authorization, signed and sent over HTTP: the memo makes the nonce, the mint and the network the signed domain; one that
is not ``finalized`` is settled while the chain makes no blocks. In answers the package's ``tx`` stands for the hash.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import httpx
from eth_account import Account
from x402conf.mock import Chain, load_fixture, vectors
from x402conf.types import Facilitator

from x402kit.devnet import EvmAccount, EvmDevnet
from x402kit.devnet.contracts import encode
from x402kit.model import Json

__all__ = ["HttpFacilitator", "made_vectors"]

_KINDS = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
_NAMES = ("from", "to", "value", "validAfter", "validBefore", "nonce")
_TYPES = {"TransferWithAuthorization": [{"name": n, "type": t} for n, t in zip(_NAMES, _KINDS, strict=True)]}
_POOR = "tx-p-fail"
"""The payment that is to fail on the chain; its payer has little money."""


def made_vectors(chain: EvmDevnet, pay_to: str) -> Any:
    """The package's vectors with our chain's token."""
    fixture = load_fixture()
    fixture["requirements"] = {
        "scheme": "exact",
        "network": f"eip155:{chain.chain_id}",
        "asset": chain.usdc,
        "payTo": pay_to,
        "amount": "10000",
        "maxTimeoutSeconds": 300,
        "extra": {"name": "USD Coin", "version": "2"},
    }
    return vectors(fixture)


class RealChain(Chain):
    """Makes the block that decides a payment."""

    def __init__(self, chain: EvmDevnet) -> None:
        super().__init__()
        self._chain = chain

    def set(self, tx: str, status: str) -> None:
        super().set(tx, status)
        if status == Chain.FAILED:
            self._spend_first(self._chain.accounts[5])
        self._chain.mine()

    def _spend_first(self, payer: EvmAccount) -> None:
        """The payer's money goes elsewhere, in the same block and for a better fee."""
        money = self._chain.balance_of(payer.address)
        data = encode("transfer(address,uint256)", self._chain.accounts[4].address, money)
        fees = {"maxFeePerGas": hex(10**12), "maxPriorityFeePerGas": hex(10**11), "gas": hex(200_000)}
        self._chain.rpc("eth_sendTransaction", {"from": payer.address, "to": self._chain.usdc, "data": data, **fees})


@dataclass
class HttpFacilitator(Facilitator):
    """The facilitator at ``url``, for ``x402conf.harness.check_safety``."""

    devnet: EvmDevnet
    url: str
    headers: dict[str, str]

    def __post_init__(self) -> None:
        self.chain = RealChain(self.devnet)
        self._transactions: dict[str, str] = {}

    def supported(self) -> Any:
        return httpx.get(f"{self.url}/supported", headers=self.headers).json()

    def verify(self, payload: Any, requirements: Json) -> Any:
        return self._call("verify", payload, requirements)

    def settle(self, payload: Any, requirements: Json) -> Any:
        self.devnet.set_automine(bool(payload.get("finalized")))
        answer = self._call("settle", payload, requirements)
        if answer.get("transaction"):
            answer["transaction"] = self._transactions.setdefault(answer["transaction"], payload["tx"])
        return answer

    def _call(self, endpoint: str, payload: Json, requirements: Json) -> Json:
        made = self._payment(payload, requirements) if payload.get("tx") else {"x402Version": 2, "payload": payload}
        body = {"x402Version": 2, "paymentPayload": made, "paymentRequirements": requirements}
        answer = httpx.post(f"{self.url}/{endpoint}", json=body, headers=self.headers, timeout=15)
        assert answer.status_code in (200, 400), (answer.status_code, answer.text)
        said: Json = answer.json()
        return said

    def _payment(self, payload: Json, requirements: Json) -> Json:
        payer = self.devnet.accounts[5 if payload["tx"] == _POOR else 1]
        terms: Json = {
            "from": payer.address,
            "to": payload["dest"],
            "value": int(payload["amount"]),
            "validAfter": 0,
            "validBefore": int(time.time()) + 300,
            "nonce": hashlib.sha256(payload["memo"].encode()).digest(),
        }
        signed = Account.sign_typed_data(payer.private_key, _domain(payload), _TYPES, terms)
        spelled = {key: str(terms[key]) for key in _NAMES[:5]}
        shown = {**spelled, "value": str(payload["amount"]), "nonce": "0x" + terms["nonce"].hex()}
        return {
            "x402Version": 2,
            "accepted": {**requirements, "asset": payload["mint"], "network": payload["net"]},
            "payload": {"signature": "0x" + bytes(signed.signature).hex(), "authorization": shown},
        }


def _domain(payload: Json) -> Json:
    """What the payer signs for; what is no EVM network or token gets a number or an address made from its name."""
    named = payload["net"].removeprefix("eip155:")
    chain_id = int(named) if named.isdigit() else int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "big")
    mint = payload["mint"]
    token = mint if mint.startswith("0x") else "0x" + hashlib.sha256(mint.encode()).hexdigest()[:40]
    return {"name": "USD Coin", "version": "2", "chainId": chain_id, "verifyingContract": token}
