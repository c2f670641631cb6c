// Two real Lightning nodes, each served on a free loopback port in the shape of LND's REST API.
//
//   node main.mjs <folder of the package lightningdevkit>
//
// prints, when both listen: {"nodes": [{"url", "pubkey", "macaroon", "invoice_macaroon"}, …]}. Node 0 is the seller's.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Invoices } from './invoices.mjs'
import { macaroons, serve } from './lnd.mjs'
import { Pair } from './nodes.mjs'
import { Payments } from './payments.mjs'

const folder = process.argv[2]
const ldk = await import(pathToFileURL(join(folder, 'index.mjs')))
await ldk.initializeWasmFromBinary(readFileSync(join(folder, 'liblightningjs.wasm')))

const books = []
const pair = new Pair(ldk, (index, name, event) => {
  const { invoices, payments } = books[index]
  if (name === 'claimable' || name === 'claimed') invoices[name](event)
  else payments[name](event)
})
books.push(...pair.nodes.map((node) => ({
  node, invoices: new Invoices(pair, node), payments: new Payments(pair, node),
})))
const nodes = await Promise.all(books.map(async (book, index) => {
  const keys = macaroons(index)
  const pubkey = Buffer.from(book.node.id).toString('hex')
  return { url: await serve(pair, book, keys), pubkey, macaroon: keys.admin, invoice_macaroon: keys.invoice }
}))
console.log(JSON.stringify({ nodes }))
