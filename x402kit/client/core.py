"""One paid call, without I/O: a generator that asks its driver for one step after another.

    the balance ── where it may pay and does (balance.py) ───────────────→ the answer
        │ off, or too low
    send as it is ── not 402, or not for us ─────────────────────────────→ the answer, untouched
        │ 402 with an offer that we know
        ├─ an open payment for this very request ─→ show it again (M02, M03); it goes before the balance, too
        │      an invoice's whose preimage is not here ─→ ask the node what became of it first (lightning.py)
        ├─ a sign-in challenge, and the balance was not tried ─→ the balance
        └─ none ─→ policy ─→ count, sign, write down ─→ show it; an invoice is paid between those
                                                          │
           2xx, 3xx → accepted, when its body has come    ├─ lost answer, 409, 5xx: show the same again, a few times;
           403      → used                                │    then the answer as it is, or PaymentOutcomeUnknown
           402      → PaymentNotAccepted (M01, M07)       └─ the row stays open: the next identical call shows it again

Where a token is good for more calls, the first send has it (on_token.py); a 402 or 401 to that goes on as without.
What moved money for certain, as an invoice that was paid, is never followed by another payment in the same call.

While its row is open (journal.py says how long), a payment keeps its request from being signed for again, so that an
SDK's retries, whatever they retry and however slow the answers are, lead to no second signature. ``max_signatures=2``
lets a 402 without any doubt lead to one more. The driver (transport.py) sends, stores, asks and sleeps.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

from ..errors import NothingPayable, PayerError, PaymentNotAccepted, PolicyRefused
from ..networks.lightning_port import is_lightning
from . import wallets
from .auth_offers import AuthReader, buys_more, charge_header, is_auth
from .balance import BalanceSetup, FromBalance, challenge_of, wait
from .challenge import Challenge, Offer, payment_header
from .journal import Journal, Payment
from .journal_lightning import Invoice, Token
from .lightning import Failed, LightningPayments, Unclear, is_unpaid, no_node, with_auth
from .lightning_wallet import ADDRESS
from .on_token import KEY, OnToken
from .outcome import AGAIN, may_have_moved, state_after, unknown_outcome
from .policy import Policy, Target, proposal
from .receipts import PaymentInfo, read_payment, read_receipt, read_token, says_unsent
from .signing import draft_of, prepare
from .steps import Answer, Ask, Drop, Lost, Send, Sleep, Step, Steps, Store, Work

__all__ = ["Attempt", "Setup"]

_log = logging.getLogger("x402kit.client")

ASKS: Final = 8
"""How often a call that is offered the invoice of another one asks for one of its own."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all calls of one payer share."""

    wallets: wallets.Wallets
    policy: Policy
    journal: Journal
    clock: Callable[[], float]
    asks: bool
    max_validity: int
    max_signatures: int
    retries: int
    backoff: float
    read_timeout: float
    balance: BalanceSetup
    lightning: LightningPayments | None = None
    nonces: Callable[[], bytes] = lambda: secrets.token_bytes(32)

    def now(self) -> int:
        return int(self.clock())


class _Done(NamedTuple):
    """The driver's last answer is the call's."""

    info: PaymentInfo | None


