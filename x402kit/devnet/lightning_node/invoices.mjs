// The invoices of one node, in LND's words: OPEN, ACCEPTED, SETTLED, CANCELED.

import { createHash, randomBytes } from 'node:crypto'
import { seconds } from './nodes.mjs'
import { Refusal, msat_of } from './rpc.mjs'

const DAY = 86_400n
const YEAR = 365n * DAY
const MEMO_MAX = 639 // bytes that BOLT 11 has room for

const none = Buffer.alloc(0)
const base64 = (bytes) => Buffer.from(bytes).toString('base64')
const hex = (bytes) => Buffer.from(bytes).toString('hex')
const sha256 = (bytes) => createHash('sha256').update(bytes).digest()

export class Invoices {
  paused = false
  #known = new Map()
  #settled = 0
  #watchers = new Set()

  constructor(network, node) {
    this.network = network
    this.node = node
  }

  /** Make an invoice; a hold invoice where only the hash is known. */
  add({ memo, r_preimage, hash, value, value_msat, expiry, description_hash, private: hinted }) {
    const amount = msat_of(value, value_msat)
    if (Buffer.byteLength(memo) > MEMO_MAX) throw new Refusal(`memo too large: ${memo.length} bytes`)
    if (expiry < 0n || expiry > YEAR) throw new Refusal(`expiry of ${expiry} seconds greater than max expiry`)
    const preimage = hash ? none : r_preimage.length ? r_preimage : randomBytes(32)
    if (!hash && preimage.length !== 32) throw new Refusal(`invalid preimage length of ${preimage.length}`)
    const payment_hash = hash ?? sha256(preimage)
    if (payment_hash.length !== 32) throw new Refusal(`invalid hash length of ${payment_hash.length}, want 32`)
    if (this.#known.has(hex(payment_hash))) throw new Refusal('invoice with payment hash already exists')
    const life = expiry || DAY
    const invoice = {
      memo, preimage, payment_hash, amount, description_hash, private: hinted, expiry: life, hold: Boolean(hash),
      created: seconds(), state: 'OPEN', received: 0n, settled_at: 0, settle_index: 0,
      add_index: this.#known.size + 1, ...this.#signed(amount, memo, description_hash, life, payment_hash),
    }
    this.#known.set(hex(payment_hash), invoice)
    this.#tell(invoice)
    return invoice
  }

  find(payment_hash) {
    const found = this.#known.get(hex(payment_hash))
    if (!found) throw new Refusal(this.#known.size ? 'unable to locate invoice' : 'there are no existing invoices', 5)
    return this.#aged(found)
  }

  /** So many, in the order in which they were made: the newest, or the oldest. */
  list(most, newest) {
    const all = [...this.#known.values()]
    return (newest ? all.slice(-most) : all.slice(0, most)).map((invoice) => this.#aged(invoice))
  }

  /** All of a payment is here. What is not open takes none; a held invoice waits for its preimage. */
  claimable({ payment_hash }) {
    const invoice = this.#known.get(hex(payment_hash))
    if (!invoice || this.#aged(invoice).state !== 'OPEN') this.node.channels.fail_htlc_backwards(payment_hash)
    else if (invoice.hold || this.paused) {
      invoice.state = 'ACCEPTED'
      this.#tell(invoice)
    } else this.node.channels.claim_funds(new Uint8Array(invoice.preimage))
  }

  claimed({ payment_hash, amount_msat }) {
    const invoice = this.#known.get(hex(payment_hash))
    const settle_index = ++this.#settled
    Object.assign(invoice, { state: 'SETTLED', received: amount_msat, settled_at: seconds(), settle_index })
    this.#tell(invoice)
  }

  settle(preimage) {
    const invoice = this.find(sha256(preimage))
    if (invoice.state === 'SETTLED') return
    if (invoice.state === 'OPEN') throw new Refusal('invoice still open')
    if (invoice.state === 'CANCELED') throw new Refusal('invoice already canceled')
    invoice.preimage = preimage
    this.node.channels.claim_funds(new Uint8Array(preimage))
    this.network.settle()
  }

  cancel(payment_hash) {
    const invoice = this.find(payment_hash)
    if (invoice.state === 'SETTLED') throw new Refusal('invoice already settled')
    const held = invoice.state === 'ACCEPTED'
    invoice.state = 'CANCELED'
    if (held) this.node.channels.fail_htlc_backwards(new Uint8Array(payment_hash))
    this.network.settle()
  }

  /** Hold what comes for ordinary invoices too, or claim what has come since (no part of LND). */
  pause(paused) {
    this.paused = paused
    const waiting = [...this.#known.values()].filter(({ state, hold }) => state === 'ACCEPTED' && !hold)
    if (!paused) for (const { preimage } of waiting) this.node.channels.claim_funds(new Uint8Array(preimage))
    this.network.settle()
  }

  watch(told) {
    this.#watchers.add(told)
    return () => this.#watchers.delete(told)
  }

  /** An invoice as LND writes it. */
  shown(invoice) {
    return {
      memo: invoice.memo,
      r_preimage: base64(invoice.preimage),
      r_hash: base64(invoice.payment_hash),
      value: String(invoice.amount / 1000n),
      value_msat: String(invoice.amount),
      settled: invoice.state === 'SETTLED',
      creation_date: String(invoice.created),
      settle_date: String(invoice.settled_at),
      payment_request: invoice.payment_request,
      description_hash: base64(invoice.description_hash),
      expiry: String(invoice.expiry),
      fallback_addr: '',
      cltv_expiry: String(invoice.cltv_expiry),
      route_hints: [],
      private: invoice.private,
      add_index: String(invoice.add_index),
      settle_index: String(invoice.settle_index),
      amt_paid: String(invoice.received),
      amt_paid_sat: String(invoice.received / 1000n),
      amt_paid_msat: String(invoice.received),
      state: invoice.state,
      htlcs: this.#parts(invoice.payment_hash),
      features: {},
      is_keysend: false,
      payment_addr: base64(invoice.payment_addr),
      is_amp: false,
      amp_invoice_state: {},
      is_blinded: false,
      blinded_path_config: null,
    }
  }

  #aged(invoice) {
    if (invoice.state === 'OPEN' && BigInt(invoice.created) + invoice.expiry <= BigInt(seconds())) {
      invoice.state = 'CANCELED'
    }
    return invoice
  }

  #signed(amount, memo, description_hash, life, payment_hash) {
    const { ldk } = this.network
    this.network.tell_time(this.node)
    const of = ldk.UtilMethods
    const price = amount ? ldk.Option_u64Z.constructor_some(amount) : ldk.Option_u64Z.constructor_none()
    const [hash, usual] = [new Uint8Array(payment_hash), ldk.Option_u16Z.constructor_none()]
    const made = description_hash.length
      ? of.constructor_create_invoice_from_channelmanager_with_description_hash_and_payment_hash(
          this.node.channels, price, ldk.Sha256.constructor_from_bytes(new Uint8Array(description_hash)), Number(life),
          hash, usual,
        )
      : of.constructor_create_invoice_from_channelmanager_with_payment_hash(
          this.node.channels, price, memo, Number(life), hash, usual,
        )
    if (!made.is_ok()) throw new Refusal('the invoice could not be made')
    return {
      payment_request: made.res.to_str(),
      payment_addr: made.res.payment_secret(),
      cltv_expiry: made.res.min_final_cltv_expiry_delta(),
    }
  }

  #parts(payment_hash) {
    const [channel] = this.node.channels.list_channels()
    const ours = channel.get_pending_inbound_htlcs().filter((part) => payment_hash.equals(part.get_payment_hash()))
    return ours.map((part) => ({ amt_msat: String(part.get_amount_msat()), state: 'ACCEPTED' }))
  }

  #tell(invoice) {
    if (invoice.state === 'OPEN' || invoice.state === 'SETTLED') for (const told of this.#watchers) told(invoice)
  }
}
