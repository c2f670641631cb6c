"""Any wallet that speaks Nostr Wallet Connect (NIP-47), over the relays that its connection URI names.

The protocol has no fee limit: a payment is made only if what such a wallet may spend on fees is within ``max_fee``, by
``fee_base`` and ``fee_ppm``. It has no certain "not sent" either, once a relay is connected. Needs the extra
``lightning``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import ConfigError, MissingExtra, NodeUnreachable, RailUnavailable
from ..protocols.bolt11 import decode
from .lightning_port import InvoiceState, NewInvoice, PaymentState
from .lightning_reading import LATE_SECONDS, digest, made, named_network, paid, reading, short, to_pay, told, whole

if TYPE_CHECKING:
    import nostr_sdk

__all__ = ["NostrWalletConnect"]

T = TypeVar("T")
NAME: Final = "wallet behind Nostr Wallet Connect"
CONNECT_SECONDS: Final = 5.0
PAY_SECONDS_MAX: Final = 600
PAGE: Final = 50
LATELY_SECONDS: Final = 3600
"""Transactions are listed by the time at which their invoice was made."""
_CODE: Final = re.compile(r"\[([A-Za-z]{1,40})\]\Z")
_NOT_ALLOWED: Final = frozenset(("RateLimited", "NotImplemented", "Restricted", "Unauthorized"))
_NOT_DONE: Final = {
    "InsufficientBalance": "insufficient_balance",
    "QuotaExceeded": "quota_exceeded",
    "PaymentFailed": "refused",
}


class _Trouble(Exception):
    """The wallet's error code, or "" when there is no answer at all. Never shows what the wallet wrote."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code or "no answer")


