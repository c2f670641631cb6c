"""Signed links at an endpoint: the check of a request, and a decorator that answers what is refused."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import HTTPConnection
from starlette.responses import Response

from ..errors import ConfigError, LinkRefused
from ..paywall.links import Links
from . import answers

__all__ = ["check_url", "signed"]

F = TypeVar("F", bound=Callable[..., Any])
_EXTRA = "x402kit_connection"


def check_url(links: Links, scope: Mapping[str, Any]) -> None:
    """Whether a request came by a signed link. Raises ``LinkRefused``.

    A link is for looking: with it a caller can GET and HEAD, and not what else its path may know, as DELETE.
    """
    if scope.get("method", "GET") not in ("GET", "HEAD"):
        raise LinkRefused("link_invalid")
    links.check(scope["path"], scope["query_string"], time.time())


def signed(links: Callable[[], Links], endpoint: F) -> F:
    """Guard an endpoint of Starlette's or FastAPI's. Raises ``ConfigError`` for one that is no function."""
    run: Callable[..., Any] = endpoint
    if not inspect.isroutine(run) or inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
        raise ConfigError(f"signed is for functions that return their answer, not {endpoint!r}")

    def refusal(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Response | None:
        extra = kwargs.pop(_EXTRA, None)
        scopes = [each.scope for each in (extra, *args, *kwargs.values()) if isinstance(each, HTTPConnection)]
        if not scopes:
            raise ConfigError(f"{endpoint!r} was called without its request")
        try:
            check_url(links(), scopes[0])
        except LinkRefused as e:
            return _problem(e)
        return None

    if inspect.iscoroutinefunction(run):

        @functools.wraps(run)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            refused = refusal(args, kwargs)
            return refused if refused is not None else await run(*args, **kwargs)

        return _with_connection(guarded_async, endpoint)

    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        refused = refusal(args, kwargs)
        return refused if refused is not None else run(*args, **kwargs)

    return _with_connection(guarded, endpoint)


def _with_connection(function: Callable[..., Any], endpoint: F) -> F:
    """FastAPI hands an endpoint what its signature asks for: it asks for the connection too."""
    guarded: Any = function
    signature = inspect.signature(endpoint)
    extra = inspect.Parameter(_EXTRA, inspect.Parameter.KEYWORD_ONLY, annotation=HTTPConnection)
    own = list(signature.parameters.values())
    place = len(own) - any(each.kind is inspect.Parameter.VAR_KEYWORD for each in own)
    guarded.__signature__ = signature.replace(parameters=[*own[:place], extra, *own[place:]])
    return guarded  # type: ignore[no-any-return]


def _problem(error: LinkRefused) -> Response:
    """As a response that FastAPI passes on as it is."""
    answer = answers.problem(error)
    made = Response(answer.body, answer.status)
    made.raw_headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    return made
