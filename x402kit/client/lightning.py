"""One invoice, from its row in the journal to its preimage, without I/O: a part of core.py's flow.

the row is written, with the invoice (journal.py) ─→ the node is asked to pay
    │
    ├─ succeeded, and the preimage is the hash's → the row gets what is shown, and the fee's rest of the budget back
    ├─ failed, or the node was certainly not asked → nothing moved: released, budget and all
    └─ all else → unclear: the row stays open, and no second invoice is paid for the same call

a row without a preimage is met again (M02, M03) ─→ the node is asked what became of it
    │
    ├─ succeeded, failed → as above
    ├─ pending, or the node is out of reach → unclear
    └─ not known there → the same invoice is paid, which can't move its money twice; two minutes after its end it
       has failed, unless the node ever said that it was under way
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from ..errors import ConfigError, PayerError, PolicyRefused, RailUnavailable
from ..networks.lightning_port import PaymentState, is_lightning
from .auth_offers import AUTHORIZATION, MARGIN, AuthReader, credential, reuse_of
from .bitcoin import CoinPrice, micros_at
from .challenge import Offer
from .journal import Journal, Payment
from .journal_lightning import Invoice, Token
from .lightning_wallet import ADDRESS, LightningWallet
from .policy import Target, origin_of, route_of
from .steps import Sleep, Step, Store, Work
from .wallets import Prepared

__all__ = ["Failed", "LightningPayments", "Unclear", "is_unpaid", "no_node", "with_auth"]

_log = logging.getLogger("x402kit.client")

UNDECIDED: Final = 15 * 86400
"""Seconds in which a payment that was begun may be under way: routes lock their parts for two weeks at the most."""
LATE: Final = 120
"""Seconds after an invoice's end by which a node has heard, or refused, what was sent to it before."""
SHOWN: Final = 86400
"""Seconds for which a paid invoice is shown again where no certain answer came; sellers keep them as long."""


class Failed(NamedTuple):
    """Certain that nothing moved: the payment is released."""

    reason: str


class Unclear(NamedTuple):
    """The payment may have moved its money; its row is open."""

    reason: str


Outcome = Payment | Failed | Unclear


def is_unpaid(payment: Payment) -> bool:
    """Whether a payment is one on Lightning whose preimage we have not got."""
    return is_lightning(payment.network) and not payment.value


