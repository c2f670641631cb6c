// One node behind LND's REST API, as far as invoices and payments go: paths, fields, errors and permissions are LND's.
//
// Beside it, under /x402kit/, what LND has no call for: to hold payments that came, and to pay only a part.

import { createHmac } from 'node:crypto'
import { createServer } from 'node:http'
import { Refusal, fields } from './rpc.mjs'

const INVOICE = {
  memo: 'string', r_preimage: 'bytes', value: 'int64', value_msat: 'int64', expiry: 'int64', private: 'bool',
  description_hash: 'bytes',
}
const HOLD = { ...INVOICE, hash: 'bytes' }
delete HOLD.r_preimage
const SEND = {
  payment_request: 'string', amt: 'int64', amt_msat: 'int64', fee_limit_sat: 'int64', fee_limit_msat: 'int64',
  timeout_seconds: 'int64', no_inflight_updates: 'bool', allow_self_payment: 'bool',
}
const BODY_MAX = 1 << 20

const hex = (bytes) => Buffer.from(bytes).toString('hex')
const base64 = (bytes) => Buffer.from(bytes).toString('base64')

/** A node's two macaroons (version 2, no caveats): like its keys the same for everyone, and worth nothing. */
export function macaroons(index) {
  const made = (name) => {
    const identifier = Buffer.from(`x402kit devnet ${name} ${index}`)
    const root = createHmac('sha256', 'macaroons-key-generator').update(`x402kit devnet ${index}`).digest()
    const signature = createHmac('sha256', root).update(identifier).digest()
    const location = Buffer.from('\x02\x01\x03lnd', 'latin1')
    return hex(Buffer.concat([
      location, Buffer.from([2, identifier.length]), identifier, Buffer.from([0, 0, 6, 32]), signature,
    ]))
  }
  return { admin: made('admin'), invoice: made('invoice') }
}

// [method, path, permission, handler]; LND's invoice.macaroon has "invoices" alone, its admin.macaroon all.
const CALLS = [
  ['GET', /^\/v1\/getinfo$/, 'info', ({ network, book }) => ({
    version: '0.20.0-beta', identity_pubkey: hex(book.node.id), alias: 'x402kit', num_active_channels: 1, num_peers: 1,
    block_height: network.height, synced_to_chain: true, synced_to_graph: true, testnet: false,
    chains: [{ chain: 'bitcoin', network: 'regtest' }], uris: [], features: {},
  })],
  ['GET', /^\/v1\/balance\/channels$/, 'offchain', ({ book }) => {
    const [channel] = book.node.channels.list_channels()
    const amount = (msat) => ({ sat: String(msat / 1000n), msat: String(msat) })
    const [ours, theirs] = [channel.get_outbound_capacity_msat(), channel.get_inbound_capacity_msat()]
    return { balance: String(ours / 1000n), local_balance: amount(ours), remote_balance: amount(theirs) }
  }],
  ['GET', /^\/v1\/payreq\/([^/]+)$/, 'offchain', ({ book, parts }) => {
    const invoice = book.payments.read(parts[0])
    const msat = invoice.amount_milli_satoshis().some ?? 0n
    return {
      destination: hex(invoice.get_payee_pub_key()), payment_hash: hex(invoice.payment_hash()),
      num_satoshis: String(msat / 1000n), num_msat: String(msat), timestamp: String(invoice.duration_since_epoch()),
      expiry: String(invoice.expiry_time()), payment_addr: base64(invoice.payment_secret()),
    }
  }],
  ['POST', /^\/v1\/invoices$/, 'invoices', ({ book, text }) => {
    const made = book.invoices.add(fields(text, INVOICE))
    return { r_hash: base64(made.payment_hash), ...added(made) }
  }],
  ['GET', /^\/v1\/invoices$/, 'invoices', ({ book, query }) => {
    const found = book.invoices.list(Number(query.get('num_max_invoices') ?? 100), query.get('reversed') === 'true')
    return { invoices: found.map((invoice) => book.invoices.shown(invoice)) }
  }],
  ['GET', /^\/v1\/invoices\/subscribe$/, 'invoices', ({ book, stream }) => {
    stream.response.on('close', book.invoices.watch((invoice) => stream.write(book.invoices.shown(invoice))))
  }],
  ['GET', /^\/v1\/invoice\/([0-9a-fA-F]{64})$/, 'invoices', ({ book, parts }) =>
    book.invoices.shown(book.invoices.find(Buffer.from(parts[0], 'hex')))],
  ['POST', /^\/v2\/invoices\/hodl$/, 'invoices', ({ book, text }) => {
    return added(book.invoices.add({ r_preimage: Buffer.alloc(0), ...fields(text, HOLD) }))
  }],
  ['POST', /^\/v2\/invoices\/settle$/, 'invoices', ({ book, text }) => {
    book.invoices.settle(fields(text, { preimage: 'bytes' }).preimage)
    return {}
  }],
  ['POST', /^\/v2\/invoices\/cancel$/, 'invoices', ({ book, text }) => {
    book.invoices.cancel(fields(text, { payment_hash: 'bytes' }).payment_hash)
    return {}
  }],
  ['POST', /^\/v2\/router\/send$/, 'offchain', ({ book, text, stream }) => {
    const asked = fields(text, SEND)
    follow(book, stream, book.payments.send(asked), asked.no_inflight_updates)
  }],
  ['GET', /^\/v2\/router\/track\/([A-Za-z0-9_=-]+)$/, 'offchain', ({ book, parts, query, stream }) => {
    const payment = book.payments.find(Buffer.from(parts[0], 'base64url'))
    follow(book, stream, payment, query.get('no_inflight_updates') === 'true')
  }],
  ['POST', /^\/x402kit\/pause$/, 'x402kit', ({ book, text }) => {
    book.invoices.pause(fields(text, { paused: 'bool' }).paused)
    return {}
  }],
  ['POST', /^\/x402kit\/pay-part$/, 'x402kit', ({ book, text }) =>
    book.payments.shown(book.payments.send(fields(text, SEND), true))],
  ['POST', /^\/x402kit\/tick$/, 'x402kit', ({ network }) => {
    network.tick()
    return {}
  }],
]

