"""Which resource a request is for: decided on the route that the framework itself matches, or by path templates.

For Starlette and FastAPI the app's own routes are walked, mounts and included routers too, and asked with ``matches``
in the order in which the router asks them; there is no second idea of a path (A09). For any other ASGI app the rules'
path templates decide, and a path that any reading could turn into a priced one is priced (fail closed).
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from starlette.routing import BaseRoute, Host, Match, Mount, Router
from starlette.types import ASGIApp, Scope

from ..errors import BadRequest, UnmatchedRule
from ..paywall.resource import Resource
from .marks import resources_of

__all__ = ["Found", "Routes", "Rule", "find_mounted"]

log = logging.getLogger("x402kit.gate")
M = TypeVar("M")

_CACHE_MAX: Final = 4096
_KEY_MAX: Final = 512
"""A longer path is decided each time: servers pass 64 KB and more, and what is remembered has a bound (I12)."""
_PATH_MAX: Final = 8192
"""The longest path for an app that we can't look into."""
_DECODINGS: Final = 4
"""How often a path is unquoted in search of another reading; no server does it more often."""
_OVERRIDES: Final = frozenset((b"x-http-method-override", b"x-http-method", b"x-method-override"))
_PARAMETER: Final = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """``"POST /v1/images/{size}"`` → a resource; without a method it holds for all."""

    method: str
    template: str
    resource: Resource

    @classmethod
    def parse(cls, text: str, resource: Resource) -> Rule:
        method, space, template = text.rpartition(" ")
        if not template.startswith("/") or (space and not re.fullmatch(r"[A-Z]+", method)):
            raise UnmatchedRule(f'a rule is written like "POST /v1/chat/completions", not {text!r}')
        return cls(method, template, resource)

    @property
    def shape(self) -> str:
        """The template without the names of its parameters, to compare with a route's."""
        return _PARAMETER.sub("{}", self.template)

    def pattern(self) -> re.Pattern[str]:
        """Raises ``UnmatchedRule`` for several ``{…:path}``: matching them can take for ever."""
        if sum(kind.endswith(":path}") for kind in _PARAMETER.findall(self.template)) > 1:
            raise UnmatchedRule(f"only one parameter of a template can be a path: {self.template}")
        parts = [re.escape(part) for part in _PARAMETER.split(self.template.lower().rstrip("/") or "/")]
        kinds = _PARAMETER.findall(self.template)
        out = parts[0]
        for kind, part in zip(kinds, parts[1:], strict=True):
            out += (".*" if kind.endswith(":path}") else "[^/]+") + part
        return re.compile(out + r"\Z", re.DOTALL)

    def params(self, path: str) -> dict[str, str]:
        """The values of the parameters in a path; none when it is another spelling of one that the template matches."""
        kinds = _PARAMETER.findall(self.template)
        parts = [re.escape(part) for part in _PARAMETER.split(self.template)]
        out = parts[0]
        for kind, part in zip(kinds, parts[1:], strict=True):
            out += ("(.*)" if kind.endswith(":path}") else "([^/]+)") + part
        found = re.fullmatch(out, path, re.DOTALL)
        names = [kind[1:-1].partition(":")[0] for kind in kinds]
        return dict(zip(names, found.groups(), strict=True)) if found else {}

    def covers(self, method: str) -> bool:
        return self.method in ("", method) or (self.method == "GET" and method == "HEAD")


@dataclass(frozen=True, slots=True)
class Found:
    """The resource that a request reaches, and the values of its path's parameters."""

    resource: Resource
    params: Mapping[str, Any]


@dataclass(slots=True)
class _Node:
    """A route, a mount with what is behind it, or a mount of an app that we can't look into."""

    route: Any
    rules: list[Rule] = field(default_factory=list[Rule])
    resource: Resource | None = None
    children: list[_Node] | None = None
    opaque: bool = False

    def priced(self, scope: Scope, method: str) -> Resource | None:
        if self.resource is not None:
            return self.resource
        every = method == "OPTIONS" or scope["type"] == "websocket"
        return next((rule.resource for rule in self.rules if every or rule.covers(method)), None)


def _inner(app: Any) -> Any:
    """The router inside an app and the middleware around it, or None."""
    for _ in range(64):
        if isinstance(app, Router):
            return app
        if isinstance(app, BaseRoute):
            return Router([app])
        router = getattr(app, "router", None)
        if isinstance(router, Router):
            return router
        app = getattr(app, "app", None)
        if app is None:
            return None
    return None


