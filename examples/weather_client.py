"""A client that pays: ``python examples/weather_client.py http://127.0.0.1:8000/weather``."""

import os
import sys

import httpx

from x402kit.client import Limits, Payer, payment_of

payer = Payer(
    evm_key=os.environ["X402KIT_EVM_KEY"],
    limits=Limits(per_call="$0.05", per_day="$5"),
    allow_insecure=True,  # for plain http on this machine; leave it out elsewhere
)

with httpx.Client(transport=payer.transport()) as client:
    answer = client.get(sys.argv[1])
    print(answer.json())
    print(payment_of(answer))
