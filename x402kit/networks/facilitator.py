"""Settle through an x402 facilitator at a URL: a rail whose chain half is somebody else's (wire.md 5.1).

The facilitator verifies and pays the gas; what it says is read by facilitator_wire.py. Where the rail beneath has an
RPC address, the chain is right about every outcome, and the facilitator's word alone only about small amounts. Without
one, a lost answer is asked for again by the very same call, with the same Idempotency-Key for facilitators that tell
of a success only once; a payment about which no clear answer comes stays ``pending``, for good if need be, and the log
says ALERT: nothing is called failed that may have been paid.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final, Protocol

from ..errors import ConfigError, PaymentRefused, PaymentUsed, RailUnavailable
from ..model import VALID_FOR_MIN, Authorization, Claim, Intent, Json, Outcome, PaymentPayload, PaymentRequirements
from ..money import Asset
from ..protocols.encoding import dump_json, parse_object
from ..protocols.x402 import parse_payment_payload, parse_requirements
from .facilitator_client import FacilitatorClient, Headers
from .facilitator_wire import Reading, body_json, is_used, read_settlement, read_verdict, sanitized, supported_kind
from .http import Answer
from .port import ContractWallets, HintingRail, Landed, Nonces, ProvesWallets

__all__ = ["Beneath", "FacilitatorRail", "Headers"]

log = logging.getLogger("x402kit.facilitator")

LATE_SECONDS: Final = 600
"""How long after an authorization's end its outcome must be known; then it is asked for once an hour."""
HOUR: Final = 3600
_ENTRIES_MAX: Final = 4096


