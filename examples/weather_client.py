"""A client that pays: ``python examples/weather_client.py http://127.0.0.1:8000/weather``."""

import os
import sys
from urllib.parse import urljoin

import httpx

from x402kit.client import Limits, Payer, payment_of
from x402kit.errors import ConfigError

if len(sys.argv) != 2:
    print(f"usage: {sys.argv[0]} URL", file=sys.stderr)
    sys.exit(2)
url = sys.argv[1]
try:
    payer = Payer(
        evm_key=os.environ.get("X402KIT_EVM_KEY") or sys.exit("X402KIT_EVM_KEY is not set"),
        limits=Limits(per_call="$0.05", per_day="$5"),
        balance="first",  # from the balance, where there is enough of it; else by a payment
        allow_insecure=True,  # for plain http on this machine; leave it out elsewhere
    )
except ConfigError as e:
    sys.exit(f"X402KIT_EVM_KEY: {e}")

with httpx.Client(transport=payer.transport()) as client:
    answer = client.get(url)  # a payment for this call, as there is no balance yet
    print(answer.json())
    print(payment_of(answer))

    wallet = payer.wallet(urljoin(url, "/v1/x402"), client)
    wallet.top_up("1.00")  # one payment for many calls
    answer = client.get(url)  # from the balance: no transaction, no gas
    print(answer.json())
    print(payment_of(answer))
    print(wallet.balance())  # in atomic units: a millionth of a USDC