class NostrWalletConnect:
    """A wallet. ``uri`` (``nostr+walletconnect://…``) is a secret. Fees in msat: the greater of base and share.

    The defaults are what Alby Hub sets aside: 10 sat, or 1 %.
    """

    def __init__(
        self,
        uri: str,
        *,
        seconds: float = 15.0,
        poll_seconds: float = 5.0,
        fee_base: int = 10_000,
        fee_ppm: int = 10_000,
    ) -> None:
        """No traffic. Raises ``ConfigError``; ``MissingExtra`` without nostr-sdk."""
        sdk = _sdk()
        try:
            self._uri = sdk.NostrWalletConnectUri.parse(uri.strip())
        except (sdk.NostrSdkError, sdk.InternalError):
            raise ConfigError("the Nostr Wallet Connect URI can't be read") from None
        self._seconds, self._poll_seconds = seconds, poll_seconds
        self._fee_base, self._fee_ppm = fee_base, fee_ppm
        self._wallet: nostr_sdk.NostrWalletConnect | None = None
        self._network = ""

    @property
    def network(self) -> str:
        return self._network

    @property
    def step(self) -> int:
        """NIP-47 counts msat, but many of these wallets whole satoshis."""
        return 1000

    async def start(self) -> None:
        """Connect. Raises ``ConfigError``: no relay, no wallet that answers, or it does not know this connection."""
        await self.close()
        sdk = _sdk()
        builder = sdk.NostrWalletConnectBuilder(self._uri).timeout(timedelta(seconds=PAY_SECONDS_MAX))
        self._wallet = wallet = builder.build()
        try:
            info = await self._call(wallet.get_info())
            self._network = named_network(info.network, NAME) if info.network else await self._find_network()
        except _Trouble as e:
            if e.code in _NOT_ALLOWED:
                raise ConfigError(f"the {NAME} refuses this connection") from None
            raise NodeUnreachable(f"the {NAME} does not answer over its relays") from None
        finally:
            if not self._network:
                await self.close()

    async def close(self) -> None:
        wallet, self._wallet = self._wallet, None
        if wallet is not None:
            await wallet.client().shutdown()

    def fee(self, amount: int) -> int:
        """What the wallet is said to set aside to send so many msat."""
        return max(self._fee_base, -(-amount * self._fee_ppm // 1_000_000))

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        """``make_invoice``. Raises ``RailUnavailable``."""
        if amount % self.step:
            raise ValueError("an amount of whole satoshis")
        answer = await self._ask(self._make(amount, memo, expiry_seconds))
        with reading():
            return made(answer.invoice, amount, self._network)

    async def look_up(self, payment_hash: str) -> InvoiceState:
        """``lookup_invoice``. Raises ``RailUnavailable``."""
        row = await self._row(payment_hash)
        sdk = _sdk()
        if row is None or row.transaction_type is sdk.TransactionType.OUTGOING:
            return InvoiceState("unknown")
        if _is_settled(row):
            with reading():
                return InvoiceState("settled", whole(row.amount))
        if row.state is sdk.TransactionState.ACCEPTED:
            return InvoiceState("accepted")
        ended = row.state in (sdk.TransactionState.EXPIRED, sdk.TransactionState.FAILED)
        late = row.expires_at is not None and row.expires_at.as_secs() + LATE_SECONDS < time.time()
        return InvoiceState("dead" if ended or late else "open")

    async def subscribe(self) -> AsyncGenerator[str]:
        """``list_transactions``, again and again. Raises ``RailUnavailable``, too where the wallet has no such call."""
        seen = await self._settled()
        while True:
            await asyncio.sleep(self._poll_seconds)
            now = await self._settled()
            for settled in reversed(now):
                if settled not in seen:
                    yield settled
            seen = now

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        """``pay_invoice``. The port says what is certain."""
        invoice = to_pay(bolt11, self._network)
        if isinstance(invoice, PaymentState):
            return invoice
        payment_hash = invoice.payment_hash
        if self.fee(invoice.amount) > max_fee:
            return await told(self.payment, payment_hash, PaymentState("failed", reason="fee_too_high"))
        wallet = await self._connected()
        wanted = _sdk().PayInvoiceRequest(id=None, invoice=bolt11, amount=None)
        try:
            answer = await self._call(wallet.pay_invoice(wanted), min(timeout_seconds, PAY_SECONDS_MAX))
            return paid(answer.preimage, whole(answer.fees_paid or 0), payment_hash)
        except _Trouble as e:
            if e.code in _NOT_ALLOWED:
                raise RailUnavailable(detail=f"the {NAME} does not let this connection pay ({e.code})") from None
            reason = _NOT_DONE.get(e.code, "")
            said = PaymentState("failed" if reason else "pending", reason=reason or "no_answer")
        except ValueError:
            said = PaymentState("pending", reason="garbage")
        return await told(self.payment, payment_hash, said)

    async def payment(self, payment_hash: str) -> PaymentState:
        """``lookup_invoice``. Raises ``RailUnavailable``."""
        row = await self._row(payment_hash)
        sdk = _sdk()
        if row is None or row.transaction_type is sdk.TransactionType.INCOMING:
            return PaymentState("unknown")
        if _is_settled(row):
            with reading():
                return paid(row.preimage, whole(row.fees_paid), payment_hash)
        if row.state is sdk.TransactionState.FAILED:
            return PaymentState("failed", reason="refused")
        return PaymentState("pending")

    async def _connected(self) -> nostr_sdk.NostrWalletConnect:
        """The wallet, with a relay connected now. Raises ``RailUnavailable``: nothing was sent."""
        wallet = self._wallet
        if wallet is None:
            raise RailUnavailable(detail=f"the {NAME}: not started")
        connected = _sdk().RelayStatus.CONNECTED
        for again in (True, False):
            relays = await wallet.client().relays()
            if any(relay.status() is connected for relay in relays.values()):
                return wallet
            if again:
                await wallet.client().try_connect(timedelta(seconds=CONNECT_SECONDS))
        raise RailUnavailable(detail=f"the {NAME}: no relay is reached")

    async def _call(self, call: Coroutine[Any, Any, T], seconds: float = 0) -> T:
        sdk = _sdk()
        try:
            async with asyncio.timeout(seconds or self._seconds):
                return await call
        except TimeoutError:
            raise _Trouble("") from None
        except sdk.NostrSdkError as e:
            found = _CODE.search(e[0]) if e.args else None
            raise _Trouble(found[1] if found else "") from None
        except sdk.InternalError:
            raise _Trouble("") from None

    async def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await self._call(call)
        except _Trouble as e:
            raise RailUnavailable(detail=f"the {NAME}: {e}") from None

    async def _make(self, amount: int, memo: str, expiry_seconds: int) -> nostr_sdk.MakeInvoiceResponse:
        wallet = await self._connected()
        sdk = _sdk()
        return await wallet.make_invoice(
            sdk.MakeInvoiceRequest(amount=amount, description=short(memo), description_hash=None, expiry=expiry_seconds)
        )

    async def _find_network(self) -> str:
        """For a wallet that does not name its chain: of an invoice made for it."""
        answer = await self._call(self._make(self.step, "", 60))
        try:
            return decode(answer.invoice).network
        except ValueError:
            raise _Trouble("") from None

    async def _row(self, payment_hash: str) -> nostr_sdk.LookupInvoiceResponse | None:
        wallet = await self._connected()
        wanted = _sdk().LookupInvoiceRequest(payment_hash=payment_hash, invoice=None)
        try:
            row = await self._call(wallet.lookup_invoice(wanted))
        except _Trouble as e:
            if e.code == "NotFound":
                return None
            raise RailUnavailable(detail=f"the {NAME}: {e}") from None
        with reading():
            if digest(row.payment_hash) != payment_hash:
                raise ValueError("another payment")
        return row

    async def _settled(self) -> list[str]:
        """Hashes of the invoices made lately that are settled, the newest first."""
        wallet = await self._connected()
        sdk = _sdk()
        since = int(time.time()) - LATELY_SECONDS
        found: list[str] = []
        while True:
            wanted = sdk.ListTransactionsRequest(
                _from=sdk.Timestamp.from_secs(since),
                until=None,
                limit=PAGE,
                offset=len(found),
                unpaid=False,
                transaction_type=sdk.TransactionType.INCOMING,
            )
            rows = await self._ask(wallet.list_transactions(wanted))
            with reading():
                found += [digest(row.payment_hash) if _is_settled(row) else "" for row in rows]
            if len(rows) < PAGE:
                return [one for one in found if one]


def _is_settled(row: nostr_sdk.LookupInvoiceResponse) -> bool:
    """Wallets from before ``state`` was in the protocol tell it by the time."""
    if row.state is None:
        return row.settled_at is not None
    return row.state is _sdk().TransactionState.SETTLED


def _sdk() -> Any:
    try:
        import nostr_sdk
    except ImportError as e:
        raise MissingExtra("lightning", "nostr-sdk") from e
    return nostr_sdk
