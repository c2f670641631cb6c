// A seller with @getalby/lightning-tools' server helpers, as its users write one: L402 with a token that is no macaroon.
// GET /weather costs ten satoshis, and the token is good for as many calls as one likes; GET /runs counts what was
// served. Prints its address as one JSON line; runs until SIGTERM.
// usage: PEER_NODE='{"url": …, "macaroon": …}' node alby_server.mjs
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import * as tools from "@getalby/lightning-tools/402/l402";
import { createInvoice, print } from "./lightning.mjs";

const SECRET = "a secret of thirty-two bytes, or more";
let runs = 0;

async function isPaid(authorization) {
  try {
    const { token, preimage } = tools.parseL402Authorization(authorization);
    const { paymentHash } = await tools.verifyL402Macaroon(SECRET, token);
    return createHash("sha256").update(Buffer.from(preimage, "hex")).digest("hex") === paymentHash;
  } catch {
    return false;
  }
}

const server = createServer(async (request, response) => {
  const answer = (status, body, headers = {}) => {
    response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(body));
  };
  if (request.url === "/runs") return answer(200, runs);
  if (await isPaid(request.headers.authorization ?? "")) {
    runs += 1;
    return answer(200, { weather: "sunny" });
  }
  const { invoice, paymentHash } = await createInvoice(10);
  const token = await tools.issueL402Macaroon(SECRET, paymentHash);
  answer(402, { error: "payment required" }, {
    "www-authenticate": tools.makeL402AuthenticateHeader({ token, invoice }),
  });
});
server.listen(0, "127.0.0.1", () => print({ url: `http://127.0.0.1:${server.address().port}` }));
