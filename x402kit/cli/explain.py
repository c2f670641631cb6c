"""A challenge and a receipt, explained. A payment is explain_payment.py's."""

from __future__ import annotations

from typing import Any

from ..model import VALID_FOR_MAX, VALID_FOR_MIN, Json, PaymentRequirements
from ..money import Asset, parse_units
from ..networks.assets import DEFAULTS, TESTNETS, find_asset
from ..protocols import x402
from ..protocols.siwx import EXTENSION
from .explain_svm import known_asset, look_at_offer
from .report import Report, amount_text, network_text

__all__ = ["explain_challenge", "explain_receipt", "explain_sign_in"]


def explain_challenge(obj: Json, report: Report) -> None:
    """A 402's offers: what each asks for, and what a payer would stumble over."""
    version = obj.get("x402Version")
    if version not in (1, 2):
        report.problem("version_unknown", f"x402Version is {version!r}, not 1 or 2")
    found: Any = obj.get("accepts")
    entries: list[Any] = found if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType]  # JSON
    if not entries:
        report.problem("no_offers", "accepts is empty, or no list")
    report.say(f"A challenge of x402 v{version}: {len(entries)} offer(s) of which one is to be paid")
    _resource(obj, report)
    offers = [_offer(f"offer {n}", entry, version, report) for n, entry in enumerate(entries, 1)]
    if len({offer.network in TESTNETS for offer in offers if offer}) > 1:
        report.problem("mixed_networks", "some offers take real money, others test money")


def explain_sign_in(obj: Json, host: str, report: Report) -> None:
    """Whether a 402's challenge for a wallet proof is for the host (with its port) that it came from."""
    info: Any = obj.get("extensions")
    for name in (EXTENSION, "info"):
        info = info.get(name) if isinstance(info, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]  # JSON
    domain: Any = info.get("domain") if isinstance(info, dict) else host  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]  # JSON
    if domain != host:
        detail = f"the challenge for a wallet proof is for {domain!r}, not for {host!r}: no payer answers it, and no"
        report.problem("proof_domain", f"{detail} balance can be spent here; the seller's origin is another")


def _resource(obj: Json, report: Report) -> None:
    found: Any = obj.get("resource")
    if isinstance(found, dict):
        resource: Json = found  # pyright: ignore[reportUnknownVariableType]  # JSON
        report.say(f"  for      {resource.get('url')}  {resource.get('description') or ''}".rstrip())
    elif obj.get("x402Version") == 2:
        report.note("resource_missing", "v2 has a top-level resource; some dialects leave it away")
    if obj.get("error"):
        report.say(f"  because  {obj['error']}")


def _offer(what: str, entry: Any, version: Any, report: Report) -> PaymentRequirements | None:
    try:
        if not isinstance(entry, dict):
            raise ValueError("not an object")
        raw: Json = entry  # pyright: ignore[reportUnknownVariableType]  # JSON
        offer = x402.parse_requirements(raw)
    except ValueError as e:
        report.problem("offer_malformed", f"{what}: {e}")
        return None
    price = amount_text(offer.amount, offer.network, offer.asset)
    report.say(f"  {what}  {price} on {network_text(offer.network)} to {offer.pay_to}")
    report.say(f"           scheme {offer.scheme}; an authorization of at most {offer.max_timeout_seconds} s")
    if version == 2 and raw["network"] in x402.V1_NETWORKS:
        report.problem("network_name", f"{what}: v2 names networks by CAIP-2, {offer.network}, not {raw['network']!r}")
    report.network(what, offer.network)
    _terms(what, offer, report)
    _asset(what, offer, report)
    return offer


def _terms(what: str, offer: PaymentRequirements, report: Report) -> None:
    if offer.amount == 0:
        report.problem("amount_zero", f"{what} asks for nothing")
    seconds = offer.max_timeout_seconds
    if seconds <= VALID_FOR_MIN:
        report.problem("timeout_short", f"{what}: nothing can be settled within {seconds} s")
    elif seconds > VALID_FOR_MAX:
        report.note("timeout_long", f"{what}: {seconds} s; do not sign for so long a time")
    if offer.scheme != "exact":
        report.note("scheme_other", f"{what}: scheme {offer.scheme!r}; this version pays exact only")
    method = offer.extra.get("assetTransferMethod", "eip3009")
    if method != "eip3009":
        report.note("method_other", f"{what}: paid by {method!r}; this version pays by eip3009 only")


