// mppx as a server: GET /evm asks for a cent of USDC on Base, GET /lightning for ten satoshis, GET /both for either,
// POST /echo for a cent; GET /solana asks for a cent of USDC on Solana, for which the wallet in PEER_KEY pays the fees;
// GET /runs counts what was served. Prints its address as one JSON line; runs until SIGTERM.
// usage: PEER_NODE='{"url": …, "macaroon": …}' node mppx_server.mjs --facilitator URL --pay-to ADDRESS
//        PEER_KEY=… node mppx_server.mjs --svm-rpc URL --pay-to ADDRESS
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Mppx, NodeListener, Request, evm } from "mppx/server";
import { lightningServer, print } from "./lightning.mjs";

const text = { type: "string" };
const { values } = parseArgs({ options: { facilitator: text, "svm-rpc": text, "pay-to": text } });
const methods = [lightningServer()];
if (values.facilitator) {
  methods.push(
    evm.charge({
      currency: evm.assets.base.USDC,
      recipient: values["pay-to"],
      x402: { facilitator: values.facilitator },
    }),
  );
}
if (values["svm-rpc"]) {
  const { solanaServer } = await import("./solana.mjs");
  methods.push(await solanaServer(values["svm-rpc"], values["pay-to"]));
}
const mppx = Mppx.create({ methods, realm: "peer.example", secretKey: "a secret of thirty-two bytes, or more" });
const cent = { amount: "0.01", description: "a peer's route" };
const solana = { amount: "10000", externalId: "order 402" };
const sats = { amount: "10", currency: "sat" };
const priced = {
  "GET /evm": () => mppx["evm/charge"](cent),
  "POST /echo": () => mppx["evm/charge"](cent),
  "GET /lightning": () => mppx["lightning/charge"](sats),
  "GET /solana": () => mppx["solana/charge"](solana),
  "GET /both": () => mppx.compose(["evm/charge", cent], ["lightning/charge", sats]),
};
const runs = {};

async function handle(request) {
  const { pathname } = new URL(request.url);
  if (pathname === "/runs") return Response.json(runs);
  const route = `${request.method} ${pathname}`;
  const body = request.method === "POST" ? await request.clone().json() : undefined;
  const result = await priced[route]()(request);
  if (result.status === 402) return result.challenge;
  runs[route] = (runs[route] ?? 0) + 1;
  return result.withReceipt(Response.json(body === undefined ? { weather: "sunny" } : { echo: body }));
}

const server = createServer(Request.toNodeListener(handle));
server.listen(0, "127.0.0.1", () => print({ url: `http://127.0.0.1:${server.address().port}` }));
