// Two Lightning nodes (LDK) in one process, with one channel between them, on a chain that is made up here; or with a
// third between the two, which forwards for a fee.
//
// Messages, onions, HTLCs, preimages and signatures are real; only the blocks and the funding transactions are not.
// Whatever changes a node is followed by settle(): it carries bytes between them until none has any more to say.

import { createHash, randomBytes } from 'node:crypto'

const CHANNEL_SATS = 10_000_000n
const PUSHED_MSAT = 4_000_000_000n
const REGTEST_GENESIS = '0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206'
const ROUNDS_MAX = 1000

export const seconds = () => Math.floor(Date.now() / 1000)
const sha256 = (data) => createHash('sha256').update(data).digest()
const twice = (data) => sha256(sha256(data))
const must = (result, what) => {
  if (!result.is_ok()) throw new Error(`${what}: ${result.err}`)
  return result.res
}

/** One node. `on` is told of its events by name: claimable, claimed, sent, failed. */
class Node {
  constructor(ldk, index, on) {
    this.on = on
    this.queue = []
    this.routes = null // instead of the router's own, for once
    const at = [BigInt(seconds()), Number(process.hrtime.bigint() % 1_000_000_000n)]
    const seed = sha256(`x402kit devnet lightning node ${index}`)
    this.keys = ldk.KeysManager.constructor_new(new Uint8Array(seed), ...at)
    const [entropy, signer] = [this.keys.as_EntropySource(), this.keys.as_NodeSigner()]
    const logger = ldk.Logger.new_impl({ log() {} })
    const fees = ldk.FeeEstimator.new_impl({ get_est_sat_per_1000_weight: () => 253 })
    const broadcaster = ldk.BroadcasterInterface.new_impl({ broadcast_transactions() {} })
    const done = ldk.ChannelMonitorUpdateStatus.LDKChannelMonitorUpdateStatus_Completed
    const persister = ldk.Persist.new_impl({
      persist_new_channel: () => done,
      update_persisted_channel: () => done,
      archive_persisted_channel() {},
    })
    this.monitor = ldk.ChainMonitor.constructor_new(
      ldk.Option_FilterZ.constructor_none(), broadcaster, logger, fees, persister,
    )
    const graph = ldk.NetworkGraph.constructor_new(ldk.Network.LDKNetwork_Regtest, logger)
    const scorer = ldk.MultiThreadedLockableScore.constructor_new(
      ldk.ProbabilisticScorer.constructor_new(
        ldk.ProbabilisticScoringDecayParameters.constructor_default(), graph, logger,
      ).as_Score(),
    )
    const router = ldk.DefaultRouter.constructor_new(
      graph, logger, entropy, scorer.as_LockableScore(), ldk.ProbabilisticScoringFeeParameters.constructor_default(),
    )
    const messages = ldk.DefaultMessageRouter.constructor_new(graph, entropy)
    this.channels = ldk.ChannelManager.constructor_new(
      fees, this.monitor.as_Watch(), broadcaster, this.#router(ldk, router), messages.as_MessageRouter(), logger,
      entropy, signer, this.keys.as_SignerProvider(), config(ldk),
      ldk.ChainParameters.constructor_new(
        ldk.Network.LDKNetwork_Regtest, ldk.BestBlock.constructor_from_network(ldk.Network.LDKNetwork_Regtest),
      ),
      seconds(),
    )
    const ignoring = ldk.IgnoringMessageHandler.constructor_new()
    this.peers = ldk.PeerManager.constructor_new(
      this.channels.as_ChannelMessageHandler(), ignoring.as_RoutingMessageHandler(),
      ignoring.as_OnionMessageHandler(), ignoring.as_CustomMessageHandler(), seconds(),
      new Uint8Array(randomBytes(32)), logger, signer,
    )
    this.handler = ldk.EventHandler.new_impl({
      handle_event: (event) => {
        this.queue.push(event) // handled later: a call into the node from here would find it locked
        return ldk.Result_NoneReplayEventZ.constructor_ok()
      },
    })
    this.id = this.channels.get_our_node_id()
    // What the nodes hold by pointer only must not be collected here.
    this.kept = [logger, fees, broadcaster, persister, graph, scorer, router, messages, ignoring]
  }

  #router(ldk, usual) {
    const inner = usual.as_Router()
    const find = (...asked) => this.routes?.(...asked) ?? inner.find_route(...asked)
    return ldk.Router.new_impl({
      find_route: find,
      find_route_with_id: (payer, parameters, hops, inflight) => find(payer, parameters, hops, inflight),
      create_blinded_payment_paths: (...asked) => inner.create_blinded_payment_paths(...asked),
    })
  }
}

function config(ldk) {
  const made = ldk.UserConfig.constructor_default()
  const handshake = made.get_channel_handshake_config()
  handshake.set_minimum_depth(1)
  handshake.set_max_inbound_htlc_value_in_flight_percent_of_channel(100)
  handshake.set_our_max_accepted_htlcs(483)
  made.set_channel_handshake_config(handshake)
  made.set_accept_forwards_to_priv_channels(true)
  return made
}

/** The seller's node and the payer's, in this order, the hub where there is one, and the chain under them. */
export class Network {
  #wire = []
  #tip = Buffer.from(REGTEST_GENESIS, 'hex').reverse()
  #sockets = []
  height = 0