def _asset(what: str, offer: PaymentRequirements, report: Report) -> None:
    if offer.network.startswith("solana:"):
        found = known_asset(what, offer, report)
        if found is not None:
            _extra(what, offer, found, report)
        return
    if not offer.network.startswith("eip155:"):
        report.note("not_examined", f"{what}: offers on {offer.network} are not examined further")
        return
    report.address(f"{what}: payTo", offer.pay_to)
    report.address(f"{what}: asset", offer.asset)
    if offer.pay_to.lower() == offer.asset.lower():
        report.problem("pays_the_token", f"{what}: payTo is the token's own contract: the money would be lost")
    if offer.network not in DEFAULTS:
        report.problem("network_unknown", f"{what}: no asset is known on {offer.network}")
        return
    asset = find_asset(offer.network, offer.asset)
    if asset is None:
        known = DEFAULTS[offer.network]
        detail = f"{what}: {offer.asset} is no asset that we know there; {known.symbol} is {known.address}"
        report.problem("asset_unknown", detail)
        return
    _extra(what, offer, asset, report)


def _extra(what: str, offer: PaymentRequirements, asset: Asset, report: Report) -> None:
    extra = dict(offer.extra)
    missing = [key for key in ("name", "version") if not extra.get(key)]
    if offer.network.startswith("solana:"):
        look_at_offer(what, offer, report)
    elif missing:
        detail = f"{what}: no extra.{' and extra.'.join(missing)}: standard clients can't sign; it is"
        report.problem("domain_missing", f"{detail} {asset.name!r}, version {asset.version!r}")
    if asset.name:
        report.domain(what, extra, asset)
    if extra.get("decimals") not in (None, asset.decimals):
        report.problem("decimals_mismatch", f"{what}: {extra['decimals']!r} decimals claimed, it has {asset.decimals}")
    total = extra.get("totalUsd")
    if isinstance(total, str) and not _is_amount(total, offer.amount, asset):
        report.problem("total_mismatch", f"{what}: totalUsd {total!r} is not the amount")


def _is_amount(text: str, amount: int, asset: Asset) -> bool:
    try:
        return parse_units(text, asset.decimals) == amount
    except ValueError:
        return False


def explain_receipt(obj: Json, report: Report) -> None:
    """What the server says of a settlement. Whether the chain says the same is not asked here."""
    try:
        receipt = x402.parse_settlement_response(obj)
    except ValueError as e:
        report.problem("receipt_malformed", str(e))
        return
    report.say(f"A receipt: the payment {'was settled' if receipt.success else 'was not settled'}")
    report.say(f"  on       {network_text(receipt.network)}")
    if receipt.transaction:
        report.say(f"  by       {receipt.transaction}")
    if receipt.payer:
        report.say(f"  from     {receipt.payer}")
    known = DEFAULTS.get(receipt.network)
    if receipt.amount is not None and known is not None:
        report.say(
            f"  amount   {amount_text(receipt.amount, receipt.network, known.address)}, if paid in {known.symbol}"
        )
    if not receipt.success:
        report.problem("payment_failed", receipt.error_reason or "no reason is given")
    report.network("the payment", receipt.network)
    if receipt.network.startswith("eip155:"):
        _evm_receipt(receipt.transaction, receipt.payer, receipt.success, report)


def _evm_receipt(transaction: str, payer: str, success: bool, report: Report) -> None:
    if success and not _is_hash(transaction):
        report.problem("transaction_missing", f"{transaction!r} is no transaction hash")
    if payer:
        report.address("payer", payer)


def _is_hash(text: str) -> bool:
    """Whether a text is written like an EVM transaction's hash."""
    return len(text) == 66 and text.startswith("0x") and all(char in "0123456789abcdefABCDEF" for char in text[2:])
