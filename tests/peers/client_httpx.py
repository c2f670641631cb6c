"""The x402 package as an asynchronous client on httpx: pays one URL and prints one JSON line."""

from __future__ import annotations

import asyncio

import httpx
from common import client_arguments, private_key, report_answer, report_error
from eth_account import Account
from x402 import x402Client
from x402.http.clients.httpx import PaymentError, wrapHttpxWithPayment
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.svm import KeypairSigner
from x402.mechanisms.svm.exact import register_exact_svm_client


async def main() -> None:
    arguments = client_arguments()
    payer = x402Client()
    if arguments.svm_rpc:
        register_exact_svm_client(payer, KeypairSigner.from_base58(private_key()), rpc_url=arguments.svm_rpc)
    else:
        register_exact_evm_client(payer, Account.from_key(private_key()))
    try:
        async with wrapHttpxWithPayment(payer, timeout=arguments.timeout) as http:
            answer = await http.request(
                arguments.method, arguments.url, content=arguments.json, headers=arguments.headers
            )
    except (PaymentError, httpx.HTTPError) as error:
        report_error(error)
    else:
        report_answer(answer.status_code, answer.headers, answer.text)


asyncio.run(main())
