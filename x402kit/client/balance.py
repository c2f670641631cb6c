"""One call that is paid from the balance at its seller, without I/O: a part of core.py's flow.

    send with a wallet proof and an Idempotency-Key
       │
       ├─ 401, 403 about the proof → a new one, once (by the server's clock); then ProofNotAccepted
       ├─ lost, 409 in progress, 5xx → the same key and a new proof, a few times; then the answer as it is, or
       │                               PaymentOutcomeUnknown: the next identical call has the same key
       ├─ 402 → nothing was charged: too low, or no balance is kept here. core.py goes on; but not after a lost answer,
       │        when who does not know the key may have charged: then the 402 comes back as it is (M01)
       └─ any other → the answer; its row in the journal ends when its body has come

A proof moves no money that was not moved by a top-up, which is where the caps count. A call for which more was reserved
than ``per_call`` is marked (``PaymentInfo.problem``), and the next one there asks for its price before it is proved;
with ``ask_price`` each one does.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ..errors import BalanceTooLow, PayerError, PaymentOutcomeUnknown, ProofNotAccepted
from ..protocols.siwx import SIGN_IN_WITH_X
from ..protocols.x402 import PAYMENT_RESPONSE
from . import proofs, wallets
from .challenge import Challenge, read_challenge, says_json
from .journal import Journal
from .journal_calls import BalanceCall
from .policy import Policy, Target
from .proofs import SignInChallenge
from .receipts import PaymentInfo, is_charged, read_balance
from .sellers import Sellers
from .steps import Answer, Body, Drop, Lost, Send, Sleep, Step, Store

__all__ = ["Balance", "BalanceSetup", "FromBalance", "challenge_of", "wait"]

_log = logging.getLogger("x402kit.client")

Balance = Literal["off", "first", "only"]

_AGAIN: Final = frozenset((500, 502, 503, 504))
WAIT_MAX: Final = 10.0
"""Seconds; a longer Retry-After is not waited for here."""
_ELSEWHERE: Final = ("invalid_siwx_domain_mismatch", "invalid_siwx_uri_mismatch")
KEY: Final = "Idempotency-Key"
KEY_MAX: Final = 255


def challenge_of(answer: Answer) -> Generator[Step, Any, Challenge | None]:
    """The x402 challenge of an answer, where it is a 402; reads its body where that is worth it."""
    if answer.status != 402:
        return None
    found = read_challenge(answer.headers, None)
    if found is None and says_json(answer.headers):
        body: bytes | None = yield Body()
        found = read_challenge(answer.headers, body)
    return found


def wait(result: Answer | Lost, attempt: int, backoff: float) -> float:
    """Seconds until the next try: what Retry-After says, or ``backoff`` doubled each time."""
    said = result.headers.get("retry-after", "") if isinstance(result, Answer) else ""
    seconds = int(said) if said.isascii() and said.isdigit() and len(said) < 6 else backoff * 2**attempt
    return min(float(seconds), WAIT_MAX)


@dataclass(frozen=True, slots=True)
class BalanceSetup:
    """What all calls from the balance of one payer share."""

    mode: Balance
    wallets: wallets.Wallets
    policy: Policy
    journal: Journal
    sellers: Sellers
    now: Callable[[], int]
    retries: int
    backoff: float
    random: Callable[[], str] = lambda: secrets.token_hex(16)
    ask_price: bool = False
    """Whether every call asks for its price before it is proved."""


class FromBalance:
    """``steps`` tries the balance; the rest ends a call whose answer is still on its way."""

    def __init__(self, setup: BalanceSetup, target: Target) -> None:
        self._setup, self._target, self._begun = setup, target, setup.now()
        self._in_use: BalanceCall | None = None
        self._over: BalanceCall | None = None
        self._doubt = False
        self._tried = self._sent = False
        self._network = ""

    @property
    def is_possible(self) -> bool:
        """Whether a proof may be shown there at all, and none was yet."""
        mode = "only" if self._target.proves else self._setup.mode
        if mode == "off" or self._tried or self._target.top_up is not None:
            return False
        return bool(self._setup.policy.networks_for(self._target))

    @property
    def is_known(self) -> bool:
        """Whether a proof may be shown, and the seller is one that took some before, or that ``Limits.hosts`` names."""
        sellers, policy, target = self._setup.sellers, self._setup.policy, self._target
        if not self.is_possible or not policy.permits(target):
            return False
        return sellers.get(target.origin) is not None or policy.names_host(target.host, target.port)

    @property
    def goes_first(self) -> bool:
        """Whether a proof is shown at once, without asking for the price."""
        if self._target.proves:
            return True
        seller = self._setup.sellers.get(self._target.origin)
        asks = self._setup.ask_price or (seller is not None and seller.asks)
        return self.is_known and not asks and not self._setup.sellers.is_free(self._target.route)

    def saw_price(self) -> None:
        """A 402 came without a proof."""
        if self.is_possible:
            self._setup.sellers.note(self._target.route, priced=True)

    def resumes(self) -> Generator[Step, Any, bool]:
        """Whether a call of the same request is open: then no payment is made for it before that is certain."""
        setup = self._setup
        if not self.is_possible:
            return False
        fingerprint, payers, journal = self._target.fingerprint, setup.wallets.addresses, setup.journal
        found = yield Store(lambda: any(journal.has_open_call(fingerprint, each, self._begun) for each in payers))
        return bool(found)

    def challenge(self, challenge: Challenge) -> SignInChallenge | None:
        """The sign-in challenge of a 402 that we may answer."""
        if not self.is_possible:
            return None
        seller = self._setup.sellers.get(self._target.origin)
        networks = self._setup.policy.networks_for(self._target)
        extensions = challenge.parsed.extensions
        return proofs.find_challenge(extensions, self._target, networks, seller.network if seller else "")

    def check_alone(self) -> None:
        """Raises ``BalanceTooLow`` where nothing but the balance may pay."""
        if self._setup.mode == "only" and self._target.top_up is None:
            what = "the prepaid balance is too low" if self._tried else "no prepaid balance is offered here"
            raise BalanceTooLow(f"{what}, and balance='only' allows no other payment; nothing was charged")

    def steps(self, challenge: SignInChallenge | None = None) -> Generator[Step, Any, tuple[bool, PaymentInfo | None]]:
        """Whether the driver's last answer is the call's, and what it cost. False: a 402, and no money moved."""
        self._tried = True
        seller = self._setup.sellers.get(self._target.origin)
        networks = self._setup.policy.networks_for(self._target)
        if challenge is not None:
            self._network = challenge.network
        elif seller is not None and seller.network in networks:
            self._network = seller.network
        else:
            self._network = networks[0]
        draft = self._draft()
        call = draft if self._target.reads else (yield Store(lambda: self._setup.journal.begin_call(draft, self)))
        self._in_use, self._doubt = call, call is not draft
        result = yield from self._show(call, challenge)
        if challenge is None and (theirs := (yield from self._asks_otherwise(result))) is not None:
            yield Drop()
            result = yield from self._show(call, theirs)
        if isinstance(result, Lost):
            yield from self._end("unknown" if self._doubt else "refused", repr(result.error))
            if not self._doubt:
                raise result.error
            raise _unknown(call.reference) from result.error
        if result.status == 402:
            yield from self._end("cooling" if self._doubt else "refused", "status 402")
            self._setup.sellers.note(self._target.route, priced=True)
            return self._doubt or self._target.proves, None
        return True, (yield from self._answered(call, result))

    def _draft(self) -> BalanceCall:
        setup, target = self._setup, self._target
        key = target.key if 0 < len(target.key) <= KEY_MAX else setup.random()
        where = (target.fingerprint, target.method, target.url, setup.wallets.address_on(self._network))
        return BalanceCall(f"call-{setup.random()}", *where, "" if target.reads else key, self._begun)

    def _asks_otherwise(self, result: Answer | Lost) -> Generator[Step, Any, SignInChallenge | None]:
        """The challenge of a server that takes no proof but with a nonce of its own; none where the balance is low."""
        found = None if isinstance(result, Lost) else (yield from challenge_of(result))
        if found is None or "insufficient" in found.parsed.error:
            return None
        kind = self._network.partition(":")[0]
        networks = [each for each in self._setup.policy.networks if each.startswith(f"{kind}:")]
        return proofs.find_challenge(found.parsed.extensions, self._target, networks, self._network)

    def _show(self, call: BalanceCall, challenge: SignInChallenge | None) -> Generator[Step, Any, Answer | Lost]:
        """Show the call until there is an answer that decides, or the tries are used up."""
        attempt = refusals = 0
        while True:
            proof: str = yield Store(self._proof(challenge, call))
            challenge = None
            headers = {SIGN_IN_WITH_X: proof} | ({KEY: call.key} if call.key else {})
            self._sent = True
            result: Answer | Lost = yield Send(headers)
            if reason := (yield from self._refusal(result)):
                refusals += 1
                yield from self._refused(call, result, refusals, reason)
                continue
            again = isinstance(result, Lost) or _is_again(result)
            self._doubt |= result.sent if isinstance(result, Lost) else again
            if not again or attempt == self._setup.retries:
                return result
            if isinstance(result, Answer):
                yield Drop()
            yield Sleep(wait(result, attempt, self._setup.backoff))
            attempt += 1

    def _proof(self, challenge: SignInChallenge | None, call: BalanceCall) -> Callable[[], str]:
        setup, target = self._setup, self._target
        if challenge is not None:
            self._network = challenge.network
            return lambda: challenge.answer(setup.wallets)
        seller = setup.sellers.get(target.origin)
        now = setup.now() + (seller.skew if seller else 0)
        # A wallet service knows a withdrawal by its proof's nonce, and tells what became of it when it comes again.
        nonce = call.key if target.proves and call.key else setup.random()
        return lambda: proofs.own_proof(setup.wallets, target, self._network, now, nonce)

    def _refusal(self, result: Answer | Lost) -> Generator[Step, Any, str]:
        """Why the proof was refused; empty for another answer."""
        if isinstance(result, Lost) or result.status not in (401, 403) or not says_json(result.headers):
            return ""
        body: bytes | None = yield Body()
        return proofs.refusal(body)

    def _refused(
        self, call: BalanceCall, result: Answer | Lost, refusals: int, reason: str
    ) -> Generator[Step, Any, None]:
        """Make ready for one new proof, by the server's clock. Raises ``ProofNotAccepted`` after the second."""
        assert isinstance(result, Answer)
        yield Drop()
        if refusals > 1:
            yield from self._end("cooling" if self._doubt else "refused", "the proof was refused")
            told = f"the server refused two wallet proofs, the last with status {result.status}: {reason}"
            if reason in _ELSEWHERE:
                told += f"; it does not know itself as {self._target.origin}, or has no origin set"
            raise ProofNotAccepted(told, reference=call.reference)
        theirs = proofs.server_time(result.headers)
        if theirs is not None:
            self._setup.sellers.learn(self._target.origin, skew=theirs - self._setup.now())

    def _answered(self, call: BalanceCall, answer: Answer) -> Generator[Step, Any, PaymentInfo | None]:
        info, state = self._read(answer, call), self._state_after(answer)
        if state != "answered" or call.key == "":
            yield from self._end(state, f"status {answer.status}", info.charged if info else None)
        return info

    def _read(self, answer: Answer, call: BalanceCall) -> PaymentInfo | None:
        """What the answer tells of the call; None where it tells nothing, and nothing had to be told."""
        setup, target = self._setup, self._target
        if not is_charged(answer.headers):
            if answer.status >= 400 or target.proves:
                return None
            setup.sellers.note(target.route, priced=False)
            if setup.sellers.is_free(target.route):
                return None
        asset = setup.policy.asset_on(self._network)
        info = read_balance(call, answer.headers, asset, self._network)
        over = setup.policy.over_call_cap(info.charged if info.reserved is None else info.reserved, asset)
        if over and not info.problem:
            info = replace(info, problem="the call could cost more than Limits.per_call", verified=False)
        setup.sellers.learn(target.origin, network=self._network, asks=over)
        setup.sellers.note(target.route, priced=True)
        return info

    def _state_after(self, answer: Answer) -> str:
        if _is_again(answer):
            return "unknown"
        if answer.status >= 400 and self._doubt and PAYMENT_RESPONSE not in answer.headers:
            return "cooling"
        return "refused" if answer.status in (401, 403, 429) else "answered"

    def _end(self, state: str, reason: str = "", charged: int | None = None) -> Generator[Step, Any, None]:
        call, self._in_use = self._in_use, None
        assert call is not None
        yield Store(lambda: self._write(call, state, reason, charged))

    def _write(self, call: BalanceCall, state: str, reason: str, charged: int | None) -> None:
        if not call.key:  # it reads, and stands in no journal
            return
        try:
            self._setup.journal.end_call(call.reference, state, self._setup.now(), charged=charged, reason=reason)
        except PayerError:  # the row stays open: the safe side
            _log.exception("call %s: %s could not be written down", call.reference, state)

    @property
    def in_use(self) -> bool:
        """Whether a call waits for ``completed`` or ``interrupted``."""
        return self._in_use is not None

    def completed(self, info: PaymentInfo | None) -> None:
        """The answer's body has come, or was not wanted. Blocks."""
        self._over, self._in_use = self._in_use, None
        if self._over is not None:
            self._write(self._over, "answered", info.problem if info else "", info.charged if info else None)

    def reopen(self) -> None:
        """Nobody has got the answer: ``interrupted`` follows. Blocks."""
        if self._over is not None:
            self._setup.journal.reopen_call(self._over.reference)
            self._over, self._in_use = None, self._over

    def interrupted(self, error: BaseException) -> PaymentOutcomeUnknown | None:
        """The call ends before its answer did (M12): its key is kept for the next identical one. Blocks."""
        call, self._in_use = self._in_use, None
        if call is None:
            return None
        if not self._sent and not self._doubt:
            self._write(call, "refused", "never sent", None)
            return None
        self._write(call, "unknown", f"interrupted: {error!r}", None)
        return _unknown(call.reference)


def _unknown(reference: str) -> PaymentOutcomeUnknown:
    text = "the call was sent with a wallet proof and no certain answer came"
    return PaymentOutcomeUnknown(text, reference=reference)


def _is_again(answer: Answer) -> bool:
    """Answers after which the call is sent again: not the app's own, which come with a receipt (of 0, mostly)."""
    if answer.headers.get("payment-outcome", "").lower() == "unknown":
        return True
    if answer.status == 409:
        return "retry-after" in answer.headers
    return answer.status in _AGAIN and PAYMENT_RESPONSE not in answer.headers
