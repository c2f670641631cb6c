// What the programs here share: a wallet and an invoice on a Lightning node that speaks LND's REST API, and mppx's
// method lightning/charge, which mppx leaves to others to write. The node is {"url", "macaroon"} in PEER_NODE.
import { createHash } from "node:crypto";
import { Credential, Method, Receipt, z } from "mppx";

/** A call of the node's; its first message, where it answers with several. */
async function node(path, body) {
  const { url, macaroon } = JSON.parse(process.env.PEER_NODE);
  const headers = { "Grpc-Metadata-macaroon": macaroon, "content-type": "application/json" };
  const answer = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(body) });
  const said = JSON.parse((await answer.text()).split("\n")[0]);
  if (!answer.ok || said.error) throw new Error(said.error?.message ?? said.message ?? `status ${answer.status}`);
  return said.result ?? said;
}

export async function payInvoice(invoice) {
  const asked = { payment_request: invoice, timeout_seconds: 30, fee_limit_sat: "10", no_inflight_updates: true };
  const payment = await node("/v2/router/send", asked);
  if (payment.status !== "SUCCEEDED") throw new Error(payment.failure_reason);
  return payment.payment_preimage;
}

export async function createInvoice(sats) {
  const made = await node("/v1/invoices", { value: String(sats), memo: "a peer's route", expiry: "600" });
  return { invoice: made.payment_request, paymentHash: Buffer.from(made.r_hash, "base64").toString("hex") };
}

const text = z.string();
const charge = Method.from({
  name: "lightning",
  intent: "charge",
  schema: {
    credential: { payload: z.object({ preimage: text }) },
    request: z.looseObject({
      amount: text,
      currency: text,
      methodDetails: z.optional(z.object({ invoice: text, paymentHash: z.optional(text), network: z.optional(text) })),
    }),
  },
});

/** lightning/charge for mppx's client. */
export const lightning = () =>
  Method.toClient(charge, {
    async createCredential({ challenge }) {
      const preimage = await payInvoice(challenge.request.methodDetails.invoice);
      return Credential.serialize({ challenge, payload: { preimage } });
    },
  });

/** lightning/charge for mppx's server: a fresh invoice for each challenge, a preimage good for one answer. */
export function lightningServer() {
  const used = new Set();
  return Method.toServer(charge, {
    async request({ credential, request }) {
      if (credential) return credential.challenge.request;
      return { ...request, methodDetails: { network: "regtest", ...(await createInvoice(request.amount)) } };
    },
    stableBinding: ({ amount, currency }) => ({ amount, currency }),
    async verify({ credential }) {
      const { paymentHash } = credential.challenge.request.methodDetails;
      const preimage = Buffer.from(credential.payload.preimage, "hex");
      if (createHash("sha256").update(preimage).digest("hex") !== paymentHash) throw new Error("another preimage");
      if (used.has(paymentHash)) throw new Error("used before");
      used.add(paymentHash);
      return Receipt.from({
        method: "lightning",
        reference: paymentHash,
        status: "success",
        timestamp: new Date().toISOString(),
      });
    },
  });
}

/** The task that is on standard input, as JSON. */
export async function task() {
  let read = "";
  for await (const chunk of process.stdin) read += chunk;
  return JSON.parse(read);
}

/** What came back, as one JSON line. */
export async function report(answer, more) {
  const body = await answer.text();
  print({ status: answer.status, headers: Object.fromEntries(answer.headers), body: parsed(body), ...more });
}

export function print(line) {
  console.log(JSON.stringify(line));
}

function parsed(body) {
  try {
    return JSON.parse(body);
  } catch {
    return body;
  }
}
