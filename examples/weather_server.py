"""A priced endpoint, whole: ``uvicorn examples.weather_server:app``."""

import os
import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from x402kit import Paywall
from x402kit.errors import ConfigError
from x402kit.networks import Base


def variable(name: str) -> str:
    return os.environ.get(name) or sys.exit(f"{name} is not set")


try:
    base = Base(
        pay_to=variable("X402KIT_EVM_PAY_TO"),  # who gets the money
        key=variable("X402KIT_EVM_KEY"),  # the wallet that sends the transfers and pays their gas
        rpc=variable("X402KIT_EVM_RPC_URL"),  # a node
    )
except ConfigError as e:
    sys.exit(f"X402KIT_EVM_…: {e}")
paywall = Paywall(
    accepts=[base],
    ledger="payments.db",
    origin=os.environ.get("X402KIT_ORIGIN", "http://127.0.0.1:8000"),  # as callers write it
)


@paywall.paid("$0.01")
async def weather(request: Request) -> JSONResponse:
    return JSONResponse({"weather": "sunny"})


app = paywall.protect(
    Starlette(
        routes=[
            Route("/weather", weather),
            Mount("/v1/x402", paywall.wallet_service()),  # prepaid balances
        ]
    )
)
