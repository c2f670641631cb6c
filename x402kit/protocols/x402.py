"""x402 on the wire: v2, and v1 for old clients. Parse and build, no I/O, no clock (wire.md sections 1 and 5).

Every dialect that we speak stands in the tables at the top: header names, v1's short network names, and the fields with
two spellings. All parsers raise ``ValueError``; whoever reads a request turns that into ``MalformedPayment`` (400).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final

from ..errors import HeaderTooLarge, MalformedPayment
from ..model import (
    HEADER_MAX,
    Json,
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    ResourceInfo,
    SettlementResponse,
    VerifyResponse,
)
from ..money import parse_atomic
from .encoding import b64decode, b64encode, dump_json, parse_object

__all__ = [
    "EXPOSED_HEADERS",
    "PAYMENT_HEADERS",
    "PAYMENT_REQUIRED",
    "PAYMENT_RESPONSE",
    "PAYMENT_SIGNATURE",
    "V1_NETWORKS",
    "V1_PAYMENT",
    "V1_PAYMENT_RESPONSE",
    "caip2",
    "decode_header",
    "encode_header",
    "find_payment",
    "parse_payment_payload",
    "parse_payment_required",
    "parse_requirements",
    "parse_settlement_response",
    "parse_verify_response",
    "receipt_header",
    "requirements_json",
    "requirements_json_v1",
    "settlement_json",
    "v1_network",
    "verify_json",
]

PAYMENT_REQUIRED: Final = "PAYMENT-REQUIRED"
PAYMENT_SIGNATURE: Final = "PAYMENT-SIGNATURE"
PAYMENT_RESPONSE: Final = "PAYMENT-RESPONSE"
V1_PAYMENT: Final = "X-PAYMENT"
V1_PAYMENT_RESPONSE: Final = "X-PAYMENT-RESPONSE"

PAYMENT_HEADERS: Final = frozenset((b"payment-signature", b"x-402-payment", b"x-payment"))
"""Where a payment may stand in a request: v2, its alias (Katana, Venice), and v1 (wire.md 1.6 row 15)."""

EXPOSED_HEADERS: Final = (
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    V1_PAYMENT_RESPONSE,
    "Payment-Outcome",
    "Payment-Replayed",
    "X-Balance-Remaining",
    "Retry-After",
    "WWW-Authenticate",
    "Payment-Receipt",
)
"""What a browser's script must be let see (K08)."""

V1_NETWORKS: Final[Mapping[str, str]] = {
    "base": "eip155:8453",
    "base-sepolia": "eip155:84532",
    "polygon": "eip155:137",
    "polygon-amoy": "eip155:80002",
    "avalanche": "eip155:43114",
    "avalanche-fuji": "eip155:43113",
    "sei": "eip155:1329",
    "sei-testnet": "eip155:1328",
    "iotex": "eip155:4689",
    "peaq": "eip155:3338",
    "solana": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp",
    "solana-devnet": "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1",
}
_V1_NAMES: Final = {caip: name for name, caip in V1_NETWORKS.items()}


def caip2(network: str) -> str:
    """The CAIP-2 id of a network in v1's or v2's spelling; unknown ones stay as they are."""
    return V1_NETWORKS.get(network, network)


def v1_network(network: str) -> str | None:
    """v1's short name of a CAIP-2 network, or None where v1 has none."""
    return _V1_NAMES.get(network)


def encode_header(value: Json) -> str:
    """Base64 of JSON, as all x402 headers are."""
    return b64encode(dump_json(value))


def decode_header(text: str, *, floats: bool = False) -> Json:
    """Read an x402 header's value; ``ValueError`` when it is none, or over ``HEADER_MAX``."""
    if len(text) > HEADER_MAX:
        raise ValueError("header too large")
    return parse_object(b64decode(text), floats=floats)


