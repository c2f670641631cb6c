// @getalby/lightning-tools as a client: pays one URL by Lightning and prints one JSON line.
// usage: PEER_NODE='{"url": …, "macaroon": …}' node alby.mjs < task, where the task is
//   {"url": …, "call": "fetch402" | "fetchWithL402" | "fetchWithMpp", "method": "POST", "json": {…},
//    "credentials": {…} (of a payment before), "max": sats (fetch402)}
import * as tools from "@getalby/lightning-tools/402";
import { payInvoice, print, report, task } from "./lightning.mjs";

const { url, call, method, json, credentials, max } = await task();
const wallet = { payInvoice: async ({ invoice }) => ({ preimage: await payInvoice(invoice) }) };
const init = { method: method ?? "GET", headers: {} };
if (json !== undefined) {
  init.body = JSON.stringify(json);
  init.headers["content-type"] = "application/json";
}
try {
  const answer = await tools[call](url, init, { wallet, credentials, maxAmount: max });
  await report(answer, { payment: answer.payment ?? null });
} catch (error) {
  print({ status: null, error: error.name, message: error.message, cause: error.cause?.message, paid: error.paid });
}
