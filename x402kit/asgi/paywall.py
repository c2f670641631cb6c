"""The paywall: what a seller makes once, marks routes with, and puts around the app."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from ..errors import ConfigError, HoldEnded
from ..ledger.open import store_of
from ..ledger.port import Store
from ..model import Account, Claim, Entry, Hold
from ..money import Pegged, Usd
from ..networks.lightning import Lightning, Rate
from ..networks.lightning_port import is_lightning
from ..networks.port import Rail, paying
from ..paywall.admission import Admissions
from ..paywall.balances import Balances
from ..paywall.bearer import Bearers
from ..paywall.binding import Quotes
from ..paywall.challenge import Challenges
from ..paywall.credentials import Credentials
from ..paywall.invoices import Invoices, rate_of
from ..paywall.keeper import Keeper
from ..paywall.links import Links
from ..paywall.options import check_options, secrets_of
from ..paywall.payouts import Payouts
from ..paywall.proofs import Proofs, Proven, wallets_of
from ..paywall.recovery import Recovery
from ..paywall.resource import Resource
from ..paywall.scheme import Scheme
from ..paywall.settlement import Settler
from ..paywall.tokens import Tokens
from ..pricing import PriceLike
from . import answers
from .answers import Answer
from .call import cost_of
from .counter import Counter
from .gate import Gate
from .given import check_rails, check_shared, origin_of, resource_of, rule_of
from .marks import PriceDependency, mark
from .routes import Routes, Rule
from .serving import Serving
from .signed import check_url, signed
from .wallet import WalletService
from .wallet_price import TopUp
from .wallet_shapes import Katana, Shape
from .wallet_venice import Venice

__all__ = ["Paywall"]

log = logging.getLogger("x402kit.gate")
F = TypeVar("F", bound=Callable[..., Any])
_POLL_SECONDS: Final = 0.02
_JOB_WAIT_SECONDS: Final = 1.0
_NO_ORIGIN: Final = (
    "no origin is set: payments and top-ups are taken, but a balance can't be spent with a sign-in proof (x402's, "
    "Venice's, this library's payer's: 401 invalid_siwx_domain_mismatch), for such a proof is checked against the "
    "origin; only proofs in Katana's form are good. Set origin=, with Settings X402KIT_ORIGIN, to the address as "
    "callers write it, such as https://api.example.com or http://127.0.0.1:8000"
)
_SHAPES: Final[dict[str, type[Shape]]] = {"katana": Katana, "venice": Venice}


class Paywall:
    """Prices on routes, and the rails on which they are paid.

    ``accepts`` are the rails, the preferred one first. ``ledger`` is a file, ``postgresql://…``, ``":memory:"`` for one
    process alone, or a store. ``origin`` is the public origin, such as ``https://api.example.com``; payments are bound
    to it, so set it in production. ``service`` is the name that stands in wallet proofs. ``secret`` (16 bytes or more;
    several while one is rotated) signs quotes and links; without one the ledger makes its own, which all processes of
    that ledger share. ``protocols`` are those that resources are offered in; ``payment_header`` is the field that the
    ``Payment`` scheme's credentials are asked for in: ``Payment-Authorization`` leaves ``Authorization`` to the
    app's own keys. Nothing is opened or connected before the app starts.

    Raises ``ConfigError`` for a set-up that can't work.
    """

    store: Store
    challenges: Challenges
    admissions: Admissions
    balances: Balances
    credentials: Credentials
    counter: Counter | None = None

    def __init__(
        self,
        accepts: Sequence[Rail | Lightning],
        ledger: str | os.PathLike[str] | Store = "payments.db",
        *,
        origin: str = "",
        service: str = "x402kit",
        secret: bytes | str | Sequence[bytes | str] | None = None,
        protocols: Sequence[str] = ("x402", "l402", "payment"),
        payment_header: Literal["Authorization", "Payment-Authorization"] = "Authorization",
        strict: bool = True,
        drain_seconds: float = 10,
        settle_seconds: float = 25,
        reconcile_seconds: float = 5,
    ) -> None:
        check_options("Paywall", accepts=accepts, ledger=ledger, origin=origin, service=service, secret=secret)
        check_options("Paywall", protocols=protocols, payment_header=payment_header, strict=strict)
        check_options("Paywall", drain_seconds=drain_seconds, settle_seconds=settle_seconds)
        check_options("Paywall", reconcile_seconds=reconcile_seconds)
        check_rails(accepts)
        self.rails = tuple(rail for rail in accepts if not isinstance(rail, Lightning))
        self.lightning = next((rail for rail in accepts if isinstance(rail, Lightning)), None)
        self._protocols = tuple(protocols)
        self._header = "" if payment_header == "Authorization" else payment_header
        self.store = store_of(ledger)
        self.origin = origin_of(origin)
        self.service = service
        self._secrets = secrets_of(secret)
        self._links: Links | None = None
        self._strict = strict
        self._drain_seconds = drain_seconds
        self._marks: list[Resource] = []
        self._priced: list[Resource] = []
        self._keeps_balances = False
        self._gates: list[Gate] = []
        self.running = False
        self.serving = Serving()
        self._starting: asyncio.Lock | None = None
        self._started_in: asyncio.AbstractEventLoop | None = None
        # Always there: what was begun is seen to its end, also when withdrawals are switched off.
        self._payouts = Payouts(self.store, self.rails, wait_seconds=settle_seconds)
        self._recovery = Recovery(self.store, self.rails)
        self._settler = Settler(
            self.store,
            self.rails,
            wait_seconds=settle_seconds,
            every=reconcile_seconds,
            lost=self.store.write_off,
            also=(Keeper(self.store).tidy, self._payouts.reconcile, self._recovery.check, self._check_invoices),
        )

    def paid(self, price: PriceLike, **options: Any) -> Callable[[F], F]:
        """Mark an endpoint with its price: a decorator for Starlette's and FastAPI's endpoints.

        ``price`` is ``"$0.01"``, ``usd("$0.01")`` or a function of the ``Call``; ``options`` are the fields of
        ``Resource``, ``needs_body`` and ``metered``. The endpoint runs only for a request that came through
        ``protect``. Raises ``ConfigError`` for a wrong price, option or value.
        """

        def decorate(endpoint: F) -> F:
            name = f"{endpoint.__module__}.{getattr(endpoint, '__qualname__', type(endpoint).__qualname__)}"
            return mark(endpoint, self._resource(name, price, options))

        return decorate

    def price(self, price: PriceLike, *, id: str, **options: Any) -> PriceDependency:
        """The same as a FastAPI dependency: ``Depends(paywall.price("$0.01", id="weather"))``."""
        return PriceDependency(self._resource(id, price, {**options, "id": id}))

    def _resource(self, name: str, price: Any, options: dict[str, Any]) -> Resource:
        made = self._unmarked(name, price, options)
        self._marks.append(made)
        return made

    def _unmarked(self, name: str, price: Any, options: Mapping[str, Any]) -> Resource:
        made = resource_of(name, price, {"protocols": self._protocols, **options})
        known = {rail.network for rail in (*self.rails, self.lightning) if rail is not None}
        if not known.issuperset(made.networks):
            raise ConfigError(f"{name}: the paywall has no rail on some of {', '.join(made.networks)} (CAIP-2)")
        check_shared(made, self._priced, chosen="id" in options)
        self._priced.append(made)
        self._keeps_balances |= made.metered  # what a metered call leaves over is balance
        return made

    def protect(self, app: ASGIApp, prices: Mapping[str, Any] | None = None) -> Gate:
        """The gate around an app. ``prices`` are rules for routes that can't be marked: ``{"POST /v1/chat": "$0.01"}``.

        A value is a price, or a dict of ``price`` and the fields of ``Resource``. A rule or mark that names no route
        of the app is an ``UnmatchedRule`` when the app starts, unless ``strict=False``.
        """
        rules = [
            Rule.parse(text, self._unmarked(text, *rule_of(text, value))) for text, value in (prices or {}).items()
        ]
        alone = not self._gates

        def make_routes() -> Routes:
            # Marks may sit on several apps' routes; only a paywall around one app can miss one.
            marks = self._marks if alone and len(self._gates) == 1 else ()
            return Routes(app, rules, marks, strict=self._strict)

        gate = Gate(self, app, make_routes)
        self._gates.append(gate)
        return gate

    async def start(self) -> None:
        """Open the ledger, connect the rails, reconcile what an earlier process left. The gate calls it."""
        loop = asyncio.get_running_loop()
        if self._started_in is loop:
            return
        if self._starting is None or self._started_in is not None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._started_in is loop:
                return
            await self._open()
            self._started_in = loop
            self.running = True
            if self._keeps_balances and self.rails and not self.origin:
                log.warning(_NO_ORIGIN)

    async def _open(self) -> None:
        await self.store.start()
        try:
            for rail in self.rails:
                await rail.start()
            if self.lightning is not None:
                await self.lightning.start()
            secrets = self._secrets or (await self.store.secret(),)
            scheme = Scheme(*secrets, realm=urlsplit(self.origin).netloc or self.service, header=self._header)
            self.challenges = Challenges(self.rails, Quotes(*secrets), scheme)
            self._links = Links(secrets, origin=self.origin)
            self.balances = self._balances(secrets)
            self.admissions = Admissions(self.store, self.challenges, self._settler)
            self.credentials = self._credentials(secrets, scheme)
            await self._settler.start()
        except BaseException:
            await self._shut()
            raise

    def _balances(self, secrets: Sequence[bytes]) -> Balances:
        assets = {rail.network: rail.asset for rail in reversed(self.rails)}
        proofs = Proofs(
            *secrets,
            service=self.service,
            origin=self.origin,
            networks=list(assets),
            contract_wallets=wallets_of(self.rails),
        )
        return Balances(self.store, proofs, assets)

    def _credentials(self, secrets: Sequence[bytes], scheme: Scheme) -> Credentials:
        tokens, bearers = Tokens(*secrets, service=self.service), None
        if self.lightning is not None:
            invoices = Invoices(self.store, self.lightning)
            invoices.start()
            self.counter = Counter(invoices, tokens, scheme)
            bearers = Bearers(self.store, invoices, self.admissions, self.balances)
        return Credentials(self.admissions, scheme, tokens, bearers)

    async def _check_invoices(self) -> None:
        if self.counter is not None:
            await self.counter.invoices.check()

    def wallet_service(
        self,
        *,
        minimum: str = "$1",
        maximum: str = "$1000",
        withdraw: bool = False,
        dialect: Literal["katana", "venice"] = "katana",
    ) -> WalletService:
        """Top-ups, balances and transactions, to be mounted: ``Mount("/v1/x402", paywall.wallet_service())``.

        ``minimum`` and ``maximum`` of one top-up; ``withdraw`` lets a payer have the unused balance back, on networks
        whose rail settles from the wallet that is paid; there must be one. ``dialect="venice"`` is for Venice's
        clients, at ``/api/v1/x402``; one of each can be mounted. Raises ``ConfigError``.
        """
        check_options("wallet_service", minimum=minimum, maximum=maximum, withdraw=withdraw, dialect=dialect)
        if not self.rails:
            raise ConfigError("a wallet service needs a chain: Lightning has no wallets to name a payer by")
        if withdraw and not self._payouts.networks:
            paying(self.rails[0])
        shape = _SHAPES[dialect]()
        price = TopUp.of(minimum, maximum, any_amount=shape.any_amount)
        made = WalletService(self, shape, price, withdraw=withdraw)
        self._marks.append(made.resource)
        self._keeps_balances = True
        return made

    def sign_in(self, url: str) -> Answer:
        """402 without offers: a place that takes a wallet proof alone."""
        text = self.balances.proofs.challenge_text(int(time.time()), self.origin + url)
        return answers.sign_in(text)

    async def withdraw(self, proven: Proven, amount: int | None) -> Claim:
        """Send balance back to the wallet that proved itself: see ``Payouts.withdraw``."""
        return await self._payouts.withdraw(proven, self.balances.account(proven), amount)

    async def finish(self, job: str, cost: str | Usd) -> Entry:
        """A job has ended and cost so much: charged from what its call reserved, the rest goes back to the payer. Over
        Lightning at the rate that was paid at; from a balance in bitcoin at the one of now.

        Raises ``HoldEnded`` when it was ended before, or its time was over, and ``RailUnavailable`` where a price of a
        bitcoin is needed and there is none, ``ConfigError`` for what is no cost: nothing moves then.
        """
        amount = cost_of(cost)
        hold = await self._job(job)
        rate = await self._rate_of(hold) if is_lightning(hold.owner) else Pegged(self._decimals_of(hold))
        return await self.store.capture(hold.id, rate.atomic(amount))

    async def void(self, job: str) -> Entry:
        """A job failed: all of its reserve goes back to the payer. Raises ``HoldEnded``."""
        return await self.store.void((await self._job(job)).id)

    async def _job(self, job: str) -> Hold:
        """The hold of a job. A payment's is made when the call's answer goes out, and some jobs are faster."""
        end = time.monotonic() + _JOB_WAIT_SECONDS
        while (hold := await self.store.hold(job)) is None:
            if time.monotonic() > end:
                raise HoldEnded("no_such_hold")
            await asyncio.sleep(_POLL_SECONDS)
        return hold

    async def _rate_of(self, hold: Hold) -> Rate:
        row = await self.store.get_invoice(hold.id.rpartition(":")[2]) if hold.id.startswith("job:") else None
        if row is not None:
            return rate_of(row)
        if self.lightning is None:
            raise ConfigError("a job is paid in bitcoin, and there is no Lightning rail to say what it is worth")
        return self.lightning.rate()

    def _decimals_of(self, hold: Hold) -> int:
        for rail in self.rails:
            if Account.of(rail.network, rail.asset.address, "").asset == hold.asset:
                return rail.asset.decimals
        return 6

    def sign_url(self, path: str, seconds: int = 3600) -> str:
        """A link to a path of this app, such as a job's result: whoever has it may follow it, for so long.

        The ``path`` is percent-encoded and may have a query. The link begins with the ``origin``, where one is set.
        Raises ``ValueError`` for what is no path; ``ConfigError`` before the start, where the ledger has the secret.
        """
        if seconds <= 0:
            raise ValueError("a link needs some time")
        return self.origin + self._signer().sign(path, int(time.time()) + seconds)

    def check_url(self, request: Mapping[str, Any]) -> None:
        """Whether a request (or scope) came by such a link. Raises ``LinkRefused``, and ``ConfigError`` as above."""
        check_url(self._signer(), request)

    def signed(self, endpoint: F) -> F:
        """A decorator: the endpoint runs for signed links only, by GET and HEAD; the others are told what is wrong."""
        return signed(self._signer, endpoint)

    def _signer(self) -> Links:
        if self._links is None:
            if not self._secrets:
                raise ConfigError("there is no secret to sign links with before the app has started; or set secret=")
            self._links = Links(self._secrets, origin=self.origin)
        return self._links

    async def _shut(self) -> None:
        if self.counter is not None:
            await self.counter.invoices.close()
            self.counter = None
        if self.lightning is not None:
            await self.lightning.close()
        for rail in self.rails:
            await rail.close()
        await self.store.close()

    async def stop(self) -> None:
        """Let settlements under way finish, then close the rails and the ledger. The gate calls it."""
        if self._started_in is None:
            return
        self._started_in = None
        self.running = False
        end = time.monotonic() + self._drain_seconds
        await self.serving.end(self._drain_seconds)
        await self._settler.close(max(end - time.monotonic(), 0))
        await self._payouts.close(self._drain_seconds)
        await self._shut()

    async def reconcile(self) -> int:
        """One pass over payments whose end is open; the timer does this by itself. How many were looked at."""
        return await self._settler.reconcile()

    async def recover(self, since_block: int | Mapping[str, int] | None = None) -> bool:
        """Read what was paid again from the chain, and credit what the ledger has lost: after a backup was restored.

        ``since_block``: for every chain, or for each network one; without it the last that the ledger has noted, as in
        PostgreSQL it does. A replica that took over is noticed without a call (J05). False when it must be asked again,
        for a node or a payment that was busy. Raises ``ConfigError``, with nothing done, for a network without a block.
        """
        return await self._recovery.recover(since_block)