class Attempt:
    """One call from its first send to its answer. ``steps`` is the flow; the rest ends a payment that is in use."""

    def __init__(self, setup: Setup, target: Target) -> None:
        self._setup = setup
        self._target = target
        self._in_use: Payment | None = None
        self._over: Payment | None = None
        self.paid: Payment | None = None
        self._signing = ""
        self._shown: list[str] = []
        self._failure = ""
        self._asked = 0
        self._doubt = False
        self._unsent = False
        self._balance = FromBalance(setup.balance, target)
        self._on_token = OnToken(setup.journal, target, setup.now)

    def steps(self) -> Steps:
        """Returns the payment behind the driver's last answer, or None when it was not paid by us."""
        begun = self._setup.now()
        payment: Payment | None = None
        if self._balance.goes_first:
            self._setup.policy.check_target(self._target)
            payment = yield from self._take(begun)
            if payment is None:
                done, info = yield from self._balance.steps()
                if done:
                    return info
                yield Drop()
                self._balance.check_alone()
        if payment is None:
            found = yield from self._unpaid(begun)
            if isinstance(found, _Done):
                return found.info
            return (yield from self._pay(found))
        return (yield from self._pay(payment))

    def _unpaid(self, begun: int) -> Generator[Step, Any, _Done | Payment | list[Offer]]:
        """Send without any credential. The answer where it is the call's; else what to pay it with."""
        policy = self._setup.policy
        answer, token = yield from self._send_unpaid()
        if token is not None and answer.status not in (401, 402):
            return _Done(read_token(token, answer.headers))
        challenge = yield from challenge_of(answer)
        offers = yield from self._offers(challenge, answer)
        sign_in = self._balance.challenge(challenge) if challenge else None
        if not offers and sign_in is None:
            return _Done(None)
        yield Drop()
        policy.check_target(self._target)
        self._balance.saw_price()
        payment = yield from self._take(begun)
        from_balance = sign_in is not None or self._balance.is_known or (yield from self._balance.resumes())
        if payment is not None or not from_balance:
            return payment or offers
        if offers:
            policy.choose(offers, self._target)  # what is too dear is so from the balance, too
        done, info = yield from self._balance.steps(sign_in)
        if done or not offers:
            return _Done(info)
        yield Drop()
        return offers

    def _take(self, begun: int) -> Generator[Step, Any, Payment | None]:
        journal, fingerprint = self._setup.journal, self._target.fingerprint
        payers = dict.fromkeys((*self._setup.wallets.addresses, ADDRESS))  # an invoice's, though the node is not there

        def take() -> Payment | None:
            rows = (journal.take(fingerprint, each, begun, self) for each in payers)
            return next((row for row in rows if row is not None), None)

        found: Payment | None = yield Store(take)
        lightning = self._setup.lightning
        if found is None or not is_unpaid(found):
            return found
        self._in_use = found
        return (yield from self._paid_for(found, lightning.resume(found) if lightning else no_node()))

    def _paid_for(
        self, payment: Payment, steps: Generator[Step, Any, Payment | Failed | Unclear]
    ) -> Generator[Step, Any, Payment | None]:
        """The payment with what is to be shown; None where it certainly failed. Raises ``PaymentOutcomeUnknown``."""
        made = yield from steps
        if isinstance(made, Payment):
            return made
        self._in_use = None
        if isinstance(made, Failed):
            self._failure = made.reason
            return None
        yield from self._finish(payment, "unknown", reason=made.reason)
        raise unknown_outcome(payment.reference, made.reason)

    def _offers(self, challenge: Challenge | None, answer: Answer) -> Generator[Step, Any, list[Offer]]:
        """x402's first, and then those in ``WWW-Authenticate``."""
        setup, target = self._setup, self._target
        found = challenge.offers(setup.policy.known, bare=setup.policy.is_katana(target)) if challenge else []
        if answer.status != 402 or not answer.challenges:
            return found
        reader = AuthReader(setup.policy.known, None, not target.authorized, target.digest, setup.now())
        return (yield from with_auth(found, reader, answer.challenges, setup.lightning))

    def _pay(self, found: Payment | list[Offer]) -> Steps:
        """Show an open payment, or sign one for an offer."""
        fresh = not isinstance(found, Payment)
        payment = found if isinstance(found, Payment) else (yield from self._sign(found))
        while True:
            answer = yield from self._show(payment, fresh=fresh)
            if answer.status != 402:
                return (yield from self._end(payment, answer))
            offers = yield from self._refused(payment, answer)
            payment, fresh = (yield from self._sign(offers)), True

    def _send_unpaid(self) -> Generator[Step, Any, tuple[Answer, Token | None]]:
        """Send without a payment, but with a token where one is good there; a second time after a 401 to that."""
        lightning = self._setup.lightning
        can = lightning is not None and self._setup.policy.permits(self._target)
        token = (yield from lightning.token(self._target)) if lightning is not None and can else None
        if token is None or lightning is None:
            return (yield from self._sent({})), None
        answer = yield from self._on_token.send(token)
        if answer.status == 401:
            yield Drop()
            answer = yield from self._sent({})
            if answer.status != 401:  # else it is not the token that is wrong
                yield from lightning.drop(token)
            return answer, None
        # All over an origin a call may be dearer than what the token has left, which is good for others.
        if answer.status == 402 and token.place != self._target.origin:
            yield from lightning.drop(token)
        return answer, token

    def _sent(self, headers: dict[str, str]) -> Generator[Step, Any, Answer]:
        result = yield Send(headers)
        if isinstance(result, Lost):
            raise result.error
        assert isinstance(result, Answer)
        return result

    def _sign(self, offers: list[Offer]) -> Generator[Step, Any, Payment]:
        """Policy, then the caps, the signature and the row in one transaction. Raises ``PolicyRefused``."""
        setup = self._setup
        if paid := self._target.paid:
            raise PolicyRefused("the call was paid, and led on to another price; no more was signed", reference=paid)
        self._balance.check_alone()
        offer = setup.policy.choose(offers, self._target)
        if setup.lightning is not None and is_lightning(offer.terms.network):
            return (yield from self._sign_invoice(setup.lightning, offer, offers))
        yield from self._approve(offer)
        prepared = yield from prepare(setup.wallets, offer, setup.now(), setup.max_validity, setup.nonces)

        def sign() -> tuple[str, str]:
            if offer.auth is not None and offer.auth.challenge is not None:
                return charge_header(offer.auth.challenge, prepared.payload(), offer.terms.network)
            return payment_header(offer, prepared.payload())

        signed = yield from self._reserve(offer, prepared, sign)
        return signed if signed is not None else (yield from self._sign((yield from self._ask_again())))

    def _approve(self, offer: Offer) -> Generator[Step, Any, None]:
        if self._setup.asks and not (yield Ask(proposal(offer, self._target))):
            raise PolicyRefused("the approve callback refused the payment")

    def _reserve(
        self,
        offer: Offer,
        prepared: wallets.Prepared,
        sign: Callable[[], tuple[str, str]],
        invoice: Invoice | None = None,
    ) -> Generator[Step, Any, Payment | None]:
        """The row; None where there is one for this invoice or challenge."""
        setup = self._setup
        caps, others = setup.policy.caps, setup.wallets.addresses
        draft = draft_of(offer, prepared, self._target, setup.now())
        self._signing = draft.reference
        reserve = partial(setup.journal.reserve, draft, (caps.hour, caps.day), sign, self, others, invoice)
        signed: Payment | None = yield Store(reserve)
        self._signing = ""
        return signed

    def _sign_invoice(
        self, lightning: LightningPayments, offer: Offer, offers: list[Offer]
    ) -> Generator[Step, Any, Payment]:
        """Write an invoice down, and pay it. Where that certainly fails, another offer, if one more is allowed."""
        network: str | Failed = yield Work(lightning.network)
        if network == offer.terms.network:
            yield from self._approve(offer)
            prepared, invoice = lightning.prepare(offer)
            field = offer.auth.field if offer.auth else ""
            payment = yield from self._reserve(offer, prepared, lambda: (field, ""), invoice)
            if payment is None:
                return (yield from self._sign((yield from self._ask_again())))
            self._in_use = payment
            paid = yield from self._paid_for(payment, lightning.pay(payment, invoice))
            if paid is not None:
                return paid
            self._shown.append(payment.reference)
            fault: PayerError = PaymentNotAccepted(
                f"the invoice could not be paid, no money moved: {self._failure}", reference=payment.reference
            )
        elif isinstance(network, Failed):
            fault = PayerError(f"the Lightning node can't be used: {network.reason}; nothing was paid")
        else:
            fault = NothingPayable(f"the invoice is on {offer.terms.network}, the Lightning node on {network}")
        rest = [each for each in offers if not is_lightning(each.terms.network)]
        if not rest or len(self._shown) >= self._setup.max_signatures:
            raise fault
        _log.warning("%s", fault)
        return (yield from self._sign(rest))

    def _ask_again(self) -> Generator[Step, Any, list[Offer]]:
        """Sellers give all who ask the same one invoice: where another call pays it, ask until there is another."""
        self._asked += 1
        if self._asked > ASKS:
            raise PolicyRefused("the seller asks for what is paid, or being paid, for another call; nothing was paid")
        yield Sleep(min(self._asked / 4, 1.0))
        answer = yield from self._sent({})
        offers = yield from self._offers((yield from challenge_of(answer)), answer)
        yield Drop()
        return offers

    def _show(self, payment: Payment, *, fresh: bool) -> Generator[Step, Any, Answer]:
        """Show one payment until there is an answer that decides, or the tries are used up."""
        self._in_use = self.paid = payment
        self._shown.append(payment.reference)
        self._doubt = not fresh and payment.state != "refused"
        self._unsent = fresh
        attempt = 0
        while True:
            result: Answer | Lost = yield Send(self._headers(payment), self._setup.read_timeout)
            again = isinstance(result, Lost) or result.status in AGAIN
            self._doubt |= result.sent if isinstance(result, Lost) else again
            self._unsent &= not result.sent if isinstance(result, Lost) else says_unsent(result.status, result.headers)
            if not again or attempt == self._setup.retries:
                break
            if isinstance(result, Answer):
                yield Drop()
            yield Sleep(wait(result, attempt, self._setup.backoff))
            attempt += 1
        if isinstance(result, Lost):
            yield from self._finish(payment, "unknown" if self._doubt else "refused", reason=repr(result.error))
            if not self._doubt:
                raise result.error
            raise unknown_outcome(payment.reference) from result.error
        return result

    def _headers(self, payment: Payment) -> dict[str, str]:
        """What shows a payment; where it bought several calls, each showing for this one is the same call."""
        headers = {payment.header: payment.value}
        if is_lightning(payment.network) and not self._target.key and buys_more(payment.value):
            headers[KEY] = f"pay-{payment.reference[:32]}"
        return headers

    def _refused(self, payment: Payment, answer: Answer) -> Generator[Step, Any, list[Offer]]:
        """A 402 after a payment: the fresh offers where one more signature is allowed, else ``PaymentNotAccepted``.

        The x402 packages' servers answer so too when they don't know what became of a settlement, without a challenge,
        and when a payment is shown again whose money has moved, with one: both are ``PaymentOutcomeUnknown``.
        """
        moved = is_lightning(payment.network)
        challenge = yield from challenge_of(answer)
        offers = [] if moved else (yield from self._offers(challenge, answer))
        yield Drop()
        receipt = read_receipt(answer.headers)
        said = (receipt.error_reason if receipt else "") or (challenge.parsed.error if challenge else "")
        is_told = bool(answer.challenges) if is_auth(payment.header) else challenge is not None
        unclear = not is_told or may_have_moved(said, doubt=self._doubt)
        self._doubt |= unclear
        refused = "used" if moved else "refused"  # an invoice that was paid stays paid
        state = "unknown" if unclear or (self._doubt and not moved) else refused
        yield from self._finish(payment, state, reason=f"402: {said}", refused=not unclear)
        reason = "".join(char for char in said[:200] if char.isprintable()) or "no reason given"
        if unclear:
            raise unknown_outcome(payment.reference, f"402, {reason}")
        if offers and not self._doubt and len(self._shown) < self._setup.max_signatures:
            return offers
        before = ", ".join(each for each in self._shown if each != payment.reference)
        what = f"the payment, and {before} before it" if before else "the payment"
        what = f"{what}, whose invoice is paid" if moved else what
        raise PaymentNotAccepted(f"the server refused {what}: {reason}", reference=payment.reference)

    def _end(self, payment: Payment, answer: Answer) -> Generator[Step, Any, PaymentInfo]:
        info = read_payment(
            payment, answer.headers, self._setup.policy.known.get((payment.network, payment.asset.lower()))
        )
        moved = is_lightning(payment.network) or (info.receipt is not None and info.receipt.success)
        state, refused = state_after(answer, doubt=self._doubt or moved)
        if state != "accepted":
            reason = f"status {answer.status}"
            yield from self._finish(payment, state, transaction=info.transaction, reason=reason, refused=refused)
            info = replace(info, unsent=self._unsent)
        elif info.returned or self._target.top_up is not None:
            self._setup.balance.sellers.learn(self._target.origin, network=payment.network)
        if state == "accepted" and self._setup.lightning is not None and is_lightning(payment.network):
            yield from self._setup.lightning.keep(payment, has_rest=bool(info.returned))
        return info

    def _finish(
        self, payment: Payment, state: str, *, transaction: str = "", reason: str = "", refused: bool = False
    ) -> Generator[Step, Any, None]:
        self._in_use = None
        yield Store(lambda: self._write(payment.reference, state, transaction, reason, refused=refused))

    def _write(self, reference: str, state: str, transaction: str, reason: str, *, refused: bool = False) -> None:
        now = self._setup.now()
        try:
            self._setup.journal.finish(reference, state, now, transaction=transaction, reason=reason, refused=refused)
        except PayerError:  # the row stays as it is, open: the safe side
            _log.exception("payment %s: %s could not be written down", reference, state)

    @property
    def is_open(self) -> bool:
        """Whether ``interrupted`` has something to write."""
        return self.in_use or bool(self._signing)

    @property
    def in_use(self) -> bool:
        """Whether a payment, or a call from the balance, waits for ``completed`` or ``interrupted``."""
        return self._in_use is not None or self._balance.in_use or self._on_token.in_use

    def completed(self, info: PaymentInfo | None) -> None:
        """The answer's body has come, or was not wanted: the payment is accepted. Blocks."""
        self._balance.completed(info)
        self._on_token.ended(None)
        self._over, self._in_use = self._in_use, None
        if self._over is not None and info is not None:
            self._write(self._over.reference, "accepted", info.transaction, info.problem)

    def reopened(self, error: BaseException) -> None:
        """It was interrupted while that was written down: nobody has got the answer (M12). Blocks."""
        self._balance.reopen()
        self._on_token.reopen()
        if self._over is not None:
            self._setup.journal.reopen(self._over, self._setup.now(), self)
            self._over, self._in_use = None, self._over
        self.interrupted(error)

    def interrupted(self, error: BaseException) -> None:
        """The call ends before its answer did (M12): a payment that was shown stays open. Blocks."""
        unknown = self._balance.interrupted(error)
        self._on_token.ended(error)
        payment, self._in_use = self._in_use, None
        if payment is not None:
            unknown = unknown_outcome(payment.reference)
            self._write(payment.reference, "unknown", "", f"interrupted: {error!r}")
        elif self._setup.journal.holds(self._signing, self) and not isinstance(error, Exception):  # else rolled back
            self._write(self._signing, "refused", "", "never sent")
        if unknown is not None:
            error.add_note(str(unknown))
            if error.__cause__ is None:
                error.__cause__ = unknown
