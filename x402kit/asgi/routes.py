"""Which resource a request is for: decided on the route that the framework itself matches, or by path templates.

For Starlette and FastAPI the app's own routes are walked, mounts and included routers too, and asked with ``matches``
in the order in which the router asks them; there is no second idea of a path (A09). For any other ASGI app the rules'
path templates decide, and a path that any reading could turn into a priced one is priced (fail closed).
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from starlette.routing import Host, Match, Mount, Router
from starlette.types import ASGIApp, Scope

from ..errors import UnmatchedRule
from ..paywall.resource import Resource
from .marks import resources_of

__all__ = ["Routes", "Rule"]

_CACHE_MAX: Final = 4096
_PARAMETER: Final = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """``"POST /v1/images/{size}"`` → a resource; without a method it holds for all."""

    method: str
    template: str
    resource: Resource

    @classmethod
    def parse(cls, text: str, resource: Resource) -> Rule:
        method, _, template = text.rpartition(" ")
        if not template.startswith("/") or (method and not re.fullmatch(r"[A-Z]+", method)):
            raise UnmatchedRule(f'a rule is written like "POST /v1/chat/completions", not {text!r}')
        return cls(method, template, resource)

    @property
    def shape(self) -> str:
        """The template without the names of its parameters, to compare with a route's."""
        return _PARAMETER.sub("{}", self.template)

    def pattern(self) -> re.Pattern[str]:
        parts = [re.escape(part) for part in _PARAMETER.split(self.template.lower().rstrip("/") or "/")]
        kinds = _PARAMETER.findall(self.template)
        out = parts[0]
        for kind, part in zip(kinds, parts[1:], strict=True):
            out += (".*" if kind.endswith(":path}") else "[^/]+") + part
        return re.compile(out + r"\Z", re.DOTALL)

    def covers(self, method: str) -> bool:
        return self.method in ("", method) or (self.method == "GET" and method == "HEAD")


@dataclass(slots=True)
class _Node:
    """A route, a mount with what is behind it, or a mount of an app that we can't look into."""

    route: Any
    rules: list[Rule] = field(default_factory=list[Rule])
    resource: Resource | None = None
    children: list[_Node] | None = None
    opaque: bool = False

    def priced(self, method: str) -> Resource | None:
        if self.resource is not None:
            return self.resource
        return next((rule.resource for rule in self.rules if rule.covers(method) or method == "OPTIONS"), None)


def _inner(app: Any) -> Any:
    """The router inside an app and the middleware around it, or None."""
    for _ in range(64):
        if isinstance(app, Router):
            return app
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
        self._cache: dict[tuple[str, str, str, str], Resource | None] = {}
        self._build()
        missing = [f"{rule.method} {rule.template}".strip() for rule in self._rules if id(rule) not in self._used]
        missing += [mark.id for mark in marks if id(mark) not in self._used]
        self.unmatched = missing
        if missing and strict:
            raise UnmatchedRule("priced, but no route of the app: " + ", ".join(missing))

    def _build(self) -> None:
        self._cache.clear()
        self._nodes: list[_Node] = []
        self._size = -1
        if self._router is None:
            self._templates = [(rule.pattern(), rule) for rule in self._rules]
            self._used.update(id(rule) for rule in self._rules)
            return
        self._size = len(self._router.routes)
        self._nodes = [self._node(route, "") for route in _flat(self._router)]
        self._cacheable = all(_known(node.route) for node in _walk(self._nodes))

    def _node(self, route: Any, prefix: str) -> _Node:
        template = prefix + str(getattr(route, "path", ""))
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
        return node

    def _take(self, node: _Node, found: list[Resource]) -> None:
        if len(found) > 1:
            raise UnmatchedRule(f"two prices on one route: {', '.join(r.id for r in found)}")
        if found:
            node.resource = found[0]
            self._used.add(id(found[0]))

    def used(self, resource: Resource) -> bool:
        """Whether a mark was found on a route of this app."""
        return id(resource) in self._used

    def find(self, scope: Scope) -> Resource | None:
        """The resource that this request reaches, or None. ``OPTIONS`` of a priced path counts as its resource."""
        if self._router is None:
            return self._by_template(scope)
        if len(self._router.routes) != self._size:
            self._build()
        if not self._cacheable:
            return self._search(self._nodes, scope)
        key = (scope["type"], scope.get("method", ""), scope["path"], scope.get("root_path", ""))
        try:
            return self._cache[key]
        except KeyError:
            if len(self._cache) >= _CACHE_MAX:
                self._cache.clear()
            found = self._cache[key] = self._search(self._nodes, scope)
            return found

    def _search(self, nodes: list[_Node], scope: Scope) -> Resource | None:
        method = scope.get("method", "")
        for node in nodes:
            match, child = node.route.matches(scope)
            if match is Match.NONE:
                continue
            if match is Match.PARTIAL:
                # The framework answers 405, unless a later route takes the method; a preflight is ours to answer.
                if method == "OPTIONS" and (found := node.priced(method)):
                    return found
                continue
            if node.children is not None:
                return self._search(node.children, {**scope, **child})
            return self._by_template(scope) if node.opaque else node.priced(method)
        return None

    def _by_template(self, scope: Scope) -> Resource | None:
        method = scope.get("method", "GET")
        override = b""
        if scope["type"] == "http":
            override = next((v for k, v in scope["headers"] if k == b"x-http-method-override"), b"")
        wanted = {method, override.decode("latin-1").upper()}
        for path in _readings(scope):
            for pattern, rule in self._templates:
                if pattern.match(path) and (
                    scope["type"] == "websocket" or method == "OPTIONS" or any(rule.covers(m) for m in wanted)
                ):
                    return rule.resource
        return None


def _any_covered(rule: Rule, methods: Iterable[str]) -> bool:
    return any(rule.covers(method) for method in methods)


def _walk(nodes: Iterable[_Node]) -> Iterator[_Node]:
    for node in nodes:
        yield node
        yield from _walk(node.children or ())


def _readings(scope: Mapping[str, Any]) -> set[str]:
    """Every way in which a server behind us might read the path (A09), in lower case and without a last slash."""
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or b""
    root: str = scope.get("root_path", "")
    found = {path, raw.partition(b"?")[0].decode("latin-1")}
    for text in tuple(found):
        while "%" in text and (further := unquote(text)) not in found:
            found.add(further)
            text = further
    if root:
        found |= {text.removeprefix(root) for text in found}
    out: set[str] = set()
    for text in found:
        plain = re.sub(r";[^/]*", "", text.replace("\\", "/")).lower()
        squeezed = posixpath.normpath("/" + plain.lstrip("/"))
        out |= {plain.rstrip("/") or "/", squeezed, text.lower().rstrip("/") or "/"}
    return out
