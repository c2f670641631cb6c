"""One request for a priced route, as far as the gate has read it."""

from __future__ import annotations

import hashlib
from inspect import isawaitable
from operator import itemgetter
from typing import Any, Final
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import Scope

from ..errors import BadRequest
from ..money import Usd
from ..paywall.binding import Binding
from ..pricing import Call, Quote
from ..protocols.authorization import AUTHORIZATION_HEADERS, without_credentials
from .routes import Found

__all__ = ["PricedRequest"]

_SECRETS: Final = frozenset((b"authorization", b"cookie", b"x-api-key"))
_URL_MAX: Final = 2048
"""A query that makes the URL longer is left out of the challenge: it is for display."""
_PLAIN: Final = (b"accept-encoding", b"identity")
_LENGTHS: Final = frozenset((b"content-length", b"transfer-encoding"))
_NAME: Final = itemgetter(0)


class PricedRequest:
    """``body`` is empty until the gate has read it; ``shown`` says that a payment came with it."""

    def __init__(self, scope: Scope, found: Found, origin: str) -> None:
        self.scope = scope
        self.resource = found.resource
        self.names = frozenset(map(_NAME, scope["headers"]))
        """Of its headers."""
        self.body = b""
        self.shown = False
        self.pricing = False
        self._params = found.params
        self._origin = origin
        self._quote: Quote | None = None

    def binding(self) -> Binding:
        """What a payment for this request is bound to (I10)."""
        scope, resource = self.scope, self.resource
        digest = b""
        if resource.price.needs_body:
            read = self.body if resource.canonical is None else resource.canonical(self.body)
            digest = hashlib.sha256(read).digest()
        headers = self._header_digest() if resource.headers else b""
        return Binding(
            scope["method"], self._origin, scope["path"], scope["query_string"], resource.id, digest, headers
        )

    def _header_digest(self) -> bytes:
        """Of the headers that the price declares. One that came twice could be read in two ways."""
        values: list[bytes | None] = []
        for name in self.resource.headers:
            found = [value for key, value in self.scope["headers"] if key == name.encode("latin-1")]
            if len(found) > 1:
                raise BadRequest("not_priceable", detail=f"{name} came more than once")
            values.append(found[0] if found else None)
        return hashlib.sha256(repr(values).encode()).digest()

    def caller(self) -> bytes:
        """A digest of the headers by which an app knows its caller; nothing where there are none."""
        if _SECRETS.isdisjoint(self.names):
            return b""
        found = [pair for pair in self.scope["headers"] if pair[0] in _SECRETS]
        return hashlib.sha256(repr(sorted(found)).encode()).digest()

    def header(self, name: bytes) -> str:
        """A header's value, all that came joined by commas; empty where there is none."""
        if name not in self.names:
            return ""
        return ", ".join(value.decode("latin-1") for key, value in self.scope["headers"] if key == name)

    async def is_exempt(self) -> bool:
        """Whether a key of the seller's own came with it."""
        unless = self.resource.unless
        if unless is None:
            return False
        said = unless(Headers(scope=self.scope))
        return (await said if isawaitable(said) else said) is True

    @property
    def bodyless(self) -> bool:
        """Whether it says that it has no body, so that reading it waits for nothing.

        Of HTTP/2 and 3 only the method says so: a body needs no header there.
        """
        if any(name in _LENGTHS and value != b"0" for name, value in self.scope["headers"]):
            return False
        return self.scope.get("http_version", "1.1").startswith("1") or self.scope["method"] in ("GET", "HEAD")

    @property
    def quoted(self) -> Quote | None:
        """The quote, where it was worked out."""
        return self._quote

    async def quote(self) -> Quote:
        """Worked out once."""
        if self._quote is None:
            scope = self.scope
            # HEAD is priced like the GET that it stands for (A08).
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            headers, declared = scope["headers"], self.resource.headers
            call = Call(method, scope["path"], scope["query_string"], headers, self._params, self.body, declared)
            self.pricing = True
            self._quote = await self.resource.price.quote(call)
            self.pricing = False
        return self._quote

    async def ceiling(self) -> Usd:
        return (await self.quote()).ceiling

    @property
    def origin(self) -> str:
        """Without a configured one the Host header names it, for display; it binds nothing (K07)."""
        if self._origin:
            return self._origin
        host = next((v for k, v in self.scope["headers"] if k == b"host"), b"localhost")
        return f"{self.scope.get('scheme', 'http')}://{host.decode('latin-1')}"

    def scope_for(self, paid: Any, *, metered: bool, length: int | None = None) -> Scope:
        """The scope that the app sees; a metered call asks for a plain answer, so that its usage can be read (H05). It
        says so: where the header is missing, HTTP clients that an app passes its request on with put in their own.

        Without a token or credential too, which an app that is a proxy would pass on: whoever has one can spend it
        (I11). ``length`` is the body's, where we have changed it: an app that passes it on goes by the header.
        """
        inner = {**self.scope, "x402kit": paid}
        if metered:
            inner["headers"] = [pair for pair in inner["headers"] if pair[0] != b"accept-encoding"] + [_PLAIN]
        if not self.names.isdisjoint(AUTHORIZATION_HEADERS):
            inner["headers"] = without_credentials(inner["headers"])
        if length is not None:
            stated = str(length).encode()
            inner["headers"] = [(k, stated if k == b"content-length" else v) for k, v in inner["headers"]]
        return inner

    def url(self) -> str:
        """For display in the challenge."""
        query = self.scope["query_string"].decode("latin-1")
        url = self.origin + quote(self.scope["path"], safe="/:@!$&'()*+,;=~-._", errors="surrogateescape")
        return f"{url}?{query}" if query and len(url) + len(query) < _URL_MAX else url