def _flat(router: Any) -> list[Any]:
    """A router's routes; FastAPI's included routers as the routes that they stand for."""
    fastapi = sys.modules.get("fastapi.routing")
    contexts = getattr(fastapi, "iter_route_contexts", None)
    return list(contexts(router.routes)) if contexts else list(router.routes)


def find_mounted(app: Any, kind: type[M], prefix: str = "") -> Iterator[tuple[str, M]]:
    """The apps of a kind that are mounted in ``app``, with their paths; mounts with parameters are passed over."""
    router = _inner(app)
    for route in _flat(router) if router is not None else ():
        mount = getattr(route, "_effective_route", route)
        if not isinstance(mount, Mount) or "{" in route.path:
            continue
        path = prefix + route.path
        inner: Any = getattr(mount, "_base_app", mount.app)  # without the mount's own middleware
        if isinstance(inner, kind):
            yield path, inner
        else:
            yield from find_mounted(inner, kind, path)


def _known(route: Any) -> bool:
    """Whether a route matches by type, method and path alone, so that its decision can be remembered."""
    original = getattr(route, "original_route", route)
    return type(original).__module__.partition(".")[0] in ("starlette", "fastapi") and not isinstance(original, Host)


class Routes:
    """Finds the resource of a request. Raises ``UnmatchedRule`` when a rule or a mark names no route (A10)."""

    def __init__(
        self, app: ASGIApp, rules: Iterable[Rule], marks: Iterable[Resource] = (), *, strict: bool = True
    ) -> None:
        self._rules = list(rules)
        self._used: set[int] = set()
        self.unmatched: list[str] = []
        self._router: Any = _inner(app)
        self._templates: list[tuple[re.Pattern[str], Rule]] = []
        self._cache: dict[tuple[str, str, str, str, bytes], Found | None] = {}
        self._build()
        missing = [f"{rule.method} {rule.template}".strip() for rule in self._rules if id(rule) not in self._used]
        missing += [mark.id for mark in marks if id(mark) not in self._used]
        self.unmatched = missing
        if not self._used and not missing:
            log.warning("no route of the app has a price of this paywall: all are free")
        if missing:
            text = "priced, but no route of the app: " + ", ".join(missing)
            if strict:
                raise UnmatchedRule(text)
            log.error("%s", text)

    def _build(self) -> None:
        self._cache.clear()
        self._nodes: list[_Node] = []
        self._templates = []
        self._size = -1
        self._cacheable = True
        if self._router is None:
            self._templates = [(rule.pattern(), rule) for rule in self._rules]
            self._used.update(id(rule) for rule in self._rules)
            return
        self._size = len(self._router.routes)
        self._nodes = [self._node(route, "") for route in _flat(self._router)]
        self._cacheable = all(_known(node.route) for node in _walk(self._nodes))

    def _node(self, route: Any, prefix: str) -> _Node:
        template: str = prefix + (getattr(route, "path", None) or "")  # a host has none
        target: Any = getattr(route, "app", None)
        # FastAPI's contexts pass attributes of the route through; a mount is known by what it is.
        effective = getattr(route, "_effective_route", route)
        if isinstance(effective, Mount | Host):
            node = _Node(route)
            router = _inner(getattr(effective, "_base_app", target))
            marked = list(resources_of(getattr(effective, "_base_app", target), None))
            if marked:
                self._take(node, marked)
            elif router is not None:
                node.children = [self._node(child, template) for child in _flat(router)]
            else:
                node.opaque = True
                inside = [rule for rule in self._rules if rule.template.startswith(template.rstrip("/") + "/")]
                self._templates += [(rule.pattern(), rule) for rule in inside]
                self._used.update(id(rule) for rule in inside)
            return node
        node = _Node(route)
        self._take(node, list(resources_of(getattr(route, "endpoint", None), getattr(route, "dependant", None))))
        shape = _PARAMETER.sub("{}", template)
        methods = getattr(route, "methods", None)
        node.rules = [r for r in self._rules if r.shape == shape and (not methods or _any_covered(r, methods))]
        self._used.update(id(rule) for rule in node.rules)
        if node.resource is not None and node.rules:
            raise UnmatchedRule(f"two prices on one route: {node.resource.id}, {node.rules[0].resource.id}")
        return node

    def _take(self, node: _Node, found: list[Resource]) -> None:
        if len(found) > 1:
            raise UnmatchedRule(f"two prices on one route: {', '.join(r.id for r in found)}")
        if found:
            node.resource = found[0]
            self._used.add(id(found[0]))

    def find(self, scope: Scope) -> Found | None:
        """What this request reaches, or None. ``OPTIONS`` of a priced path counts as its resource.

        Raises ``BadRequest`` where one request can be read as two with different prices (A08, A09).
        """
        found = self._remembered(scope)
        if scope["type"] != "http" or _OVERRIDES.isdisjoint(dict(scope["headers"])):
            return found
        for method in _overrides(scope):
            other = self._remembered({**scope, "method": method})
            if found is not None and other is not None and found.resource is not other.resource:
                raise BadRequest("ambiguous_request")
            found = found or other
        return found

    def _remembered(self, scope: Scope) -> Found | None:
        if self._router is not None and len(self._router.routes) != self._size:
            self._build()
        if not self._cacheable:
            return self._decide(scope)
        path, root, raw = scope["path"], scope.get("root_path", ""), scope.get("raw_path") or b""
        key = (scope["type"], scope.get("method", ""), path, root, raw)
        if len(path) + len(raw) + len(key[1]) + len(root) > _KEY_MAX:
            return self._decide(scope)
        try:
            return self._cache[key]
        except KeyError:
            if len(self._cache) >= _CACHE_MAX:
                self._cache.clear()
            found = self._cache[key] = self._decide(scope)
            return found

    def _decide(self, scope: Scope) -> Found | None:
        # Some servers pass a method as it came, and some endpoints take it in any case.
        method = scope.get("method", "").upper()
        if self._router is None:
            return self._by_template(scope, method)
        return self._search(self._nodes, scope, method, scope)

    def _search(self, nodes: list[_Node], scope: Scope, method: str, whole: Scope) -> Found | None:
        for node in nodes:
            match, child = node.route.matches(scope)
            if match is Match.NONE:
                continue
            if match is Match.PARTIAL:
                # The framework answers 405, unless a later route takes the method; a preflight is ours to answer.
                if method == "OPTIONS" and (found := node.priced(scope, method)):
                    return Found(found, child.get("path_params", {}))
                continue
            if node.children is not None:
                return self._search(node.children, {**scope, **child}, method, whole)
            if node.opaque:
                return self._by_template(whole, method)
            resource = node.priced(scope, method)
            return Found(resource, child.get("path_params", {})) if resource else None
        return None

    def _by_template(self, scope: Scope, method: str) -> Found | None:
        if len(scope["path"]) > _PATH_MAX:  # to read it in every way would take long
            raise BadRequest("path_too_long")
        every = method == "OPTIONS" or scope["type"] == "websocket"
        rules = [(pattern, rule) for pattern, rule in self._templates if every or rule.covers(method)]
        found: dict[int, Rule] = {}
        for path in _readings(scope) if rules else ():
            first = next((rule for pattern, rule in rules if pattern.match(path)), None)
            if first is not None:
                found[id(first.resource)] = first
        if len(found) > 1:
            raise BadRequest("ambiguous_request")
        for rule in found.values():
            return Found(rule.resource, rule.params(scope["path"].removeprefix(scope.get("root_path", ""))))
        return None


