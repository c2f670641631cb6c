"""Products' servers that stay for all tests of a module; to start and to end one takes half a second."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from tests.support.serving import serving
from x402kit.devnet.lightning import LightningNode

from .node import Product, RealNode

__all__ = ["Standing"]


class Standing(ExitStack):
    """Ends them when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[object, str], tuple[Product, str]] = {}

    def of(self, kind: Callable[[RealNode], Product], node: LightningNode) -> tuple[Product, str]:
        """The product's server on that node, without faults, and its URL."""
        key = (kind, node.url)
        if key not in self._known:
            made = kind(RealNode(node))
            self._known[key] = made, self.enter_context(serving(made, lifespan=False))
        product, url = self._known[key]
        product.faults, product.lies, product.calls = {}, [], []
        return product, url
