"""What the ``Payment`` scheme's methods put into ``request`` and ``payload``: lightning, evm, solana. No I/O.

All amounts are ``int``: satoshi for lightning, atomic units of the token for the chains; on the wire they are decimal
digits. Readers raise ``ValueError``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ..model import Json
from ..money import parse_atomic
from .bolt11 import BITCOIN, REGTEST, SIGNET, TESTNET
from .jcs import canonical_json

__all__ = [
    "CHARGES",
    "Charge",
    "EvmRequest",
    "LightningRequest",
    "SolanaRequest",
    "evm_nonces",
    "evm_request",
    "evm_source",
    "lightning_request",
    "read_evm_payload",
    "read_evm_request",
    "read_lightning_request",
    "read_preimage",
    "read_solana_payload",
    "read_solana_request",
    "solana_name",
    "solana_network",
    "solana_request",
]

_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_BYTES32: Final = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_KEY: Final = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}", re.ASCII)
_LIGHTNING: Final = {BITCOIN: "mainnet", TESTNET: "testnet", SIGNET: "signet", REGTEST: "regtest"}
_SOLANA: Final = {
    "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp": "mainnet",
    "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1": "devnet",
    "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z": "",
}
_LIGHTNING_NAMES: Final = {name: network for network, name in _LIGHTNING.items()}


class LightningRequest(NamedTuple):
    """``amount`` in satoshi. The invoice is what counts; hash and network (CAIP-2) may be missing, then empty."""

    amount: int
    invoice: str
    payment_hash: str
    network: str


def lightning_request(amount_sat: int, invoice: str, payment_hash: str, network: str) -> Json:
    """The request of lightning/charge. ``network`` is CAIP-2; the draft has no name for testnet, so we use its own."""
    return {
        "amount": str(amount_sat),
        "currency": "sat",
        "methodDetails": {"invoice": invoice, "network": _LIGHTNING[network], "paymentHash": payment_hash},
    }


def read_lightning_request(request: Json) -> LightningRequest:
    """Read a request of lightning/charge; that hash, network and amount are the invoice's is for the payer to see."""
    details = _object(request, "methodDetails")
    payment_hash, named = details.get("paymentHash", ""), details.get("network")
    if request.get("currency") != "sat":
        raise ValueError("the currency is not sat")
    if payment_hash and not (isinstance(payment_hash, str) and _HASH.fullmatch(payment_hash)):
        raise ValueError("paymentHash is not 64 hex digits")
    if named is not None and (not isinstance(named, str) or named not in _LIGHTNING_NAMES):
        raise ValueError("no network that we know")
    network = _LIGHTNING_NAMES[named] if named else ""
    return LightningRequest(parse_atomic(request.get("amount")), _text(details, "invoice", 8192), payment_hash, network)


def read_preimage(payload: Json) -> bytes:
    """The proof of lightning/charge."""
    preimage = payload.get("preimage")
    if not isinstance(preimage, str) or not _HASH.fullmatch(preimage):
        raise ValueError("preimage is not 64 hex digits in lower case")
    return bytes.fromhex(preimage)


class EvmRequest(NamedTuple):
    """evm/charge, paid by an EIP-3009 authorization: the only kind that clients send."""

    amount: int
    currency: str
    recipient: str
    chain_id: int
    splits: bool


def evm_request(amount: int, currency: str, recipient: str, chain_id: int, decimals: int) -> Json:
    """The request of evm/charge. Addresses with their checksum, as the clients write them."""
    return {
        "amount": str(amount),
        "currency": currency,
        "methodDetails": {"chainId": chain_id, "credentialTypes": ["authorization"], "decimals": decimals},
        "recipient": recipient,
    }


def read_evm_request(request: Json) -> EvmRequest:
    """Read a request of evm/charge that can be paid by an authorization."""
    details = _object(request, "methodDetails")
    chain_id, kinds = details.get("chainId"), details.get("credentialTypes")
    if type(chain_id) is not int or not 0 < chain_id < 2**53:
        raise ValueError("chainId is missing or not a number")
    if not isinstance(kinds, list) or "authorization" not in kinds:
        raise ValueError("an authorization is not taken")
    return EvmRequest(
        parse_atomic(request.get("amount")),
        _matching(request, "currency", _ADDRESS),
        _matching(request, "recipient", _ADDRESS),
        chain_id,
        bool(details.get("splits")),
    )


def evm_nonces(challenge_id: str, realm: str, keccak: Callable[[bytes], bytes]) -> tuple[str, str]:
    """The nonces that tie an authorization to its challenge: the draft's and mppx's first, then pympp's.

    The draft hashes id and realm one behind the other, which is unambiguous for ids of one length such as ours; pympp
    hashes them as a JSON array. A server takes both, a client has to choose.
    """
    as_json = f"[{_json_text(challenge_id)},{_json_text(realm)}]"
    packed, array = (keccak(text.encode()).hex() for text in (challenge_id + realm, as_json))
    return f"0x{packed}", f"0x{array}"


def _json_text(text: str) -> str:
    return canonical_json(text).decode()


def evm_source(chain_id: int, payer: str) -> str:
    """The ``source`` of such a credential; ``payer`` with its checksum."""
    return f"did:pkh:eip155:{chain_id}:{payer}"


