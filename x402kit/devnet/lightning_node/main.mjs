// Two real Lightning nodes, each served on a free loopback port in the shape of LND's REST API.
//
//   node main.mjs <folder of the package lightningdevkit> [hub]
//
// prints, when both listen: {"nodes": [{"url", "pubkey", "macaroon", "invoice_macaroon"}, …]}. Node 0 is the seller's.
// With "hub" their channel is not direct: a third node, which is not served, forwards for a fee of 1 sat.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Invoices } from './invoices.mjs'
import { macaroons, serve } from './lnd.mjs'
import { Network } from './nodes.mjs'
import { Payments } from './payments.mjs'

const folder = process.argv[2]
const ldk = await import(pathToFileURL(join(folder, 'index.mjs')))
await ldk.initializeWasmFromBinary(readFileSync(join(folder, 'liblightningjs.wasm')))

const books = []
const network = new Network(ldk, (index, name, event) => {
  if (index >= books.length) return // the hub's
  const { invoices, payments } = books[index]
  if (name === 'claimable' || name === 'claimed') invoices[name](event)
  else payments[name](event)
}, process.argv[3] === 'hub')
books.push(...network.nodes.slice(0, 2).map((node) => ({
  node, invoices: new Invoices(network, node), payments: new Payments(network, node),
})))
const nodes = await Promise.all(books.map(async (book, index) => {
  const keys = macaroons(index)
  const pubkey = Buffer.from(book.node.id).toString('hex')
  return { url: await serve(network, book, keys), pubkey, macaroon: keys.admin, invoice_macaroon: keys.invoice }
}))
console.log(JSON.stringify({ nodes }))