def _any_covered(rule: Rule, methods: Iterable[str]) -> bool:
    return any(rule.covers(method) for method in methods)


def _walk(nodes: Iterable[_Node]) -> Iterator[_Node]:
    for node in nodes:
        yield node
        yield from _walk(node.children or ())


def _readings(scope: Mapping[str, Any]) -> set[str]:
    """Every way in which a server behind us might read the path (A09), in lower case and without a last slash."""
    found: set[str] = set()
    for text in (scope["path"], unquote((scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1"))):
        further = text
        for _ in range(_DECODINGS):
            found.add(further)
            further = unquote(further)
    root: str = scope.get("root_path", "")
    if root:
        found |= {text.removeprefix(root) for text in found}
    found.discard("")
    out: set[str] = set()
    for text in found:
        plain = re.sub(r";[^/]*", "", text.replace("\\", "/")).lower()
        squeezed = posixpath.normpath("/" + plain.lstrip("/"))
        out |= {plain.rstrip("/") or "/", squeezed, text.lower().rstrip("/") or "/"}
    return out


def _overrides(scope: Scope) -> set[str]:
    """The methods that a middleware of the app may put in the place of the request's, whichever header it takes."""
    values = {bytes(value).decode("latin-1").strip().upper() for name, value in scope["headers"] if name in _OVERRIDES}
    return values and values - {"", scope["method"]}
