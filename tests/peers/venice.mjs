// The venice-x402-client package at a server of ours: does one task after the other and prints one JSON line.
// usage: PEER_KEY=0x… node venice.mjs < task, where the task is
//   {"url": "http://127.0.0.1:8000", "auto_top_up": 5, "steps": [["topUp", 5], ["chat", {...}], ["getBalance"], ...]}
import { createAuthFetch, VeniceClient } from "venice-x402-client";

const { url, auto_top_up, steps } = JSON.parse(await text(process.stdin));
const options = { apiUrl: url };
if (auto_top_up !== undefined) options.autoTopUp = { enabled: true, amount: auto_top_up };
const client = new VeniceClient(process.env.PEER_KEY, options);

const does = {
  async chatStream(params) {
    const words = [];
    for await (const word of client.chatStream(params)) words.push(word);
    return words;
  },
  // A request of the package's other door: what came back, as it is.
  async authFetch(path, init) {
    const answer = await createAuthFetch(process.env.PEER_KEY, { apiUrl: url })(url + path, init);
    return { status: answer.status, headers: Object.fromEntries(answer.headers), body: await answer.json() };
  },
};

const done = [];
for (const [name, ...values] of steps) {
  try {
    const value = await (does[name] ?? client[name].bind(client))(...values);
    done.push({ value: value ?? null, balance: client.balance });
  } catch (error) {
    const { name: kind, code, message, details } = error;
    done.push({ error: kind, code, message, details, balance: client.balance });
  }
}
console.log(JSON.stringify(done));

async function text(stream) {
  let read = "";
  for await (const chunk of stream) read += chunk;
  return read;
}