  constructor(ldk, on, with_hub) {
    this.ldk = ldk
    const indices = with_hub ? [0, 1, 2] : [0, 1]
    this.nodes = indices.map((index) => new Node(ldk, index, (name, event) => on(index, name, event)))
    const [seller, payer, hub] = this.nodes
    const channels = hub ? [[payer, hub], [hub, seller]] : [[payer, seller]]
    for (const [from, to] of channels) this.#connect(from, to)
    for (const [from, to] of channels) this.#open(from, to)
    for (let blocks = 0; blocks < 6; blocks++) this.#mine()
    const usable = this.nodes.map((node) => node.channels.list_usable_channels().length)
    if (usable.reduce((sum, each) => sum + each) !== 2 * channels.length) throw new Error('a channel did not open')
    setInterval(() => this.tick(), 20_000).unref()
  }

  /** Carry bytes and events until all is quiet. */
  settle() {
    for (let round = 0; round < ROUNDS_MAX; round++) {
      let quiet = true
      while (this.#wire.length) {
        quiet = false
        const [{ node, socket }, bytes] = this.#wire.shift()
        must(node.peers.read_event(socket, bytes), 'message')
      }
      for (const node of this.nodes) {
        node.channels.process_pending_htlc_forwards()
        node.channels.as_EventsProvider().process_pending_events(node.handler)
        node.monitor.as_EventsProvider().process_pending_events(node.handler)
        while (node.queue.length) {
          quiet = false
          this.#event(node, node.queue.shift())
        }
        node.peers.process_events() // sends what all this has left to say
      }
      if (quiet && !this.#wire.length) return
    }
    throw new Error('the nodes find no rest')
  }

  /** What a node does once a minute: parts of a payment whose others do not come are sent back after three. */
  tick() {
    for (const node of this.nodes) {
      node.channels.timer_tick_occurred()
      node.peers.timer_tick_occurred()
    }
    this.settle()
  }

  /** Tell a node the time: its clock is the last block's, and an invoice is dated by it. */
  tell_time(node) {
    node.channels.as_Confirm().best_block_updated(this.#header(Buffer.alloc(32)), this.height)
  }

  #connect(from, to) {
    const [caller, called] = [{ node: from }, { node: to }]
    caller.socket = this.#socket(called)
    called.socket = this.#socket(caller)
    const nowhere = this.ldk.Option_SocketAddressZ.constructor_none()
    must(to.peers.new_inbound_connection(called.socket, nowhere), 'inbound connection')
    const hello = must(from.peers.new_outbound_connection(to.id, caller.socket, nowhere), 'connection')
    this.#wire.push([called, hello])
    this.settle()
  }

  #socket(other) {
    const number = BigInt(this.#sockets.length)
    const made = this.ldk.SocketDescriptor.new_impl({
      send_data: (bytes) => {
        if (bytes.length) this.#wire.push([other, bytes.slice()])
        return bytes.length
      },
      disconnect_socket() {
        console.error('the nodes lost each other')
        process.exit(1)
      },
      eq: (another) => another.hash() === number,
      hash: () => number,
    })
    this.#sockets.push(made)
    return made
  }

  #open(from, to) {
    must(from.channels.create_channel(to.id, CHANNEL_SATS, PUSHED_MSAT, 1n, null, null), 'channel')
    this.settle()
    this.#mine(this.funding)
  }

  #event(node, event) {
    const { ldk } = this
    if (event instanceof ldk.Event_FundingGenerationReady) this.#fund(node, event)
    else if (event instanceof ldk.Event_PaymentClaimable) node.on('claimable', event)
    else if (event instanceof ldk.Event_PaymentClaimed) node.on('claimed', event)
    else if (event instanceof ldk.Event_PaymentSent) node.on('sent', event)
    else if (event instanceof ldk.Event_PaymentFailed) node.on('failed', event)
  }

  #fund(node, { temporary_channel_id, counterparty_node_id, channel_value_satoshis, output_script }) {
    const value = Buffer.alloc(8)
    value.writeBigUInt64LE(channel_value_satoshis)
    const input = Buffer.concat([Buffer.from('01', 'hex'), randomBytes(32), Buffer.alloc(5), Buffer.alloc(4, 0xff)])
    const output = Buffer.concat([Buffer.from([1]), value, Buffer.from([output_script.length]), output_script])
    const [version, locktime] = [Buffer.from('02000000', 'hex'), Buffer.alloc(4)]
    const [marker, witness] = [Buffer.from('0001', 'hex'), Buffer.from('0101ff', 'hex')]
    this.funding = {
      raw: new Uint8Array(Buffer.concat([version, marker, input, output, witness, locktime])),
      txid: twice(Buffer.concat([version, input, output, locktime])),
    }
    must(
      node.channels.funding_transaction_generated(temporary_channel_id, counterparty_node_id, this.funding.raw),
      'funding',
    )
  }

  #header(root) {
    const numbers = Buffer.alloc(12)
    numbers.writeUInt32LE(seconds(), 0)
    numbers.writeUInt32LE(0x207fffff, 4)
    numbers.writeUInt32LE(this.height, 8)
    return new Uint8Array(Buffer.concat([Buffer.from('01000000', 'hex'), this.#tip, root, numbers]))
  }

  #mine(transaction) {
    const header = this.#header(transaction ? transaction.txid : randomBytes(32))
    this.#tip = twice(header)
    this.height += 1
    for (const node of this.nodes) {
      for (const watcher of [node.channels.as_Confirm(), node.monitor.as_Confirm()]) {
        if (transaction) {
          const place = this.ldk.TwoTuple_usizeTransactionZ.constructor_new(1, transaction.raw)
          watcher.transactions_confirmed(header, [place], this.height)
        }
        watcher.best_block_updated(header, this.height)
      }
    }
    this.settle()
  }
}
