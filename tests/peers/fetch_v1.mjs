// The old x402-fetch package as a v1 client: pays one URL and prints one JSON line.
// usage: PEER_KEY=0x… node fetch_v1.mjs URL [--method POST] [--json '{"a":1}'] [--max-value 100000] [--network base]
import { parseArgs } from "node:util";
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";

const text = { type: "string" };
const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { method: text, json: text, "max-value": text, network: text },
});
const init = { method: values.method ?? "GET" };
if (values.json !== undefined) {
  init.body = values.json;
  init.headers = { "content-type": "application/json" };
}

// Signing is offline: the wallet's chain only picks the network's name, and its RPC is never called.
const wallet = await createSigner(values.network ?? "base", process.env.PEER_KEY);
const limit = values["max-value"] === undefined ? undefined : BigInt(values["max-value"]);
try {
  const answer = await wrapFetchWithPayment(fetch, wallet, limit)(positionals[0], init);
  const body = await answer.text();
  const receipt = answer.headers.get("x-payment-response");
  print({
    status: answer.status,
    headers: Object.fromEntries(answer.headers),
    body: parsed(body),
    payment_response: receipt ? decodeXPaymentResponse(receipt) : null,
  });
} catch (error) {
  print({ status: null, error: error.name, message: error.message });
}

function parsed(body) {
  try {
    return JSON.parse(body);
  } catch {
    return body;
  }
}

function print(line) {
  console.log(JSON.stringify(line));
}
