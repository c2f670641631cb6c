"""Which wallet service a call is topped up at, where an app has one or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..paywall.resource import Resource
from .request import PricedRequest
from .wallet import WalletService

__all__ = ["Place", "Places"]


class Place(NamedTuple):
    """``path`` as its requests have it, ``url`` for display."""

    service: WalletService
    path: str
    url: str


class Places:
    """The services of an app by their paths, root path aside."""

    def __init__(self, found: Mapping[str, WalletService]) -> None:
        self._found = dict(found)
        self._tops: dict[Resource, str] = {service.resource: path for path, service in self._found.items()}

    def has(self, path: str) -> bool:
        """Whether a path is a service's or below it."""
        return any(path == own or path.startswith(own + "/") for own in self._found)

    def of(self, request: PricedRequest) -> Place | None:
        """The service that a request belongs to: its own top-up; else the one beside it (``/api/v1/x402`` for
        ``/api/v1/chat``), or else the first one.
        """
        if not self._found:
            return None
        root = str(request.scope.get("root_path", ""))
        own = self._tops.get(request.resource)
        path = self._beside(request.scope["path"].removeprefix(root)) if own is None else own
        return Place(self._found[path], root + path, request.origin + root + path)

    def _beside(self, path: str) -> str:
        parents = {own: own.rpartition("/")[0] + "/" for own in self._found}
        near = [own for own in self._found if path.startswith(parents[own])]
        return max(near, key=lambda own: len(parents[own]), default=next(iter(self._found)))
