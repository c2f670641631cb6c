"""A payment header, explained: an EIP-3009 authorization held against the offer that it answers.

Unlike networks/evm.py, which refuses at the first fault, all faults are told.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ..errors import MalformedPayment
from ..model import VALID_FOR_MAX, VALID_FOR_MIN, Json, PaymentPayload, PaymentRequirements
from ..money import Asset
from ..networks import evm
from ..networks.assets import DEFAULTS, default_asset, find_asset
from ..protocols import x402
from .explain_svm import explain_solana_payment
from .report import Report, amount_text, network_text

__all__ = ["explain_payment"]


def explain_payment(obj: Json, report: Report, now: int) -> None:
    """What is paid to whom, and whether a server could take it at ``now`` (Unix seconds)."""
    try:
        payment = x402.parse_payment_payload(obj)
    except ValueError as e:
        report.problem("payment_malformed", str(e))
        return
    offer = payment.accepted
    report.say(f"A payment of x402 v{payment.x402_version}: {payment.scheme} on {network_text(payment.network)}")
    report.network("the payment", payment.network)
    if offer is None and payment.x402_version == 2:
        report.note("accepted_missing", "version 2 without the accepted offer: v1's shape; some dialects send it")
    if payment.scheme == "exact" and payment.network.startswith("solana:"):
        explain_solana_payment(payment, report)
        return
    if payment.scheme != "exact" or "authorization" not in payment.payload or not payment.network.startswith("eip155:"):
        report.note("not_examined", "only payments of scheme exact, by EIP-3009 or on Solana, are examined further")
        return
    asset = _asset(payment, report)
    if offer is not None:
        price = amount_text(offer.amount, offer.network, offer.asset)
        quote = ", with its quote" if payment.quote else ""
        report.say(f"  answers  an offer of {price} to {offer.pay_to}{quote}")
    _authorization(payment, asset, report, now)


def _asset(payment: PaymentPayload, report: Report) -> Asset | None:
    offer = payment.accepted
    if payment.network not in DEFAULTS:
        report.problem("network_unknown", f"no asset is known on {payment.network}")
        return None
    if offer is None:
        asset = default_asset(payment.network)
        assert asset is not None
        report.note("asset_assumed", f"v1 does not say which asset; taken as {asset.symbol}, {asset.address}")
        return asset
    report.address("payTo", offer.pay_to)
    report.address("asset", offer.asset)
    asset = find_asset(offer.network, offer.asset)
    if asset is None:
        report.problem("asset_unknown", f"{offer.asset} is no asset that we know on {offer.network}")
    else:
        report.domain("the offer", dict(offer.extra), asset)
    return asset


def _authorization(payment: PaymentPayload, asset: Asset | None, report: Report, now: int) -> None:
    address = asset.address if asset else payment.accepted.asset if payment.accepted else ""
    stated = payment.accepted
    terms = stated or PaymentRequirements("exact", payment.network, 0, address, "", 0)
    try:
        parsed = evm.parse(payment, terms)
    except MalformedPayment as e:
        report.problem("payment_malformed", e.detail or e.reason)
        return
    transfer = parsed.body
    assert isinstance(transfer, evm.Transfer)
    report.say(f"  pays     {amount_text(transfer.value, payment.network, address)}")
    report.say(f"  from     {evm.checksum(transfer.payer)}")
    report.say(f"  to       {evm.checksum(transfer.to)}")
    report.say(f"  until    {_clock(transfer.valid_before, now)}")
    report.say(f"  nonce    0x{transfer.nonce.hex()}")
    for key in ("from", "to"):
        report.address(key, payment.payload["authorization"][key])
    if transfer.payer == transfer.to:
        report.problem("pays_itself", "from and to are the same address")
    if stated is not None:
        _beside_offer(transfer, stated, report)
    _times(transfer, report, now)
    if asset is not None:
        _signature(transfer, asset, report)


def _beside_offer(transfer: evm.Transfer, offer: PaymentRequirements, report: Report) -> None:
    if transfer.value != offer.amount:
        report.problem("value_mismatch", f"value is {transfer.value}, the offer asks for {offer.amount}")
    if transfer.to != offer.pay_to.lower():
        report.problem("recipient_mismatch", f"it pays {evm.checksum(transfer.to)}, the offer asks for {offer.pay_to}")


def _times(transfer: evm.Transfer, report: Report, now: int) -> None:
    if transfer.valid_before < now:
        report.problem("expired", f"validBefore was {_clock(transfer.valid_before, now)}")
    elif transfer.valid_before < now + VALID_FOR_MIN:
        report.problem("expires_too_soon", f"servers want {VALID_FOR_MIN} s to settle it")
    elif transfer.valid_before > now + VALID_FOR_MAX:
        report.problem("valid_too_long", f"servers take at most {VALID_FOR_MAX} s; it could be used until then")
    if transfer.valid_after > now:
        report.problem("not_yet_valid", f"validAfter is {_clock(transfer.valid_after, now)}")


def _signature(transfer: evm.Transfer, asset: Asset, report: Report) -> None:
    signature = transfer.signature
    if transfer.is_wrapped:
        report.note("signature_wrapped", "ERC-6492: for a wallet that is not deployed yet; most servers refuse it")
        return
    if len(signature) != 65:
        if len(signature) < 65:
            report.problem("signature_short", f"{len(signature)} bytes; a key's signature has 65")
        else:
            report.note("signature_of_contract", "not a key's; whether a contract takes it, its chain can say")
        return
    if int.from_bytes(signature[32:64], "big") > evm.HALF_ORDER:
        report.problem("signature_high_s", "s is in the upper half of the order: the token refuses it (EIP-2)")
    if signature[64] not in (27, 28):
        report.problem("signature_v", f"v is {signature[64]}, not 27 or 28")
        return
    signer = evm.recover(evm.digest(transfer, asset), signature)
    if signer is None:
        report.problem("signature_invalid", "no key can have made it")
    elif signer != transfer.payer:
        detail = f"signed by {evm.checksum(signer)}, or over other fields or another domain, and not by from"
        report.problem("signature_not_by_from", f"{detail}; good only if from is a contract that accepts it")
    else:
        report.say(f"  signed   by from, for {asset.name!r} version {asset.version!r} on {asset.network}")


def _clock(seconds: int, now: int) -> str:
    """A time in words, with its distance from now."""
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970, beyond any calendar"
    distance = seconds - now
    return f"{text}, in {distance} s" if distance >= 0 else f"{text}, {-distance} s ago"
