"""Move the money of a claim: claimed → sent → settled | failed | unknown; and reconcile what was left half-way.

The rule of order (I8, I9): the claim is durable before anything is sent, the intent with its hash before it is
broadcast, and the outcome before the handler runs. A settlement runs in a task of its own, so that a caller who goes
away changes nothing; what is neither settled nor certainly failed is looked at again until the chain has decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from ..errors import ConfigError, OutcomeUnknown, PaymentInProgress, RailUnavailable, ServerError
from ..model import Authorization, Claim, Intent, Outcome, PaymentRequirements
from ..networks.port import Rail
from .trouble import Trouble

__all__ = ["Settler"]

log = logging.getLogger("x402kit.settlement")

RECONCILE_SECONDS: Final = 5.0
_START_SECONDS: Final = 10.0
"""How long the start waits for the first pass."""
_AT_ONCE: Final = 16
"""Claims that one pass looks at together."""
_AGAIN: Final = (2, 5, 10, 30, 60)
"""Seconds until a claim is looked at again, by how long it has been open."""


class _Held:
    """The nonce allocator as one attempt sees it: nobody gives back what another took meanwhile."""

    def __init__(self, store: Rows, holder: str) -> None:
        self._store = store
        self._holder = holder

    async def take_nonce(self, wallet: str, payment_id: str, floor: int) -> int:
        return await self._store.take_nonce(wallet, self._holder, floor)

    async def free_nonce(self, wallet: str, nonce: int) -> None:
        await self._store.free_nonces(self._holder, wallet, nonce)


class Rows(Protocol):
    """What the settler needs of a store: the claims, or the payouts, which have the same shape (ledger/port.py)."""

    async def get(self, payment_id: str) -> Claim | None: ...
    async def take(self, payment_id: str, state: str, owner: str) -> Claim | None: ...
    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool: ...
    async def note(self, payment_id: str, **columns: Any) -> None: ...
    async def release(self, payment_id: str, owner: str) -> None: ...
    async def due(self, now: int) -> list[Claim]: ...
    async def take_nonce(self, wallet: str, holder: str, floor: int) -> int: ...
    async def free_nonces(self, holder: str, wallet: str = "", nonce: int = -1) -> None: ...


class Settler:
    """Settles claims and keeps settling them. One for each process; several share a store.

    ``lost`` is told of a payment whose settlement left the chain after it was served; ``also`` is done with each pass.
    """

    def __init__(
        self,
        store: Rows,
        rails: Sequence[Rail],
        *,
        wait_seconds: float = 25,
        every: float = RECONCILE_SECONDS,
        lost: Callable[[str], Awaitable[None]] | None = None,
        also: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        self._store = store
        self._rails = {(rail.network, rail.asset.address.lower(), rail.pay_to.lower()): rail for rail in rails}
        self._wait = wait_seconds
        self._lost = lost
        self._also = also
        self._every = every
        self._settling: dict[asyncio.Future[Claim], tuple[asyncio.Task[None], str]] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Task[None] | None = None
        self._stuck = Trouble(log, "reconciling each open claim")

    def rail_of(self, claim: Claim) -> Rail | None:
        """The rail that a claim was made on, or None when it is no longer configured."""
        return self._rails.get((claim.network, claim.asset.lower(), claim.pay_to.lower()))

    async def start(self) -> None:
        """Reconcile what an earlier process left, then go on doing so on a timer.

        A first pass that takes longer, since a node hangs, goes on beside the requests.
        """
        looked = asyncio.Event()
        self._timer = asyncio.create_task(self._run(looked), name="x402kit-reconcile")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await looked.wait()

    async def close(self, drain_seconds: float = 10) -> None:
        """Let settlements under way finish, for so long; the rest is reconciled at the next start (J09)."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)
            self._timer = None
        if under_way := self._under_way():
            await asyncio.wait(under_way, timeout=drain_seconds)
        while under_way := self._under_way():  # each gives its claim back
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            for waiter, (task, _) in tuple(self._settling.items()):
                if task.done():  # cancelled before it began
                    self._over(waiter)

    def _under_way(self) -> set[asyncio.Task[None]]:
        return {*(task for task, _ in self._settling.values()), *self._releasing}

    async def settle(self, rail: Rail, authorization: Authorization, offer: PaymentRequirements, claim: Claim) -> Claim:
        """Settle a claim that we own, which nobody has sent yet, in a task that outlives its caller; the claim as it
        stands then.

        When the caller is cancelled the settlement goes on, and its claim is free for the next showing (C03).
        """
        # A future of our own, and no callback of the task: a shielded one takes two further rounds of the loop (5 µs).
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Claim] = loop.create_future()
        task = loop.create_task(self._settle(waiter, rail, authorization, offer, claim))
        self._settling[waiter] = task, claim.payment_id
        try:
            return await waiter
        except asyncio.CancelledError:
            self._behind(self._release_after(task, claim))
            raise

    def forgo(self, claim: Claim) -> None:
        """Nothing will be sent for a claim that its caller may have been given and does not know of: one that begins in
        ``sent`` is over then, since later only the chain could say that it was not.
        """
        if claim.state == "sent":
            self._behind(self._not_sent(claim))

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Done in a task that outlives its caller."""
        task = asyncio.create_task(work)
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _not_sent(self, claim: Claim) -> None:
        with contextlib.suppress(ServerError, ConfigError):  # then it is sent by who finds it
            await self._store.move(claim.payment_id, "fail", claim.owner, reason="not_sent")

    async def _release_after(self, task: asyncio.Task[None], claim: Claim) -> None:
        await asyncio.wait((task,))
        with contextlib.suppress(ServerError):  # the lease ends by itself
            await self._store.release(claim.payment_id, claim.owner)

    async def _settle(
        self,
        waiter: asyncio.Future[Claim],
        rail: Rail,
        authorization: Authorization,
        offer: PaymentRequirements,
        claim: Claim,
    ) -> None:
        """The task of one settlement: its outcome, or its failure, is the waiter's."""
        try:
            sent = claim if claim.state == "sent" else await self._intend(rail, authorization, offer, claim)
            settled = await self._send(sent, rail)
            if not waiter.done():
                waiter.set_result(settled)
        except BaseException as e:
            # Whoever comes next, a showing or the timer, must find it free.
            with contextlib.suppress(ServerError):
                await self._store.release(claim.payment_id, claim.owner)
            if not isinstance(e, Exception):
                raise
            if not waiter.done():
                waiter.set_exception(e)
        finally:
            self._over(waiter)

    def _over(self, waiter: asyncio.Future[Claim]) -> None:
        self._settling.pop(waiter, None)
        waiter.cancel()  # of no effect on one that has its answer

    async def prepare(
        self, rail: Rail, authorization: Authorization, offer: PaymentRequirements, claim: Claim
    ) -> Intent:
        """What ``rail`` will send for a claim. Raises ``RailUnavailable``."""
        return await rail.prepare(authorization, offer, _Held(self._store, claim.owner))

    async def _intend(
        self, rail: Rail, authorization: Authorization, offer: PaymentRequirements, claim: Claim
    ) -> Claim:
        """Prepare and store the intent. On any failure nothing was sent, and the claim says so."""
        intent = None
        try:
            intent = await self.prepare(rail, authorization, offer, claim)
            reference, blob, wallet, nonce = intent
            moved = await self._store.move(
                claim.payment_id, "intend", claim.owner, reference=reference, intent=blob, wallet=wallet, nonce=nonce
            )
        except ServerError:
            if intent is not None:
                await rail.discard(intent, _Held(self._store, claim.owner))
            await self._store.move(claim.payment_id, "fail", claim.owner, reason="not_sent")
            raise
        if not moved:  # our lease ran out, and another took the claim over
            await rail.discard(intent, _Held(self._store, claim.owner))
            raise PaymentInProgress("claim_lost")
        return claim.sent(intent)

    async def _send(self, claim: Claim, rail: Rail) -> Claim:
        try:
            outcome = await rail.send(claim.prepared)
            if outcome.state == "pending":
                claim = claim.changed(reference=outcome.reference or claim.reference)  # a facilitator says it late
                outcome = await rail.wait(claim, self._wait)
            return await self.record(claim, outcome, rail)
        except RailUnavailable as e:
            # It was sent, and rail or store can't say what became of it: not the 503 of before the sending.
            raise OutcomeUnknown(e.reason, reference=claim.reference) from e

    async def record(self, claim: Claim, outcome: Outcome, rail: Rail) -> Claim:
        """Write down what became of a settlement. What can't be written now is found again by ``reconcile``."""
        owner = claim.owner or None
        now = int(time.time())
        state, _, reference, block, block_hash, log_index, final, *_ = outcome
        if state == "settled":
            columns: dict[str, Any] = {
                "reference": reference or claim.reference,
                "block": block,
                "block_hash": block_hash,
                "log_index": log_index,
                "settled_at": now,
                "final": int(final),
                "next_check": now + 60,
            }
            if await self._store.move(claim.payment_id, "confirm", owner, **columns):
                return claim.changed(state="settled", **columns)
        elif state == "failed":
            if outcome.never_sent:
                # Before the claim ends: who dies in between leaves a claim to be sent again, not a nonce held for ever.
                await rail.discard(claim.prepared, _Held(self._store, claim.owner))
            spent = int(outcome.spent)
            if await self._store.move(claim.payment_id, "fail", owner, reason=outcome.reason, spent=spent):
                return claim.changed(state="failed", reason=outcome.reason, spent=spent)
        else:
            if outcome.resend:
                await rail.send(claim.prepared)
            age = now - claim.created_at
            wait = next((step for step in _AGAIN if age <= step * 3), _AGAIN[-1])
            reference = reference or claim.reference
            if await self._store.move(claim.payment_id, "lose", owner, next_check=now + wait, reference=reference):
                return claim.changed(state="unknown", reference=reference)
        return await self._store.get(claim.payment_id) or claim

    async def look(self, claim: Claim) -> Claim:
        """Ask the chain about a claim in ``sent`` or ``unknown`` that we own, and write down the answer."""
        rail = self.rail_of(claim)
        if rail is None:
            return claim
        return await self.record(claim, await rail.outcome(claim), rail)

    async def reconcile(self) -> int:
        """One pass over what is open and nobody works on. How many claims were looked at."""
        due = await self._store.due(int(time.time()))
        # A lease of ours that ran out (a process that stood still) does not make two of us work on one claim.
        here = {payment_id for _, payment_id in self._settling.values()}
        due = [claim for claim in due if claim.payment_id not in here]
        slots = asyncio.Semaphore(_AT_ONCE)
        stuck: list[str] = []
        found = await asyncio.gather(*[self._try(claim, slots, stuck) for claim in due], return_exceptions=True)
        if stuck:
            self._stuck.begins(stuck[0])
        elif due:
            self._stuck.over()
        for work in self._also:  # what goes wrong with one must not keep the others from theirs
            found += await asyncio.gather(work(), return_exceptions=True)
        # A fault of ours is not hidden behind a store or a node that is out of reach.
        faults = sorted(filter(None, found), key=lambda each: isinstance(each, ServerError))
        if faults:
            raise faults[0]
        return len(due)

    async def _try(self, claim: Claim, slots: asyncio.Semaphore, stuck: list[str]) -> None:
        async with slots:
            try:
                await self._reconcile(claim)
            except ServerError as e:
                stuck.append(f"{e.reason}, as for claim {claim.payment_id}")

    async def _reconcile(self, claim: Claim) -> None:
        if claim.state in ("settled", "served", "credited"):
            await self._watch(claim)
            return
        if claim.state != "claimed" and self.rail_of(claim) is None:
            # Only the chain could say what became of it: the operator must bring its rail back.
            await self._store.note(claim.payment_id, next_check=int(time.time()) + 60)
            log.error("ALERT: claim %s is open, and its rail is configured no more", claim.payment_id)
            return
        owner = f"reconcile:{id(self):x}:{time.monotonic_ns():x}"
        taken = await self._store.take(claim.payment_id, claim.state, owner)
        if taken is None:
            return
        try:
            if taken.state == "claimed":
                # Its worker died before the intent was stored, so nothing was sent (I9).
                await self._store.move(taken.payment_id, "drop", owner, reason="not_sent")
                return
            after = await self.look(taken)
        finally:
            await self._store.release(taken.payment_id, owner)
        log.info("claim %s: %s, now %s", claim.payment_id, claim.state, after.state)

    async def _watch(self, claim: Claim) -> None:
        """Follow a settlement until no reorganisation can take it back (I-08)."""
        rail = self.rail_of(claim)
        now = int(time.time())
        if rail is None:
            await self._store.note(claim.payment_id, final=1)
            return
        outcome = await rail.outcome(claim)
        if outcome.state == "settled":
            block = {"block": outcome.block, "block_hash": outcome.block_hash, "reference": outcome.reference}
            await self._store.note(claim.payment_id, final=int(outcome.final), next_check=now + 60, **block)
            return
        if outcome.state == "pending" and (outcome.reason or outcome.block):
            # It can't be seen now, or stands in another block that is still shallow.
            await self._store.note(claim.payment_id, next_check=now + 5)
            return
        with contextlib.suppress(Exception):  # a log that fails must not keep us from mending it (I11)
            log.error("ALERT: the settlement of %s (%s) left the chain", claim.payment_id, claim.reference)
        if outcome.state == "failed":
            # If the goods are out, it is the payer's debt, for the operator to see; if not, they stay here.
            if not await self._store.move(claim.payment_id, "reverse", reason="reversed"):
                await self._write_off(claim)
            return
        if outcome.resend:
            await rail.send(claim.prepared)
        await self._store.note(claim.payment_id, next_check=now + 5)

    async def _write_off(self, claim: Claim) -> None:
        if self._lost is not None:
            await self._lost(claim.payment_id)
        else:
            await self._store.note(claim.payment_id, final=1, reason="reversed")

    async def _run(self, looked: asyncio.Event) -> None:
        trouble = Trouble(log, "reconcile")
        while True:
            try:
                await self.reconcile()
                trouble.over()
            except ServerError as e:  # a store or a node out of reach: no fault of ours
                trouble.begins(e.reason)
            except Exception:  # the background border: one bad pass must not end all later ones
                with contextlib.suppress(Exception):  # nor must a log that fails (I11)
                    log.exception("reconcile failed")
            looked.set()
            await asyncio.sleep(self._every)
