"""The price on the route: a mark that the gate finds, and a guard that refuses when the gate is not there.

``paid`` marks an endpoint; ``PriceDependency`` is the same as a FastAPI dependency. Both also check, when the endpoint
runs, that the gate has admitted a payment for this very resource: an endpoint that is reached by a way that the gate
did not see does not give its goods away, it raises ``Unguarded``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
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
    """Mark an endpoint with its resource, and guard it where it is a function, a method or an ``HTTPEndpoint``."""
    if getattr(endpoint, _ATTRIBUTE, None) is not None:
        raise ConfigError(f"{resource.id} has a price already")
    made: Any = endpoint
    if inspect.isclass(endpoint):
        dispatch = getattr(endpoint, "dispatch", None)
        if inspect.iscoroutinefunction(dispatch):
            made.dispatch = _guarded(dispatch, resource)
    elif inspect.isroutine(endpoint) or inspect.iscoroutinefunction(endpoint):
        made = _guarded(endpoint, resource)
    setattr(made, _ATTRIBUTE, resource)
    return made  # type: ignore[no-any-return]


def _guarded(function: Callable[..., Any], resource: Resource) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            _guard(resource)
            return await function(*args, **kwargs)

        return guarded_async
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return _guarded_stream(function, resource)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _guard(resource)
        return function(*args, **kwargs)

    return guarded


def _guarded_stream(function: Callable[..., Any], resource: Resource) -> Callable[..., Any]:
    """For a generator, of which the framework makes a stream: the check comes with its first step."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def guarded_stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            _guard(resource)
            async with aclosing(function(*args, **kwargs)) as steps:
                async for step in steps:
                    yield step

        return guarded_stream

    @functools.wraps(function)
    def guarded_steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
        _guard(resource)
        yield from function(*args, **kwargs)

    return guarded_steps


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
