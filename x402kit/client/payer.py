"""The payer: a wallet, a policy and a journal, from which any number of transports are made."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import httpx

from ..errors import ConfigError, MissingExtra
from ..money import Usd
from . import families
from .balance import Balance, BalanceSetup
from .core import Setup
from .journal import Journal, Payment
from .journal_calls import BalanceCall
from .policy import MICRO, Limits, Policy
from .prepaid import AsyncPrepaidWallet, PrepaidWallet
from .sellers import Sellers
from .transport import Approve
from .wallet_service import Operations
from .wallets import Account, AccountWallet, KeyWallet, Wallet

if TYPE_CHECKING:
    import httpx2

    from . import families2

__all__ = ["Payer"]

WALLET_SECONDS: Final = 60.0
"""How long a wallet service may take: a withdrawal waits for the chain."""


class Payer:
    """Pays x402 calls by itself, within ``limits``; safe to share between threads, and its file between processes.

    ``evm_key`` (hex) or ``evm_account`` (an ``eth_account`` account) signs. ``journal`` is a file's path; without it
    what was signed is known only as long as the object lives. ``approve`` is asked before each payment is signed, sync
    or, in async clients, async. ``balance``: "first" pays from the prepaid balance where a seller keeps one, and by a
    payment where that is too low; "only" never by a payment; "off". ``max_validity``: the most seconds that an
    authorization lives. ``max_signatures=2`` lets a 402 after a payment lead to one more. ``retries``: how often a
    payment is shown again after a lost answer, 409 or 5xx, waiting ``backoff`` seconds and then twice that, or what
    Retry-After says. ``read_timeout``: the least seconds for a paid answer, whatever the client's own (I-12). Raises
    ``ConfigError``.
    """

    def __init__(
        self,
        evm_key: str | bytes | None = None,
        *,
        evm_account: Account | None = None,
        limits: Limits | None = None,
        journal: str | os.PathLike[str] | None = None,
        approve: Approve | None = None,
        balance: Balance = "off",
        allow_insecure: bool = False,
        max_validity: int = 600,
        max_signatures: int = 1,
        retries: int = 2,
        backoff: float = 0.5,
        read_timeout: float = 35.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_signatures not in (1, 2) or max_validity < 1 or retries < 0 or backoff < 0:
            raise ConfigError("max_signatures is 1 or 2; max_validity, retries and backoff are not negative")
        if balance not in ("off", "first", "only"):
            raise ConfigError(f'balance is "off", "first" or "only", not {balance!r}')
        self._approve = approve
        wallet = _wallet(evm_key, evm_account)
        policy, rows = Policy(limits or Limits(), allow_insecure=allow_insecure), Journal(journal)
        self._setup = Setup(
            wallet=wallet,
            policy=policy,
            journal=rows,
            clock=clock,
            asks=approve is not None,
            max_validity=max_validity,
            max_signatures=max_signatures,
            retries=retries,
            backoff=backoff,
            read_timeout=read_timeout,
            balance=BalanceSetup(balance, wallet, policy, rows, Sellers(), lambda: int(clock()), retries, backoff),
        )

    @property
    def address(self) -> str:
        """The wallet's address."""
        return self._setup.wallet.address

    def transport(self, inner: httpx.BaseTransport | None = None) -> families.PayingTransport:
        """For ``httpx.Client``; wraps ``inner``, whose settings stay, or a fresh ``httpx.HTTPTransport()``."""
        return families.PayingTransport(self._setup, self._approve, inner)

    def async_transport(self, inner: httpx.AsyncBaseTransport | None = None) -> families.AsyncPayingTransport:
        """For ``httpx.AsyncClient``."""
        return families.AsyncPayingTransport(self._setup, self._approve, inner)

    def httpx2_transport(self, inner: httpx2.BaseTransport | None = None) -> families2.PayingTransport:
        """For ``httpx2.Client``, and so for ``openai.OpenAI(http_client=...)``. Raises ``MissingExtra``."""
        _need_httpx2()
        from . import families2

        return families2.PayingTransport(self._setup, self._approve, inner)

    def async_httpx2_transport(self, inner: httpx2.AsyncBaseTransport | None = None) -> families2.AsyncPayingTransport:
        """For ``httpx2.AsyncClient``. Raises ``MissingExtra``."""
        _need_httpx2()
        from . import families2

        return families2.AsyncPayingTransport(self._setup, self._approve, inner)

    def wallet(self, base_url: str, client: httpx.Client | None = None) -> PrepaidWallet:
        """The balance at the seller whose wallet service is at ``base_url``, such as ``https://api.example.com/v1/x402``.

        ``client`` must have a transport of this payer; without one it has its own, to be closed (``with``).
        """
        made = client or httpx.Client(transport=self.transport(), timeout=WALLET_SECONDS)
        return PrepaidWallet(base_url, self._operations(), made, owns=client is None)

    def async_wallet(self, base_url: str, client: httpx.AsyncClient | None = None) -> AsyncPrepaidWallet:
        """The same, asynchronously."""
        made = client or httpx.AsyncClient(transport=self.async_transport(), timeout=WALLET_SECONDS)
        return AsyncPrepaidWallet(base_url, self._operations(), made, owns=client is None)

    def _operations(self) -> Operations:
        return Operations(self.address, self._setup.policy.known)

    def spent_this_hour(self) -> Usd:
        """Dollars counted in this UTC hour, payments with an open outcome included."""
        return self._spent(0)

    def spent_today(self) -> Usd:
        """Dollars counted on this UTC day, payments with an open outcome included."""
        return self._spent(1)

    def _spent(self, period: int) -> Usd:
        micros = self._setup.journal.spent(self.address, self._setup.now())[period]
        return Usd(Decimal(micros).scaleb(-MICRO))

    def payments(self, *, only_open: bool = False) -> list[Payment]:
        """The journal's rows, oldest first; ``only_open``: those whose outcome is not certain."""
        return self._setup.journal.payments(only_open=only_open)

    def balance_calls(self, *, only_open: bool = False) -> list[BalanceCall]:
        """The journal's calls from a balance, oldest first; ``only_open``: those whose outcome is not certain."""
        return self._setup.journal.calls(only_open=only_open)

    def give_up(self, reference: str) -> None:
        """Show an open payment, or use an open call's key, no more. A payment's budget stays counted; the next
        identical call signs anew, or is charged anew."""
        self._setup.journal.finish(reference, "given up", self._setup.now())
        self._setup.journal.end_call(reference, "given up", self._setup.now())

    def close(self) -> None:
        """Close the journal. Transports that still use it fail before they sign."""
        self._setup.journal.close()


def _wallet(key: str | bytes | None, account: Account | None) -> Wallet:
    if (key is None) == (account is None):
        raise ConfigError("give either evm_key or evm_account")
    if account is not None:
        return AccountWallet(account)
    assert key is not None
    return KeyWallet(key)


def _need_httpx2() -> None:
    if importlib.util.find_spec("httpx2") is None:
        raise MissingExtra("httpx2", "httpx2")