const added = (invoice) => ({
  payment_request: invoice.payment_request,
  add_index: String(invoice.add_index),
  payment_addr: base64(invoice.payment_addr),
})

function follow(book, stream, payment, final_only) {
  if (!final_only && payment.status === 'IN_FLIGHT') stream.write(book.payments.shown(payment))
  const undo = book.payments.when_ended(payment, (ended) => stream.end(book.payments.shown(ended)))
  stream.response.on('close', undo)
}

function allowed(request, permission, keys) {
  const shown = request.headers['grpc-metadata-macaroon']
  if (shown === undefined) throw new Refusal('expected 1 macaroon, got 0')
  if (shown === keys.admin) return
  if (shown !== keys.invoice) throw new Refusal('verification failed: signature mismatch after caveat verification')
  if (permission !== 'invoices') throw new Refusal('permission denied')
}

/** Messages one by one. As with LND, not even the headers are sent before the first. */
class Stream {
  used = false

  constructor(response) {
    this.response = response
  }

  write(message) {
    if (!this.used) this.response.writeHead(200, { 'content-type': 'application/json' })
    this.used = true
    this.response.write(`${JSON.stringify({ result: message })}\n`)
  }

  end(message) {
    this.write(message)
    this.response.end()
  }
}

function answer(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' })
  response.end(JSON.stringify(body))
}

function handle(network, book, keys, request, response, text) {
  const { pathname, searchParams: query } = new URL(request.url, 'http://localhost')
  const call = CALLS.find(([method, path]) => method === request.method && path.test(pathname))
  if (!call) return answer(response, 404, new Refusal('Not Found', 5).body)
  const [, path, permission, run] = call
  const streams = /\/(subscribe|send|track\/.*)$/.test(pathname)
  try {
    allowed(request, permission, keys)
    const stream = new Stream(response)
    const parts = path.exec(pathname).slice(1).map(decodeURIComponent)
    const result = run({ network, book, parts, query, text, stream })
    if (!streams) answer(response, 200, result)
  } catch (error) {
    const refusal = error instanceof Refusal ? error : new Refusal(String(error), 13)
    if (refusal.code === 13) console.error(error)
    answer(response, refusal.status, streams ? { error: refusal.body } : refusal.body)
  }
}

/** Serve a node; its address. */
export function serve(network, book, keys) {
  const server = createServer((request, response) => {
    const chunks = []
    let size = 0
    request.on('data', (chunk) => {
      size += chunk.length
      if (size > BODY_MAX) request.destroy()
      else chunks.push(chunk)
    })
    request.on('end', () => handle(network, book, keys, request, response, Buffer.concat(chunks).toString()))
  })
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve(`http://127.0.0.1:${server.address().port}`))
  })
}
