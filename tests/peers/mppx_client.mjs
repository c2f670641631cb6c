// mppx as a client: pays one URL and prints one JSON line.
// usage: PEER_KEY=0x… PEER_NODE='{"url": …, "macaroon": …}' node mppx_client.mjs < task, where the task is
//   {"url": …, "methods": ["evm", "lightning"], "method": "POST", "json": {…}, "headers": {…}, "retries": 1}
// or {"methods": ["solana"], "rpc": URL}, and then the key is Solana's, in base58.
import { Receipt } from "mppx";
import { Mppx, evm } from "mppx/client";
import { privateKeyToAccount } from "viem/accounts";
import { lightning, print, report, task } from "./lightning.mjs";

const { url, methods, method, json, headers, retries, rpc } = await task();
const makes = {
  evm: () => evm.charge({ account: privateKeyToAccount(process.env.PEER_KEY), currencies: [evm.assets.base.USDC] }),
  lightning,
  solana: async () => (await import("./solana.mjs")).solanaClient(rpc),
};
const client = Mppx.create({
  methods: await Promise.all(methods.map((name) => makes[name]())),
  maxPaymentRetries: retries ?? 3,
  polyfill: false,
});
const created = [];
client.on("credential.created", ({ challenge, credential }) => {
  created.push({ id: challenge.id, method: challenge.method, credential });
});
const init = { method: method ?? "GET", headers: { ...headers } };
if (json !== undefined) {
  init.body = JSON.stringify(json);
  init.headers["content-type"] = "application/json";
}
try {
  const answer = await client.fetch(url, init);
  await report(answer, {
    created,
    receipt: answer.headers.has("payment-receipt") ? Receipt.fromResponse(answer) : null,
  });
} catch (error) {
  print({ status: null, error: error.name, message: error.message, created });
}