@dataclass(frozen=True, slots=True)
class LightningPayments:
    """What all Lightning payments of one payer share. ``polls``: how often a payment under way is asked about again."""

    wallet: LightningWallet
    price: CoinPrice
    journal: Journal
    now: Callable[[], int]
    polls: int
    backoff: float

    def worth(self) -> Callable[[int], int]:
        """What an invoice over so many msat counts against the caps, its fee too, at the price of now. May block."""
        price = self.price.read()
        return lambda amount: micros_at(price, amount + self.wallet.max_fee(amount))

    def network(self) -> str | Failed:
        """The node's. Blocks."""
        try:
            return self.wallet.network()
        except (RailUnavailable, ConfigError) as error:
            return Failed(_told(error))

    def prepare(self, offer: Offer) -> tuple[Prepared, Invoice]:
        """What the journal writes down of a payment."""
        auth = offer.auth
        assert auth is not None
        max_fee = self.wallet.max_fee(offer.terms.amount)
        invoice = Invoice(auth.payment_hash, auth.bolt11, auth.expires_at, max_fee, auth.recipe)
        return Prepared(auth.payment_hash, ADDRESS, self.now() + UNDECIDED, dict), invoice

    def pay(self, payment: Payment, invoice: Invoice, *, again: bool = False) -> Generator[Step, Any, Outcome]:
        """Ask the node to pay what stands in the journal; ``again``: it may have been asked before."""
        found: PaymentState | Failed = yield Work(partial(self._try, invoice))
        if isinstance(found, Failed) and again:  # certain of this time alone
            return Unclear(found.reason)
        if isinstance(found, Failed):
            return (yield from self._failed(payment, found.reason))
        return (yield from self._ended(payment, invoice, found))

    def _try(self, invoice: Invoice) -> PaymentState | Failed:
        try:
            return self.wallet.pay(invoice.bolt11, invoice.max_fee)
        except (RailUnavailable, ConfigError) as error:
            return Failed(f"the Lightning node was not asked: {_told(error)}")

    def resume(self, payment: Payment) -> Generator[Step, Any, Outcome]:
        """Find out what became of a payment whose preimage we have not got, and go on with it."""
        reference = payment.reference
        invoice: Invoice | None = yield Store(lambda: self.journal.invoice(reference))
        if invoice is None:
            return Unclear("its invoice is not in the journal")
        found = yield from self._look_up(reference)
        if found is None:
            return Unclear("the Lightning node is out of reach")
        if found.state != "unknown":
            return (yield from self._ended(payment, invoice, found))
        if invoice.pending:
            return Unclear("the Lightning node has forgotten a payment that was under way")
        if invoice.expires_at > self.now() + MARGIN:
            return (yield from self.pay(payment, invoice, again=True))
        if invoice.expires_at > self.now() - LATE:
            return Unclear("the invoice's end has come, and its payment may be on the way to the node")
        return (yield from self._failed(payment, "the invoice has expired unpaid"))

    def _look_up(self, reference: str) -> Generator[Step, Any, PaymentState | None]:
        """What the node says, and once more after a while where it is under way; None: it can't be reached."""
        found: PaymentState | None = yield Work(lambda: self._ask(reference))
        for attempt in range(self.polls):
            if found is None or found.state != "pending":
                break
            yield Sleep(self.backoff * 2**attempt)
            found = yield Work(lambda: self._ask(reference))
        return found

    def _ask(self, reference: str) -> PaymentState | None:
        try:
            return self.wallet.payment(reference)
        except (RailUnavailable, ConfigError):
            return None

    def _ended(self, payment: Payment, invoice: Invoice, found: PaymentState) -> Generator[Step, Any, Outcome]:
        if found.state == "failed":
            return (yield from self._failed(payment, found.reason or "the node says that it failed"))
        if found.state == "succeeded" and _is_of(found.preimage, payment.reference):
            return (yield from self._paid(payment, invoice, found))
        yield Store(lambda: self.journal.note_pending(payment.reference))
        if found.state == "succeeded":
            return Unclear("the Lightning node shows a preimage of another payment")
        return Unclear(found.reason or "the payment is under way")

    def _paid(self, payment: Payment, invoice: Invoice, found: PaymentState) -> Generator[Step, Any, Payment]:
        value = credential(invoice.recipe, found.preimage.lower())
        spent, most = payment.amount + found.fee, payment.amount + invoice.max_fee
        micros = min(payment.micros, -(-payment.micros * spent // most))
        # What is good for more calls than this one is kept, whatever becomes of this one.
        token = self._token(payment, invoice, value, has_rest=False)
        kept: Payment = yield Store(lambda: self.journal.paid(payment, value, micros, self.now() + SHOWN, token))
        return kept

    def _failed(self, payment: Payment, reason: str) -> Generator[Step, Any, Failed]:
        yield Store(lambda: self.journal.release(payment, self.now(), reason))
        _log.warning("Lightning payment %s failed, no money moved: %s", payment.reference, reason)
        return Failed(reason)

    # Tokens that are good for more calls

    def token(self, target: Target) -> Generator[Step, Any, Token | None]:
        """What was bought there before, and can be shown again."""
        if target.authorized:
            return None
        found: Token | None = yield Store(lambda: self.journal.token((target.route, target.origin), self.now()))
        return found

    def keep(self, payment: Payment, *, has_rest: bool) -> Generator[Step, Any, None]:
        """Remember what was bought, where it is good for more than this call, or left something over there."""
        yield Store(partial(self._keep, payment, has_rest=has_rest))

    def _keep(self, payment: Payment, *, has_rest: bool) -> None:
        try:
            invoice = self.journal.invoice(payment.reference)
            token = None if invoice is None else self._token(payment, invoice, payment.value, has_rest=has_rest)
            if token is not None:
                self.journal.keep_token(token)
        except PayerError:  # the answer is there, and is the caller's
            _log.exception("payment %s: its token could not be kept", payment.reference)

    def _token(self, payment: Payment, invoice: Invoice, value: str, *, has_rest: bool) -> Token | None:
        reuse = reuse_of(invoice.recipe, has_rest=has_rest) if payment.header == AUTHORIZATION else None
        if reuse is None:
            return None
        place = route_of(payment.method, payment.url) if reuse.on_route else origin_of(payment.url)
        return Token(place, payment.reference, payment.network, value, reuse.valid_until, self.now())

    def drop(self, token: Token) -> Generator[Step, Any, None]:
        """It was refused."""
        yield Store(lambda: self.journal.drop_token(token))


def no_node() -> Generator[Step, Any, Outcome]:
    """What is known of an invoice's payment without the node that it was paid from."""
    yield from ()
    return Unclear("it was made from a Lightning node, which this payer has not got")


def with_auth(
    found: list[Offer], reader: AuthReader, lines: Sequence[str], lightning: LightningPayments | None
) -> Generator[Step, Any, list[Offer]]:
    """Behind the offers that were found those of ``WWW-Authenticate``; ``reader`` knows nothing of invoices' worth.

    Without a price of bitcoin there are no invoices; raises ``PolicyRefused`` where there is nothing else.
    """
    others = reader.offers(lines)
    if lightning is None or not reader._replace(worth=_nothing).has_invoice(lines):
        return found + others
    worth: Callable[[int], int] | PolicyRefused = yield Work(lambda: _worth(lightning))
    if not isinstance(worth, PolicyRefused):
        return found + reader._replace(worth=worth).offers(lines)
    if not found and not others:
        raise worth
    _log.warning("Lightning is left out: %s", worth)
    return found + others


def _nothing(amount: int) -> int:
    return 0


def _worth(lightning: LightningPayments) -> Callable[[int], int] | PolicyRefused:
    try:
        return lightning.worth()
    except PolicyRefused as error:
        return error


def _is_of(preimage: str, payment_hash: str) -> bool:
    try:
        return hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash
    except ValueError:
        return False


def _told(error: RailUnavailable | ConfigError) -> str:
    return (error.detail if isinstance(error, RailUnavailable) else "") or str(error)
