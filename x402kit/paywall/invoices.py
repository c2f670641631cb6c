"""Invoices: made for challenges, remembered until they are paid or over, and turned into claims when they are paid.

An invoice costs a call of the node, so it is made once for the same caller and quote and used again inside its life,
and those that are open and unpaid are limited, for each caller and in all. Its row is durable before it is shown:
whatever is paid on it, in time or late, with or without its payer coming back, becomes a claim (G05).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import PaymentRefused, RailUnavailable, ServerError
from ..ledger.port import Store
from ..model import Account, Claim, Invoice
from ..money import Usd, format_units
from ..networks.lightning import Lightning, Rate
from ..protocols.encoding import dump_json, parse_object
from .admission import UNSERVED_SECONDS
from .recovery import commits_lost
from .trouble import Trouble

__all__ = ["WATCHER", "Invoices", "Offered", "Wanted", "claim_id", "rate_of"]

log = logging.getLogger("x402kit.lightning")

WATCHER: Final = "invoices:"
"""How the owner of a claim begins who only writes down that it is paid: it has it for a moment."""
_AT_ONCE: Final = 32
"""Calls of the node at once."""
_LOOKS: Final = (15, 60, 240)
"""Seconds of age at which an open invoice is looked at, beside what the node tells of itself."""
_LATE: Final = (60, 3600, 6 * 3600)
"""The same after it has expired (G05)."""
_SETTLING_SECONDS: Final = 3.0
"""A payer has the preimage a moment before the payee's own node says so."""
_LISTEN_AGAIN: Final = 5
_LOOK_AGAIN: Final = 30
_FAILURES: Final = 3
"""In one pass: then it is the node or the store that is out of reach."""
_KEPT: Final = 2 * 86_400
"""A claim outlives its invoice's row, which is kept for a day, and the pass that it paid for."""


def claim_id(payment_hash: str) -> str:
    """One space for L402 and ``Payment``: the payment hash (C09)."""
    return f"lightning:{payment_hash}"


def _entry_key(payment_hash: str) -> str:
    """Of what the books say of a payment that was served or credited."""
    return f"claim:{claim_id(payment_hash)}"


class Wanted(NamedTuple):
    """What an invoice is for. ``bound`` is the request's fingerprint, or a pass's; ``calls`` of ``ceiling`` each."""

    resource: str
    bound: bytes
    ceiling: Usd
    memo: str = ""
    calls: int = 1
    seconds: int = 0
    whole_sats: bool = False


class Offered(NamedTuple):
    """An invoice in a challenge: the values of WWW-Authenticate, and what the body says of it as JSON text."""

    invoice: Invoice
    lines: tuple[tuple[str, bytes], ...]
    shown: bytes


class _Open(NamedTuple):
    offered: Offered
    caller: str
    seen: int
    """When it was last known to be unpaid."""


_Key = tuple[str, Wanted]
Lines = Callable[[Invoice], tuple[tuple[str, bytes], ...]]


