"""The price on the route: a mark that the gate finds, and a guard that refuses when the gate is not there.

``paid`` marks an endpoint; ``PriceDependency`` is the same as a FastAPI dependency. Both also check, when the endpoint
runs, that the gate has admitted a payment for this very resource: an endpoint that is reached by a way that the gate
did not see does not give its goods away, it raises ``Unguarded``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.requests import Request

from ..errors import ConfigError, Unguarded
from ..paywall.resource import Resource

__all__ = ["PriceDependency", "admitted", "mark", "resources_of"]

_ATTRIBUTE = "__x402kit__"
F = TypeVar("F", bound=Callable[..., Any])

admitted: ContextVar[Resource | None] = ContextVar("x402kit_admitted", default=None)


def _guard(resource: Resource) -> None:
    if admitted.get() is not resource:
        raise Unguarded(f"{resource.id} is priced, but the request did not come through paywall.protect(app)")


def mark(endpoint: F, resource: Resource) -> F:
    """Mark an endpoint with its resource, and guard it where it is a plain function."""
    if getattr(endpoint, _ATTRIBUTE, None) is not None:
        raise ConfigError(f"{resource.id} has a price already")
    made: Any = endpoint
    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            _guard(resource)
            return await endpoint(*args, **kwargs)

        made = guarded_async
    elif inspect.isfunction(endpoint) and not (
        inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint)
    ):

        @functools.wraps(endpoint)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            _guard(resource)
            return endpoint(*args, **kwargs)

        made = guarded
    setattr(made, _ATTRIBUTE, resource)
    return made  # type: ignore[no-any-return]


class PriceDependency:
    """A price as a dependency: ``dependencies=[Depends(paywall.price("$0.01"))]``. Gives the handler its
    ``PaidCall``.
    """

    def __init__(self, resource: Resource) -> None:
        self.resource = resource

    async def __call__(self, request: Request) -> Any:
        _guard(self.resource)
        return request.scope["x402kit"]


def resources_of(endpoint: Any, dependant: Any) -> Iterator[Resource]:
    """The resources that an endpoint and its dependencies are marked with."""
    found = getattr(endpoint, _ATTRIBUTE, None)
    if isinstance(found, Resource):
        yield found
    for dependency in getattr(dependant, "dependencies", ()):
        call = getattr(dependency, "call", None)
        if isinstance(call, PriceDependency):
            yield call.resource
        yield from resources_of(None, dependency)
