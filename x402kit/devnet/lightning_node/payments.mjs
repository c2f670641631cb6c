// What one node pays, in LND's words: IN_FLIGHT, SUCCEEDED, FAILED. A payment hash is paid once.

import { randomBytes } from 'node:crypto'
import { seconds } from './nodes.mjs'
import { Refusal } from './rpc.mjs'

const NOWHERE = Buffer.from('0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798', 'hex') // nobody's node
const hex = (bytes) => Buffer.from(bytes).toString('hex')
const some = (option) => option?.some

export class Payments {
  #known = new Map()
  #by_id = new Map()
  #waiting = new Map()

  constructor(network, node) {
    this.network = network
    this.node = node
  }

  read(payment_request) {
    const read = this.network.ldk.Bolt11Invoice.constructor_from_str(payment_request)
    if (!read.is_ok()) throw new Refusal('invalid bech32 string or checksum')
    if (read.res.currency() !== this.network.ldk.Currency.LDKCurrency_Regtest) {
      throw new Refusal("invoice not for current active network 'regtest'")
    }
    return read.res
  }

  /** Begin a payment. Raises only where nothing has been sent. `divide` lets one part of two go astray. */
  send({ payment_request, fee_limit_msat, fee_limit_sat, amt_msat, amt }, divide = false) {
    const { ldk } = this.network
    const invoice = this.read(payment_request)
    const stated = some(invoice.amount_milli_satoshis())
    if (stated === undefined && !(amt || amt_msat)) {
      throw new Refusal('amount must be specified when paying a zero amount invoice')
    }
    if (stated !== undefined && (amt || amt_msat)) {
      throw new Refusal('amount must not be specified when paying a non-zero amount invoice')
    }
    if (invoice.would_expire(BigInt(seconds()))) throw new Refusal('invoice expired')
    if (Buffer.compare(invoice.get_payee_pub_key(), this.node.id) === 0) throw new Refusal('self-payments not allowed')
    const hash = hex(invoice.payment_hash())
    const before = this.#known.get(hash)
    if (before && before.status !== 'FAILED') {
      throw new Refusal(before.status === 'SUCCEEDED' ? 'invoice is already paid' : 'payment is in transition', 6)
    }
    const amount = stated ?? (amt_msat || amt * 1000n)
    const payment = {
      hash, amount, payment_request, status: 'IN_FLIGHT', preimage: '', fee: 0n, reason: 'FAILURE_REASON_NONE',
      created: seconds(), index: this.#known.size + 1,
    }
    this.#known.set(hash, payment)
    const id = randomBytes(32)
    this.#by_id.set(hex(id), payment)
    const limit = ldk.Option_u64Z.constructor_some(fee_limit_msat || fee_limit_sat * 1000n)
    if (divide) this.node.routes = (payer, parameters) => this.#astray(parameters)
    try {
      this.#send(invoice, amount, new Uint8Array(id), limit, payment, divide ? 0 : 3)
    } finally {
      this.node.routes = null
    }
    return payment
  }

  sent({ payment_id, payment_preimage, fee_paid_msat }) {
    this.#end(payment_id, { status: 'SUCCEEDED', preimage: hex(payment_preimage), fee: some(fee_paid_msat) ?? 0n })
  }

  failed({ payment_id, reason }) {
    const rejected = this.network.ldk.PaymentFailureReason.LDKPaymentFailureReason_RecipientRejected
    const why = some(reason) === rejected ? 'INCORRECT_PAYMENT_DETAILS' : 'NO_ROUTE'
    this.#end({ some: payment_id }, { status: 'FAILED', reason: `FAILURE_REASON_${why}` })
  }

  find(payment_hash) {
    const found = this.#known.get(hex(payment_hash))
    if (!found) throw new Refusal("payment isn't initiated", 5)
    return found
  }

  /** Calls back when the payment has ended, at once when it has already; the answer undoes it. */
  when_ended(payment, told) {
    if (payment.status !== 'IN_FLIGHT') {
      told(payment)
      return () => {}
    }
    const others = this.#waiting.get(payment) ?? new Set()
    this.#waiting.set(payment, others.add(told))
    return () => others.delete(told)
  }

  /** A payment as LND writes it. */
  shown(payment) {
    return {
      payment_hash: payment.hash,
      value: String(payment.amount / 1000n),
      creation_date: String(payment.created),
      fee: String(payment.fee / 1000n),
      payment_preimage: payment.preimage || '0'.repeat(64),
      value_sat: String(payment.amount / 1000n),
      value_msat: String(payment.amount),
      payment_request: payment.payment_request,
      status: payment.status,
      fee_sat: String(payment.fee / 1000n),
      fee_msat: String(payment.fee),
      creation_time_ns: String(BigInt(payment.created) * 1_000_000_000n),
      htlcs: [],
      payment_index: String(payment.index),
      failure_reason: payment.reason,
      first_hop_custom_records: {},
    }
  }

  #send(invoice, amount, id, limit, payment, tries) {
    const { ldk } = this.network
    const stated = some(invoice.amount_milli_satoshis()) !== undefined
    const made = stated
      ? ldk.UtilMethods.constructor_payment_parameters_from_invoice(invoice)
      : ldk.UtilMethods.constructor_payment_parameters_from_variable_amount_invoice(invoice, amount)
    if (!made.is_ok()) throw new Error('no payment parameters')
    const [hash, onion, parameters] = [made.res.get_a(), made.res.get_b(), made.res.get_c()]
    parameters.set_max_total_routing_fee_msat(limit)
    const retries = ldk.Retry.constructor_attempts(tries)
    if (!this.node.channels.send_payment(hash, onion, id, parameters, retries).is_ok()) {
      const [channel] = this.node.channels.list_channels()
      const poor = amount > channel.get_outbound_capacity_msat()
      this.#end({ some: id }, {
        status: 'FAILED', reason: `FAILURE_REASON_${poor ? 'INSUFFICIENT_BALANCE' : 'NO_ROUTE'}`,
      })
    }
    this.network.settle()
  }

  #end(payment_id, outcome) {
    const payment = this.#by_id.get(hex(some(payment_id)))
    if (!payment || payment.status !== 'IN_FLIGHT') return
    Object.assign(payment, outcome)
    for (const told of this.#waiting.get(payment) ?? []) told(payment)
    this.#waiting.delete(payment)
  }

  /** A route of two parts (G06): one arrives, the other is to be forwarded to a node that is not there. */
  #astray(parameters) {
    const { ldk } = this.network
    const [channel] = this.node.channels.list_usable_channels()
    const peer = channel.get_counterparty()
    const [node, scid] = [peer.get_node_id(), some(channel.get_short_channel_id())]
    const amount = parameters.get_final_value_msat()
    const first = amount / 2n
    const hop = (to, over, msat, delta) =>
      ldk.RouteHop.constructor_new(
        to, ldk.NodeFeatures.constructor_empty(), over, ldk.ChannelFeatures.constructor_empty(), msat, delta, true,
      )
    const last = 100
    const paths = [
      [hop(node, scid, first, last)],
      [hop(node, scid, 2000n, 144), hop(new Uint8Array(NOWHERE), scid + 1n, amount - first, last)],
    ].map((hops) => ldk.Path.constructor_new(hops, null))
    return ldk.Result_RouteLightningErrorZ.constructor_ok(ldk.Route.constructor_new(paths, parameters.clone()))
  }
}