class Invoices:
    """The invoices of one rail. ``lines`` writes an invoice's challenges."""

    def __init__(self, store: Store, rail: Lightning) -> None:
        self.rail = rail
        self._store = store
        self._open: OrderedDict[_Key, _Open] = OrderedDict()
        self._keys: dict[str, _Key] = {}
        self._callers: Counter[str] = Counter()
        self._asking: Counter[str] = Counter()
        self._making: dict[_Key, asyncio.Future[Offered]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen to the node, until ``close``."""
        self._watcher = asyncio.create_task(self._watch(), name="x402kit-invoices")

    async def close(self) -> None:
        task, self._watcher = self._watcher, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def offer(self, wanted: Wanted, caller: str, lines: Lines) -> Offered | None:
        """An invoice that is open, or a new one; None where the caller, or everybody, has too many unpaid ones.

        Raises ``RailUnavailable``: no node, no price.
        """
        key = (caller, wanted)
        now = int(time.time())
        found = self._open.get(key)
        if found is not None and await self._is_good(key, found, now):
            return found.offered
        if (making := self._making.get(key)) is not None:
            return await asyncio.shield(making)
        self._forget_old(now)
        if self._callers[caller] + self._asking[caller] >= self.rail.unpaid_per_caller:
            return None
        if len(self._open) + len(self._making) >= self.rail.unpaid:
            return None
        return await self._made_once(key, lines)

    async def _is_good(self, key: _Key, found: _Open, now: int) -> bool:
        """Whether it lives long enough, and no other process has seen it paid: who is offered that can't pay it."""
        if found.offered.invoice.expires_at - now < self.rail.invoice_seconds // 2:
            return False
        if found.seen >= now:
            return True
        try:
            row = await self._store.get_invoice(found.offered.invoice.payment_hash)
        except ServerError:
            return True
        if row is not None and row.state == "open":
            if self._open.get(key) is found:
                self._open[key] = found._replace(seen=now)
            return True
        self._drop_hash(found.offered.invoice.payment_hash)
        return False

    async def _made_once(self, key: _Key, lines: Lines) -> Offered | None:
        """Several that ask for the same at once share one invoice, and one of them that leaves takes it from none."""
        task: asyncio.Future[Offered] = asyncio.ensure_future(self._make(key, lines))
        self._making[key] = task
        self._asking[key[0]] += 1
        task.add_done_callback(lambda done: self._over(key, done))
        return await asyncio.shield(task)

    def _over(self, key: _Key, task: asyncio.Future[Offered]) -> None:
        self._making.pop(key, None)
        _one_less(self._asking, key[0])
        if not task.cancelled():
            task.exception()  # each who waits has it; nobody may be left

    async def _make(self, key: _Key, lines: Lines) -> Offered:
        caller, wanted = key
        rail = self.rail
        rate = rail.rate()
        step = 1000 if wanted.whole_sats else rail.node.step
        amount = rail.units(wanted.ceiling, step) * wanted.calls
        async with self._slots:
            made = await rail.node.create(amount, memo=wanted.memo[:128], expiry_seconds=rail.invoice_seconds)
        if made.amount != amount:
            raise RailUnavailable(detail="the node made another invoice than it was asked for")
        now = int(time.time())
        quote = {
            "usd": f"{wanted.ceiling.value:f}",
            "rate": str(rate),
            "rate_at": rate.at,
            "calls": wanted.calls,
            "seconds": wanted.seconds,
        }
        row = Invoice(
            made.payment_hash,
            rail.network,
            amount,
            made.bolt11,
            wanted.bound,
            wanted.resource,
            dump_json(quote),
            now,
            made.expires_at,
            now + _LOOKS[0],
        )
        await self._store.add_invoice(row)
        shown = {
            "network": rail.network,
            "invoice": made.bolt11,
            "paymentHash": made.payment_hash,
            "amountMsat": str(amount),
            "amountBtc": format_units(amount, rail.asset.decimals),
            "expiresAt": made.expires_at,
            "btcUsd": str(rate),
            "btcUsdAt": rate.at,
        }
        offered = Offered(row, lines(row), dump_json(shown))
        self._remember(key, _Open(offered, caller, now))
        return offered

    # What is open, in memory: for the limits, and to be offered again.

    def _remember(self, key: _Key, opened: _Open) -> None:
        self._drop(key)
        self._open[key] = opened
        self._keys[opened.offered.invoice.payment_hash] = key
        self._callers[opened.caller] += 1

    def _drop(self, key: _Key) -> None:
        gone = self._open.pop(key, None)
        if gone is None:
            return
        self._keys.pop(gone.offered.invoice.payment_hash, None)
        _one_less(self._callers, gone.caller)

    def _forget_old(self, now: int) -> None:
        """They were all made to live equally long, so the oldest come first."""
        while self._open:
            key, opened = next(iter(self._open.items()))
            if opened.offered.invoice.expires_at > now:
                return
            self._drop(key)

    # What became of them.

    async def settle(self, row: Invoice, owner: str) -> Claim:
        """The claim of an invoice whose preimage was shown; ours if its ``owner`` is ours. Node first, then the row.

        Raises ``PaymentRefused``: certain that it was not paid; ``RailUnavailable``: it is not settled yet, or the node
        can't say (G03, G06).
        """
        return await self._claim(row, await self._came(row.payment_hash), owner)

    async def _came(self, payment_hash: str) -> int:
        """What the node says has come on an invoice whose preimage is known. Raises as ``settle`` does."""
        end = time.monotonic() + _SETTLING_SECONDS
        while True:
            async with self._slots:
                found = await self.rail.node.look_up(payment_hash)
            if found.state == "settled":
                return found.received
            if found.state == "dead":
                raise PaymentRefused("invoice_unpaid")
            if found.state == "unknown":  # who has the preimage may have paid it, to a node that is no longer asked
                log.error("ALERT: the node has no invoice %s, and its preimage was shown", payment_hash)
                raise RailUnavailable("invoice_unknown")
            if time.monotonic() > end:
                raise RailUnavailable("invoice_not_settled")
            await asyncio.sleep(0.1)

    async def lost(self, payment_hash: str, wanted: Wanted, bound: bytes, amount: int) -> Invoice | None:
        """The row of a paid invoice of ours that the ledger has lost (J05), made anew: ``wanted`` is what it is shown
        for, ``bound`` and ``amount`` what it was sold for, where that is known. Else it becomes balance.

        None where nothing was ever lost, or the books know the payment. Raises as ``settle`` does.
        """
        if not await commits_lost(self._store) or await self._store.entry(_entry_key(payment_hash)) is not None:
            return None
        received = await self._came(payment_hash)
        amount = amount or received
        now, rate = int(time.time()), Rate.of(wanted.ceiling, amount)
        quote = {"usd": f"{wanted.ceiling.value:f}", "rate": str(rate), "rate_at": now, "calls": 1, "seconds": 0}
        row = Invoice(
            payment_hash, self.rail.network, amount, "", bound, wanted.resource, dump_json(quote), now, now, now
        )
        await self._store.add_invoice(row)
        log.error("ALERT: invoice %s was lost and is paid: %d msat", payment_hash, received)
        return row

    async def _claim(self, row: Invoice, received: int, owner: str) -> Claim:
        """Write down that it is paid. What came above its amount is balance; with less, all of it is (G06)."""
        self._drop_hash(row.payment_hash)
        now = int(time.time())
        seconds = parse_object(row.terms).get("seconds", 0)
        whole = received == 0 or received >= row.amount
        claim = Claim(
            claim_id(row.payment_hash),
            "settled",
            row.fingerprint if whole else b"",
            row.payment_hash.encode(),
            row.resource,
            row.network,
            self.rail.asset.address,
            self.rail.pay_to,
            row.payment_hash,
            row.amount if whole else received,
            row.expires_at + _KEPT + seconds,
            now,
            max(now + UNSERVED_SECONDS, row.expires_at + seconds) if whole else now,
            owner=owner,
            reference=row.payment_hash,
            settled_at=now,
            final=1,
            attempts=1,
        )
        made = await self._store.claim(claim)
        try:
            if received > row.amount:  # some wallets pay whole satoshi; asked for again it is the same entry
                account = Account.of(row.network, self.rail.asset.address, row.payment_hash)
                await self._store.deposit(account, received - row.amount, f"above:{row.payment_hash}")
            await self._store.note_invoice(row.payment_hash, state="settled")
        except BaseException:
            await self._give_back(made, owner)  # whoever comes next must find it free
            raise
        return made

    async def _give_back(self, claim: Claim, owner: str) -> None:
        if claim.owner == owner:
            with contextlib.suppress(ServerError):
                await self._store.release(claim.payment_id, owner)

    def _drop_hash(self, payment_hash: str) -> None:
        key = self._keys.get(payment_hash)
        if key is not None:
            self._drop(key)

    async def check(self) -> None:
        """With each pass of the reconciler: look at what is due. What can't be looked at now is by a later pass."""
        now, failed = int(time.time()), 0
        for row in await self._store.due_invoices(now):
            try:
                await self._look(row, now)
            except ServerError as e:
                log.warning("invoice %s can't be looked at now: %s", row.payment_hash, e.reason)
                failed += 1
                if failed == _FAILURES:
                    return
                # One that can't be read must not keep the others from their turn.
                await self._store.note_invoice(row.payment_hash, next_check=now + _LOOK_AGAIN)

    async def _look(self, row: Invoice, now: int) -> None:
        found = await self.rail.node.look_up(row.payment_hash)
        if found.state == "settled":
            await self._settled(row, found.received)
            return
        again = _next_look(row, now)
        if found.state in ("dead", "unknown") and now > row.expires_at:
            again = 0
        if again:
            await self._store.note_invoice(row.payment_hash, next_check=again)
        else:
            await self._store.note_invoice(row.payment_hash, state="dead")

    async def _settled(self, row: Invoice, received: int) -> None:
        if await self._store.entry(_entry_key(row.payment_hash)) is not None:
            # It was served while the node was asked, and its claim may be over: who was stopped in between is late.
            await self._store.note_invoice(row.payment_hash, state="settled")
            return
        owner = f"{WATCHER}{id(self):x}:{time.monotonic_ns():x}"
        made = await self._claim(row, received, owner)
        if made.owner == owner:  # its payer may come for what was paid
            await self._store.release(made.payment_id, owner)
            log.info("invoice %s is paid: %d msat", row.payment_hash, made.amount)

    async def _watch(self) -> None:
        """What the node says by itself, so that a payment is known at once."""
        trouble = Trouble(log, "listening to the Lightning node")
        while True:
            try:
                async with contextlib.aclosing(self.rail.node.subscribe()) as told:
                    async for payment_hash in told:
                        trouble.over()
                        await self._heard(payment_hash)
            except RailUnavailable as e:
                trouble.begins(e.reason)
            except Exception:  # the background border: ``check`` comes to what is not heard
                log.exception("listening to the Lightning node failed")
            await asyncio.sleep(_LISTEN_AGAIN)

    async def _heard(self, payment_hash: str) -> None:
        try:
            row = await self._store.get_invoice(payment_hash)
            if row is not None and row.state != "settled":
                await self._look(row, int(time.time()))
            else:
                self._drop_hash(payment_hash)
        except ServerError as e:  # ``check`` comes to it
            log.warning("invoice %s: %s", payment_hash, e.reason)


def _one_less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]


def rate_of(row: Invoice) -> Rate:
    """The price of a bitcoin that an invoice was made at."""
    terms = parse_object(row.terms)
    return Rate.read(terms["rate"], terms["rate_at"])


def _next_look(row: Invoice, now: int) -> int:
    """When to look at an open invoice again; 0 for no more."""
    times = [row.created_at + age for age in _LOOKS if row.created_at + age < row.expires_at]
    times += [row.expires_at + 5, *(row.expires_at + late for late in _LATE)]
    return next((at for at in times if at > now), 0)
