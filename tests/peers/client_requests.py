"""The x402 package as a synchronous client on requests: pays one URL and prints one JSON line."""

from __future__ import annotations

import requests
from common import client_arguments, private_key, report_answer, report_error
from eth_account import Account
from x402 import x402ClientSync
from x402.http.clients.requests import PaymentError, x402_requests
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.svm import KeypairSigner
from x402.mechanisms.svm.exact import register_exact_svm_client


def main() -> None:
    arguments = client_arguments()
    payer = x402ClientSync()
    if arguments.svm_rpc:
        register_exact_svm_client(payer, KeypairSigner.from_base58(private_key()), rpc_url=arguments.svm_rpc)
    else:
        register_exact_evm_client(payer, Account.from_key(private_key()))
    try:
        with x402_requests(payer) as session:
            answer = session.request(
                arguments.method,
                arguments.url,
                data=arguments.json,
                headers=arguments.headers,
                timeout=arguments.timeout,
            )
    except (PaymentError, requests.RequestException) as error:
        report_error(error)
    else:
        report_answer(answer.status_code, answer.headers, answer.text)


main()
