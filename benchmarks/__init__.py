"""What x402kit costs, beside a bare Starlette app and the `x402` package, in one run: ``make bench``.

What is measured and why stands in docs/performance.md. Nothing here is part of the distribution.
"""