def find_payment(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The one payment header of a request, raw, or None.

    The same value under two spellings is one payment; anything else that comes twice is ``MalformedPayment`` (A11), and
    one over the limit ``HeaderTooLarge`` (K01), both before anything is decoded.
    """
    shown = [pair for pair in headers if pair[0] in PAYMENT_HEADERS]
    if len(shown) == 1 and len(shown[0][1]) <= HEADER_MAX:  # the usual one needs no further look
        return shown[0][1]
    found: bytes | None = None
    seen: set[bytes] = set()
    for name, value in shown:
        if name in seen or (found is not None and value != found):
            raise MalformedPayment("more than one payment in the request")
        if len(value) > HEADER_MAX:
            raise HeaderTooLarge()
        seen.add(name)
        found = value
    return found


def _text(obj: Json, key: str, limit: int) -> str:
    value = obj.get(key)
    if isinstance(value, str) and 0 < len(value) <= limit:
        return value
    raise ValueError(f"{key} is missing or not text")


def _object(obj: Mapping[str, Any], key: str) -> Json:
    value = obj.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")
    return value  # pyright: ignore[reportUnknownVariableType]  # JSON


def _optional_text(obj: Mapping[str, Any], key: str) -> str:
    value = obj.get(key)
    return value if isinstance(value, str) else ""


def _amount(obj: Mapping[str, Any]) -> int:
    """``amount`` (v2) and ``maxAmountRequired`` (v1, Katana): either, or both and equal (wire.md 1.6 row 2)."""
    v2, v1 = obj.get("amount"), obj.get("maxAmountRequired")
    if v2 is not None and v1 is not None and v2 != v1:
        raise ValueError("amount is stated twice and different")
    return parse_atomic(v1 if v2 is None else v2)


def _seconds(obj: Mapping[str, Any], key: str) -> int:
    value = obj.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"{key} is not a number of seconds")
    return value


def _version(obj: Mapping[str, Any]) -> int:
    value = obj.get("x402Version")
    if isinstance(value, bool) or value not in (1, 2):
        raise ValueError("invalid_x402_version")
    return int(value)


def parse_requirements(obj: Json) -> PaymentRequirements:
    """One entry of ``accepts[]``, of either version; the network comes out as CAIP-2."""
    get: Callable[[str], Any] = obj.get
    scheme, network, asset, pay_to = get("scheme"), get("network"), get("asset"), get("payTo")
    seconds = get("maxTimeoutSeconds")
    extra: Json | None = get("extra")
    # In one look, since every payment has one of these; what is wrong with it is found out field by field.
    if not (
        isinstance(scheme, str)
        and isinstance(network, str)
        and isinstance(asset, str)
        and isinstance(pay_to, str)
        and isinstance(extra, dict)
        and type(seconds) is int
        and 0 < len(scheme) <= 64
        and 0 < len(network) <= 128
        and 0 < len(asset) <= 128
        and 0 < len(pay_to) <= 128
        and 0 < seconds < 2**31
    ):
        scheme, network = _text(obj, "scheme", 64), _text(obj, "network", 128)
        asset, pay_to = _text(obj, "asset", 128), _text(obj, "payTo", 128)
        seconds, extra = _seconds(obj, "maxTimeoutSeconds"), _object(obj, "extra")
    return PaymentRequirements(scheme, V1_NETWORKS.get(network, network), _amount(obj), asset, pay_to, seconds, extra)


def parse_payment_payload(obj: Json) -> PaymentPayload:
    """The content of a payment header: v2 with ``accepted``, or v1's shape (also sent as version 2 by Venice)."""
    version = _version(obj)
    payload = obj.get("payload")
    if not isinstance(payload, dict):
        raise ValueError("payload is missing or not an object")
    accepted = obj.get("accepted")
    if accepted is None:
        scheme, network, parsed = _text(obj, "scheme", 64), caip2(_text(obj, "network", 128)), None
    elif not isinstance(accepted, dict):
        raise ValueError("accepted is not an object")
    else:
        parsed = parse_requirements(accepted)  # pyright: ignore[reportUnknownArgumentType]  # JSON
        scheme, network = parsed.scheme, parsed.network
    return PaymentPayload(
        version,
        scheme,
        network,
        payload,  # pyright: ignore[reportUnknownArgumentType]  # JSON
        parsed,
        _resource(obj.get("resource")),
        _object(obj, "extensions"),
        obj,
    )


def _resource(value: Any) -> ResourceInfo | None:
    if not isinstance(value, dict):
        return None
    obj: Json = value  # pyright: ignore[reportUnknownVariableType]  # JSON
    return ResourceInfo(_optional_text(obj, "url"), _optional_text(obj, "description"), _optional_text(obj, "mimeType"))


def parse_payment_required(obj: Json) -> PaymentRequired:
    """A 402 challenge, v2's header or v1's body. Entries that we can't read are left out: they are not for us."""
    version = _version(obj)
    entries = obj.get("accepts")
    if not isinstance(entries, list):
        raise ValueError("accepts is missing")
    accepts: list[PaymentRequirements] = []
    raw: list[Json] = []
    for entry in entries[:64]:  # pyright: ignore[reportUnknownVariableType]  # JSON
        if not isinstance(entry, dict):
            continue
        try:
            accepts.append(parse_requirements(entry))  # pyright: ignore[reportUnknownArgumentType]  # JSON
        except ValueError:
            continue
        raw.append(entry)  # pyright: ignore[reportUnknownArgumentType]  # JSON
    return PaymentRequired(
        x402_version=version,
        accepts=tuple(accepts),
        resource=_resource(obj.get("resource")),
        error=_optional_text(obj, "error"),
        extensions=_object(obj, "extensions"),
        raw_accepts=tuple(raw),
    )


def requirements_json(offer: PaymentRequirements) -> Json:
    """An ``accepts[]`` entry as we emit it: v2's fields, and ``maxAmountRequired`` for Katana's clients."""
    return {
        "scheme": offer.scheme,
        "network": offer.network,
        "amount": str(offer.amount),
        "maxAmountRequired": str(offer.amount),
        "asset": offer.asset,
        "payTo": offer.pay_to,
        "maxTimeoutSeconds": offer.max_timeout_seconds,
        "extra": dict(offer.extra),
    }


def requirements_json_v1(offer: PaymentRequirements, resource: ResourceInfo) -> Json | None:
    """The same as a v1 entry, or None where v1 has no name for the network."""
    network = v1_network(offer.network)
    if network is None:
        return None
    return {
        "scheme": offer.scheme,
        "network": network,
        "maxAmountRequired": str(offer.amount),
        "resource": resource.url,
        "description": resource.description,
        "mimeType": resource.mime_type,
        "payTo": offer.pay_to,
        "maxTimeoutSeconds": offer.max_timeout_seconds,
        "asset": offer.asset,
        "extra": dict(offer.extra),
    }


def settlement_json(receipt: SettlementResponse, *, v1: bool = False) -> Json:
    """A receipt as JSON; v1 spells the network its own way."""
    network = (v1_network(receipt.network) or receipt.network) if v1 else receipt.network
    out: Json = {"success": receipt.success, "transaction": receipt.transaction, "network": network}
    if receipt.payer:
        out["payer"] = receipt.payer
    if receipt.amount is not None:
        out["amount"] = str(receipt.amount)
    if receipt.error_reason:
        out["errorReason"] = receipt.error_reason
    return out


def receipt_header(network: str, transaction: str, payer: str, amount: int, *, v1: bool = False) -> bytes:
    """PAYMENT-RESPONSE of a settlement: ``settlement_json`` written without detours, since every paid call has one."""
    name = (v1_network(network) or network) if v1 else network
    paid_by = f',"payer":{_quoted(payer)}' if payer else ""
    text = f'{{"success":true,"transaction":{_quoted(transaction)},"network":{_quoted(name)}{paid_by}'
    return b64encode(f'{text},"amount":"{amount}"}}'.encode("ascii")).encode("ascii")


def verify_json(answer: VerifyResponse) -> Json:
    """A facilitator's /verify answer as JSON."""
    out: Json = {"isValid": answer.is_valid}
    if answer.invalid_reason:
        out["invalidReason"] = answer.invalid_reason
    if answer.payer:
        out["payer"] = answer.payer
    return out


def parse_settlement_response(obj: Json) -> SettlementResponse:
    """A receipt or a /settle answer. ``success`` must be a boolean: a missing one is no answer at all (I-05)."""
    success = obj.get("success")
    if not isinstance(success, bool):
        raise ValueError("success is missing")
    amount = obj.get("amount")
    return SettlementResponse(
        success=success,
        network=caip2(_optional_text(obj, "network")),
        transaction=_optional_text(obj, "transaction"),
        payer=_optional_text(obj, "payer"),
        amount=None if amount is None else parse_atomic(amount),
        error_reason=_optional_text(obj, "errorReason"),
    )


def parse_verify_response(obj: Json) -> VerifyResponse:
    """A /verify answer; ``isValid`` must be a boolean."""
    valid = obj.get("isValid")
    if not isinstance(valid, bool):
        raise ValueError("isValid is missing")
    return VerifyResponse(valid, _optional_text(obj, "payer"), _optional_text(obj, "invalidReason"))
