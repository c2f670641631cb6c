"""Solana's offers and payments, explained: a transaction is decoded and put to the check that our own sellers make."""

from __future__ import annotations

from ..errors import MalformedPayment, MissingExtra, PaymentRefused
from ..model import PaymentPayload, PaymentRequirements
from ..money import Asset
from ..networks.assets import DEFAULTS
from .report import Report, amount_text

__all__ = ["explain_solana_payment", "known_asset", "look_at_offer"]


def known_asset(what: str, offer: PaymentRequirements, report: Report) -> Asset | None:
    """The asset of an offer on Solana, where addresses keep their case. What is wrong with it is reported."""
    from ..networks.svm_transaction import address_bytes

    for name, address in (("payTo", offer.pay_to), ("asset", offer.asset)):
        try:
            address_bytes(address)
        except ValueError:
            report.problem("address_invalid", f"{what}: {name} {address!r} is not an address")
    known = DEFAULTS.get(offer.network)
    if known is None:
        report.problem("network_unknown", f"{what}: no asset is known on {offer.network}")
        return None
    if offer.asset != known.address:
        detail = f"{what}: {offer.asset} is no asset that we know there; {known.symbol} is {known.address}"
        report.problem("asset_unknown", detail)
        return None
    return known


def look_at_offer(what: str, offer: PaymentRequirements, report: Report) -> None:
    """Who pays the network's fees, and whether a payer needs a node of its own."""
    extra = offer.extra
    if not extra.get("feePayer"):
        report.problem("fee_payer_missing", f"{what}: no extra.feePayer: standard clients can't build the payment")
    if not extra.get("recentBlockhash"):
        report.note("blockhash_missing", f"{what}: no extra.recentBlockhash: the payer asks a node of its own")
    if extra.get("createRecipientAccount") is True:
        report.note("account_missing", f"{what}: the recipient has no token account yet; the payment creates it")


def explain_solana_payment(payment: PaymentPayload, report: Report) -> None:
    """What is paid to whom, and whether a server could take it. Its blockhash's age is known to the chain alone."""
    offer = payment.accepted
    if offer is None:
        report.note("not_examined", "v1 does not say what is answered; it is not examined further")
        return
    price = amount_text(offer.amount, offer.network, offer.asset)
    quote = ", with its quote" if payment.quote else ""
    report.say(f"  answers  an offer of {price} to {offer.pay_to}{quote}")
    asset = known_asset("the offer", offer, report)
    if asset is None:
        return
    try:
        _transaction(payment, offer, asset, report)
    except MissingExtra as e:
        report.note("not_examined", f"the transaction is not examined: {e}")
    except MalformedPayment as e:
        report.problem("payment_malformed", e.detail or e.reason)
    except ValueError:
        report.problem("address_invalid", "the offer's feePayer is not an address")


def _transaction(payment: PaymentPayload, offer: PaymentRequirements, asset: Asset, report: Report) -> None:
    from ..networks import svm
    from ..networks.svm_ready import token_program
    from ..networks.svm_transaction import address_bytes, address_text

    parsed = svm.parse(payment, offer, 0)
    found: svm.SvmPayment = parsed.body
    if found.transfer is not None:
        report.say(f"  pays     {amount_text(found.transfer.amount, offer.network, offer.asset)}")
        report.say(f"  from     {parsed.payer}")
        report.say(f"  into     {address_text(found.transfer.destination)}, a token account")
    report.say(f"  fees by  {address_text(found.transaction.keys[0])}")
    report.say(f"  hash     {parsed.payment_id}")
    said = offer.extra.get("feePayer")
    fee_payer = address_bytes(said if isinstance(said, str) and said else offer.pay_to)
    memo = offer.extra.get("memo")
    terms = svm.Terms(
        asset,
        token_program(asset, frozenset()),
        fee_payer,
        creates=offer.extra.get("createRecipientAccount") is True,
        memo=memo if isinstance(memo, str) else "",
    )
    try:
        svm.check(parsed, offer, terms)
    except PaymentRefused as strict:
        try:
            svm.check(parsed, offer, terms._replace(relaxed=True))
        except PaymentRefused as e:
            report.problem(e.reason, "a server would refuse it for this")
        else:
            report.note("layout_relaxed", f"only sellers that take Katana's layout take it; others say {strict.reason}")
