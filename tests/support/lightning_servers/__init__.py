"""Servers that behave by the API descriptions of Lightning products, each on top of a real node."""