def read_evm_payload(payload: Json) -> Json:
    """The proof of evm/charge as x402's ``exact`` spells the same authorization, so that one check reads both.

    Field by field it is text of the right form; sums, times and signature are for that check.
    """
    if payload.get("type") != "authorization":
        raise ValueError("not an authorization")
    fields = {name: _matching(payload, name, _ADDRESS) for name in ("from", "to")}
    fields["nonce"] = _matching(payload, "nonce", _BYTES32)
    for name in ("value", "validAfter", "validBefore"):
        parse_atomic(payload.get(name))
        fields[name] = payload[name]
    return {"authorization": fields, "signature": _text(payload, "signature", 16_384)}


class SolanaRequest(NamedTuple):
    """solana/charge of a token. ``fee_payer`` is empty where the payer pays the fee itself."""

    amount: int
    mint: str
    recipient: str
    network: str
    decimals: int
    token_program: str
    fee_payer: str
    recent_blockhash: str
    external_id: str
    splits: bool


def solana_name(network: str) -> str:
    """A network (CAIP-2) as solana/charge calls it, which knows no testnet: then empty. Any other one is local."""
    return _SOLANA.get(network, "localnet")


def solana_network(name: str) -> str:
    """The network (CAIP-2) that a payer takes a name for. A local one is a copy of mainnet, and its mints count as
    much: what is signed there could be good here.
    """
    return next((network for network, known in _SOLANA.items() if known == name), next(iter(_SOLANA)))


def solana_request(
    amount: int,
    mint: str,
    recipient: str,
    *,
    network: str,
    decimals: int,
    token_program: str,
    fee_payer: str = "",
    recent_blockhash: str = "",
    external_id: str = "",
) -> Json:
    """The request of solana/charge. ``network`` is ``mainnet``, ``devnet`` or ``localnet``.

    Clients write ``external_id`` into the transaction as a memo: without it two payments of one payer within a
    blockhash's life are the same message, and only one of them counts.
    """
    details: Json = {"decimals": decimals, "network": network, "tokenProgram": token_program}
    if fee_payer:
        details |= {"feePayer": True, "feePayerKey": fee_payer}
    if recent_blockhash:
        details["recentBlockhash"] = recent_blockhash
    made: Json = {"amount": str(amount), "currency": mint, "methodDetails": details, "recipient": recipient}
    return {**made, "externalId": external_id} if external_id else made


def read_solana_request(request: Json) -> SolanaRequest:
    """Read a request of solana/charge for a token; one in SOL, or a confidential one, is a ``ValueError``."""
    details = _object(request, "methodDetails")
    network, decimals = details.get("network", "mainnet"), details.get("decimals")
    if network == "mainnet-beta":  # so the method's own SDK spells it, against the draft
        network = "mainnet"
    if network not in ("mainnet", "devnet", "localnet") or details.get("confidential") not in (None, False):
        raise ValueError("no network or kind of charge that we know")
    if type(decimals) is not int or not 0 <= decimals <= 9:
        raise ValueError("decimals is missing or not a number")
    sponsored = details.get("feePayer", False)
    if not isinstance(sponsored, bool) or sponsored != ("feePayerKey" in details):
        raise ValueError("feePayer and feePayerKey do not fit")
    return SolanaRequest(
        parse_atomic(request.get("amount")),
        _matching(request, "currency", _KEY),
        _matching(request, "recipient", _KEY),
        network,
        decimals,
        _matching(details, "tokenProgram", _KEY) if "tokenProgram" in details else "",
        _matching(details, "feePayerKey", _KEY) if sponsored else "",
        _matching(details, "recentBlockhash", _KEY) if "recentBlockhash" in details else "",
        _text(request, "externalId", 566) if "externalId" in request else "",
        bool(details.get("splits")),
    )


def read_solana_payload(payload: Json) -> Json:
    """The proof of solana/charge as x402's ``exact`` spells it: the signed transaction, in base64.

    A transaction that the payer has sent itself (``signature``) is a ``ValueError``: it would be settled unseen.
    """
    if payload.get("type") != "transaction":
        raise ValueError("not a transaction")
    return {"transaction": _text(payload, "transaction", 4096)}


class Charge(NamedTuple):
    """What a request asks for and a payload pays, as x402 says it."""

    amount: int
    asset: str
    pay_to: str
    extra: Json
    payload: Json


def _solana_charge(request: Json, payload: Json) -> Charge:
    asked, proof = read_solana_request(request), read_solana_payload(payload)
    extra: Json = {"feePayer": asked.fee_payer, "memo": asked.external_id}
    return Charge(asked.amount, asked.mint, asked.recipient, extra, proof)


CHARGES: Final[Mapping[str, Callable[[Json, Json], Charge]]] = {"solana": _solana_charge}
"""Methods whose proof needs nothing of its challenge but the request: readers of both, which raise ``ValueError``."""


def _object(obj: Mapping[str, Any], key: str) -> Json:
    value = obj.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key} is missing or not an object")
    return value  # pyright: ignore[reportUnknownVariableType]  # JSON


def _text(obj: Mapping[str, Any], key: str, limit: int) -> str:
    value = obj.get(key)
    if isinstance(value, str) and 0 < len(value) <= limit:
        return value
    raise ValueError(f"{key} is missing or not text")


def _matching(obj: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = obj.get(key)
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    raise ValueError(f"{key} is missing or not as it must be")