class Beneath(Protocol):
    """The rail that does all but verify and settle: any of ours without a wallet. ``rpc`` None: it sees no chain."""

    @property
    def rpc(self) -> object | None: ...
    @property
    def scheme(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def asset(self) -> Asset: ...
    @property
    def pay_to(self) -> str: ...
    @property
    def confirmations(self) -> int: ...
    @property
    def final_depth(self) -> int: ...
    def extra(self) -> Json: ...
    def surcharge(self) -> int: ...
    def surcharges(self) -> tuple[int, ...]: ...
    def parse(self, payment: PaymentPayload, offer: PaymentRequirements) -> Authorization: ...
    def check(self, authorization: Authorization, offer: PaymentRequirements, now: int) -> None: ...
    def payload(self, authorization: Authorization) -> Json:
        """The payer's payload as a facilitator takes it."""
        ...

    def adopt(self, extra: Json) -> None:
        """Take over what offers must say of the facilitator, by its own word. Raises ``ConfigError``."""
        ...

    async def start(self) -> None: ...
    async def ready(self) -> None: ...
    async def outcome(self, claim: Claim) -> Outcome: ...
    @property
    def sees_chain(self) -> bool: ...
    async def head_block(self) -> int: ...
    def settled_since(self, block: int) -> AsyncGenerator[Landed]: ...
    async def close(self) -> None: ...


class FacilitatorRail:
    """A rail (networks/port.py) through the facilitator at ``url``; without I/O until it is started.

    ``headers`` are for all calls, or a function of the endpoint's name. ``check_above``, in atomic units, is the amount
    above which a success must be seen on chain before it counts, where ``base`` sees a chain (I-04); by default one
    whole unit of the asset; with ``confirmations`` every success is. Without a chain to look at, the facilitator's word
    counts at once. ``resource`` stands in v1's calls, whose schema wants a URL. ``allow_insecure`` permits plain http
    to another machine. Raises ``ConfigError``.
    """

    prepare_is_pure = True

    def __init__(
        self,
        base: Beneath,
        url: str,
        *,
        headers: Headers | None = None,
        check_above: int | None = None,
        seconds: float = 10.0,
        settle_seconds: float = 30.0,
        allow_insecure: bool = False,
        resource: str = "https://resource.invalid/",
    ) -> None:
        self._base = base
        self._sees = base.rpc is not None
        self._check_above = 10**base.asset.decimals if check_above is None else check_above
        self._resource = resource
        self._client = FacilitatorClient(
            url, headers, seconds=seconds, settle_seconds=settle_seconds, allow_insecure=allow_insecure
        )
        self._version = 0
        self._asked: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self.scheme, self.network, self.asset, self.pay_to = base.scheme, base.network, base.asset, base.pay_to
        self.confirmations, self.final_depth = base.confirmations, base.final_depth

    @property
    def contract_wallets(self) -> ContractWallets | None:
        return self._base.contract_wallets if isinstance(self._base, ProvesWallets) else None

    def extra(self) -> Json:
        return self._base.extra()

    def hints(self) -> Json:
        return self._base.hints() if isinstance(self._base, HintingRail) else {}

    def surcharge(self) -> int:
        return self._base.surcharge()

    def surcharges(self) -> tuple[int, ...]:
        return self._base.surcharges()

    def parse(self, payment: PaymentPayload, offer: PaymentRequirements) -> Authorization:
        return self._base.parse(payment, offer)

    def check(self, authorization: Authorization, offer: PaymentRequirements, now: int) -> None:
        self._base.check(authorization, offer, now)

    async def start(self) -> None:
        """Raises ``ConfigError`` where the facilitator answers that it does not serve us.

        One that can't be reached is no reason not to start: free routes and challenges work without it, payments are
        answered 503 until it is back.
        """
        await self._base.start()
        with contextlib.suppress(RailUnavailable):  # its client has said so
            await self._find_version()

    async def _find_version(self) -> None:
        answer = await self._client.call("supported")
        if not isinstance(answer, Answer) or answer.status >= 500 or answer.status == 429:
            raise RailUnavailable("facilitator_unavailable")
        if answer.status != 200:
            raise ConfigError(f"the facilitator answers /supported with status {answer.status}")
        version, extra = supported_kind(answer.json, self.scheme, self.network)
        if not version:
            raise ConfigError(f"the facilitator does not serve {self.scheme} on {self.network}")
        self._base.adopt(extra)
        self._version = version

    async def ready(self) -> None:
        await self._base.ready()
        if self._client.paused:
            raise RailUnavailable("facilitator_unavailable")
        if not self._version:
            try:
                await self._find_version()
            except ConfigError as e:
                log.error("ALERT: %s", e)
                raise RailUnavailable("facilitator_unavailable") from e

    async def verify(self, authorization: Authorization, offer: PaymentRequirements) -> None:
        answer = await self._client.call("verify", self._body(authorization, offer))
        if not isinstance(answer, Answer):
            raise RailUnavailable("facilitator_unavailable")
        try:
            verdict = read_verdict(answer, authorization.payer)
        except ValueError as e:
            log.warning("the facilitator's /verify answer (%d) can't be used: %s", answer.status, e)
            raise RailUnavailable("facilitator_unavailable") from e
        if verdict.is_valid:
            return
        reason = sanitized(verdict.invalid_reason)
        if reason.startswith("unexpected_"):
            raise RailUnavailable("facilitator_unavailable")
        if is_used(reason) or reason == "duplicate_settlement":
            await self._used(authorization, reason)
        raise PaymentRefused(reason)

    async def _used(self, authorization: Authorization, reason: str) -> None:
        """B05: a spent nonce. Unless the money certainly did not come to us, nobody may be asked to sign anew."""
        if not self._sees:
            raise PaymentUsed(reason)
        outcome = await self._base.outcome(self._claim(authorization))
        if outcome.state == "settled":
            raise PaymentUsed(reason, reference=outcome.reference)
        if outcome.state == "pending":
            raise RailUnavailable()

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        call = {"key": secrets.token_hex(16), "body": self._body(authorization, offer)}
        return Intent("", dump_json(call))

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        """Nothing is held."""

    async def send(self, intent: Intent) -> Outcome:
        return await self._settle(intent.blob, first=True)

    async def outcome(self, claim: Claim) -> Outcome:
        if self._sees:
            found = await self._look(claim)
            lives = time.time() < claim.valid_until - VALID_FOR_MIN
            # Seen nowhere a while after it was sent: the facilitator may never have had it, or dropped it (I-07).
            again = found.state == "pending" and claim.state == "unknown" and lives and not found.block
            return found._replace(resend=again)
        if claim.state not in ("sent", "unknown"):
            return Outcome("settled", reference=claim.reference, final=True)
        if not self._may_ask(claim):
            return Outcome("pending", reference=claim.reference)
        found = await self._settle(claim.intent, first=False)
        if found.state == "pending" and _is_late(claim):
            log.error("ALERT: the facilitator does not say what became of %s; look at the chain", claim.payment_id)
        return found

    async def _look(self, claim: Claim) -> Outcome:
        """What the chain shows. The transaction that a facilitator names may be about something else (I-04).

        So a failure of that transaction decides nothing: only the payment's own nonce says whether it can still land.
        """
        found = await self._base.outcome(claim)
        if found.state == "failed" and claim.reference:
            found = await self._base.outcome(claim._replace(reference=""))
        return found

    async def wait(self, claim: Claim, seconds: float) -> Outcome:
        """With a chain to look at, a few times a second; else by the same call again, ever more rarely."""
        end = time.monotonic() + seconds
        delay, growth, most = (0.2, 1.5, 2.0) if self._sees else (1.0, 4.0, 60.0)
        outcome = await self.outcome(claim) if self._sees else Outcome("pending", reference=claim.reference)
        while outcome.state == "pending" and time.monotonic() + delay <= end:
            await asyncio.sleep(delay)
            outcome = await self.outcome(claim)
            if not self._sees and is_used(outcome.reason):
                break
            delay = min(delay * growth, most)
        if self._told.pop(claim.payment_id, None) is not None and outcome.state != "settled":
            log.error("ALERT: the facilitator says that %s is settled; the chain does not", claim.payment_id)
        return outcome

    # It is no PayingRail: the facilitator moves what payers authorize, and nothing of ours.

    @property
    def sees_chain(self) -> bool:
        return self._base.sees_chain

    async def head_block(self) -> int:
        return await self._base.head_block()

    def settled_since(self, block: int) -> AsyncGenerator[Landed]:
        return self._base.settled_since(block)

    async def close(self) -> None:
        await self._client.close()
        await self._base.close()

    def _body(self, authorization: Authorization, offer: PaymentRequirements) -> Json:
        ours = offer._replace(extra=self._base.extra())
        return body_json(self._base.payload(authorization), ours, self._version or 2, self._resource)

    def _claim(self, authorization: Authorization) -> Claim:
        """A claim to ask the chain about, where none is at hand."""
        return authorization.claim(int(time.time()), state="sent", confirmations=self.confirmations)

    async def _settle(self, blob: bytes, *, first: bool) -> Outcome:
        call = parse_object(blob)
        body, key = call["body"], call["key"]
        offer = parse_requirements(body["paymentRequirements"])
        authorization = self._base.parse(parse_payment_payload(body["paymentPayload"]), offer)
        reading = read_settlement(await self._client.call("settle", body, key=key), authorization, first=first)
        if reading.verdict == "again":
            second = read_settlement(await self._client.call("settle", body, key=key), authorization, first=False)
            reading = second if second.reference else replace(second, reference=reading.reference)
        if reading.alert:
            log.error("ALERT: the facilitator's answer about %s contradicts it", authorization.payment_id)
        return self._conclude(reading, authorization)

    def _conclude(self, reading: Reading, authorization: Authorization) -> Outcome:
        if reading.verdict == "failed":
            return Outcome("failed", reading.reason, reading.reference, never_sent=reading.never_sent)
        if reading.verdict != "settled":
            return Outcome("pending", reading.reason, reading.reference)
        if self._sees and (authorization.amount > self._check_above or self.confirmations):
            # ``wait`` looks at once, by the claim, which knows how deep it must be.
            _bound(self._told)[authorization.payment_id] = 0.0
            return Outcome("pending", reference=reading.reference)
        return Outcome("settled", reference=reading.reference, final=not self._sees)

    def _may_ask(self, claim: Claim) -> bool:
        """Not while the facilitator is down, and not more than hourly about a payment that should be long decided."""
        if self._client.paused:
            return False
        now = time.monotonic()
        if not _is_late(claim):
            return True
        if self._asked.get(claim.payment_id, 0.0) > now:
            return False
        _bound(self._asked)[claim.payment_id] = now + HOUR
        return True


def _is_late(claim: Claim) -> bool:
    return time.time() > claim.valid_until + LATE_SECONDS


def _bound(kept: dict[str, float]) -> dict[str, float]:
    """The dict with room for one more: the oldest go (I12)."""
    while len(kept) >= _ENTRIES_MAX:
        del kept[next(iter(kept))]
    return kept
