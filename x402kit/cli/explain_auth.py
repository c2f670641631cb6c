"""``WWW-Authenticate``, explained: L402's invoice and token, and the charges of the ``Payment`` scheme."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from typing import Final

from ..model import Json
from ..protocols import bolt11, l402, macaroon, payment_auth, payment_methods
from ..protocols.encoding import b64decode
from ..protocols.payment_auth import PaymentChallenge
from .report import Report, amount_text, network_text

__all__ = ["asks_for_payment", "explain_auth"]

_SCHEME: Final = re.compile(r"(?:^|,)\s*(l402|lsat|payment)\s+[a-z]+\s*=", re.IGNORECASE | re.ASCII)
_SOON: Final = 10
"""Seconds that careful payers want an invoice to live."""
_SAT: Final = 1000


def asks_for_payment(lines: Sequence[str]) -> bool:
    """Whether any ``WWW-Authenticate`` line is of a scheme that asks for money."""
    return any(_SCHEME.search(line) for line in lines)


def explain_auth(lines: Sequence[str], report: Report, now: int) -> None:
    """What each challenge asks for, and what a payer would stumble over at ``now`` (Unix seconds)."""
    named = [found.lower() for line in lines for found in _SCHEME.findall(line)]
    token, charges = l402.read_challenge(lines), payment_auth.read_challenges(lines)
    shown: list[Json] = []
    if token is not None:
        shown.append(_l402(token, report, now))
    elif "l402" in named or "lsat" in named:
        report.problem("l402_malformed", "an L402 challenge without a token or an invoice that can be read")
    shown += [_charge(each, report, now) for each in charges]
    if missing := named.count("payment") - len(charges):
        report.problem("payment_malformed", f"{missing} Payment challenge(s) that lack a parameter, or have one twice")
    report.extra["challenges"] = shown
    if len({each["invoice"] for each in shown if "invoice" in each}) > 1:
        report.note("invoices_differ", "the challenges hold different invoices: pay one of them")


def _l402(found: l402.Challenge, report: Report, now: int) -> Json:
    """The invoice, whether the token is its, and what the token says of itself."""
    invoice = _invoice(found.scheme, found.invoice, report, now)
    shown: Json = {"scheme": found.scheme, "token": found.token, "invoice": found.invoice}
    try:
        token = macaroon.parse(b64decode(found.token))
    except (ValueError, IndexError, binascii.Error):
        report.note("token_opaque", f"{found.scheme}: the token is no macaroon, and can't be looked into")
        return shown
    caveats = [each.decode("utf-8", "replace") for each in token.caveats]
    report.say(f"           token for {'; '.join(caveats)}" if caveats else "           token without caveats")
    try:
        payment_hash = l402.read_identifier(token.identifier)[0].hex()
    except ValueError:
        report.note("identifier_unknown", f"{found.scheme}: the macaroon's identifier is not of version 0")
    else:
        if invoice is not None and payment_hash != invoice.payment_hash:
            report.problem("hash_mismatch", f"{found.scheme}: the token is for another invoice, {payment_hash}")
    return {**shown, "caveats": caveats}


def _charge(challenge: PaymentChallenge, report: Report, now: int) -> Json:
    kind = f"{challenge.method}/{challenge.intent}"
    shown: Json = {"scheme": "Payment", "kind": kind, **challenge._asdict()}
    reader = _READERS.get(kind)
    if reader is None:
        report.say(f"  Payment  {kind}")
        report.note("method_other", f"this version knows no {kind}")
        return shown
    try:
        expires_at = payment_auth.expiry_of(challenge)
        request = payment_auth.read_request(challenge.request)
        more = reader(request, report, now)
    except (ValueError, KeyError, TypeError) as e:
        report.problem("payment_malformed", f"Payment {kind}: {e}")
        return shown
    ends = "without an end" if expires_at is None else f"ends {_from_now(expires_at, now)}"
    report.say(f"           {kind}; {ends}")
    if expires_at is not None and expires_at <= now + _SOON:
        report.problem("expired", f"Payment {kind}: the challenge ends {_from_now(expires_at, now)}")
    return {**shown, **more, "request": request}


def _lightning(request: Json, report: Report, now: int) -> Json:
    said = payment_methods.read_lightning_request(request)
    invoice = _invoice("Payment", said.invoice, report, now)
    if invoice is not None:
        if said.amount * _SAT != invoice.amount:
            report.problem("amount_mismatch", f"Payment: {said.amount} sat asked for, another amount in the invoice")
        if said.payment_hash not in ("", invoice.payment_hash):
            report.problem("hash_mismatch", "Payment: paymentHash is not the invoice's")
        if said.network not in ("", invoice.network):
            report.problem("network_mismatch", f"Payment: {said.network} said, the invoice is on {invoice.network}")
    return {"invoice": said.invoice}


def _evm(request: Json, report: Report, now: int) -> Json:
    said = payment_methods.read_evm_request(request)
    _asked(said.amount, f"eip155:{said.chain_id}", said.currency, said.recipient, report)
    report.address("Payment: recipient", said.recipient)
    return {}


def _solana(request: Json, report: Report, now: int) -> Json:
    said = payment_methods.read_solana_request(request)
    _asked(said.amount, payment_methods.solana_network(said.network), said.mint, said.recipient, report)
    return {}


_READERS: Final = {"lightning/charge": _lightning, "evm/charge": _evm, "solana/charge": _solana}


def _asked(amount: int, network: str, asset: str, to: str, report: Report) -> None:
    report.say(f"  Payment  {amount_text(amount, network, asset)} on {network_text(network)} to {to}")
    report.network("Payment", network)


def _invoice(scheme: str, text: str, report: Report, now: int) -> bolt11.Bolt11 | None:
    try:
        found = bolt11.decode(text)
    except ValueError as e:
        report.say(f"  {scheme:<8} an invoice that can't be read")
        report.problem("invoice_malformed", f"{scheme}: {e}")
        return None
    to = f" to {found.payee}" if found.payee else ""
    price = amount_text(found.amount, found.network, "btc") if found.amount else "an invoice without an amount"
    report.say(f"  {scheme:<8} {price} on {network_text(found.network)}{to}")
    report.say(f"           payment hash {found.payment_hash}, ends {_from_now(found.expires_at, now)}")
    if found.amount == 0:
        report.problem("amount_missing", f"{scheme}: the invoice states no amount")
    if found.expires_at <= now + _SOON:
        report.problem("expired", f"{scheme}: the invoice ends {_from_now(found.expires_at, now)}")
    report.network(f"{scheme}: the invoice", found.network)
    return found


def _from_now(seconds: int, now: int) -> str:
    distance = seconds - now
    return f"in {distance} s" if distance >= 0 else f"{-distance} s ago"
