"""What a call costs: rules from a request to a quote, and from its use to the actual cost."""

from .price import Call, Dynamic, Fixed, Price, PriceFunction, PriceLike, Quote, price_of

__all__ = ["Call", "Dynamic", "Fixed", "Price", "PriceFunction", "PriceLike", "Quote", "price_of"]
