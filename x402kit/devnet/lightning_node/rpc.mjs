// How LND's REST face reads what it is sent, and how it says no.

const STATUS = { 2: 500, 3: 400, 5: 404, 6: 409, 9: 400, 12: 501, 13: 500 } // gRPC's code to HTTP's, as its gateway does

/** An error answer: gRPC's code and LND's words. */
export class Refusal extends Error {
  constructor(message, code = 2) {
    super(message)
    this.code = code
  }

  get status() {
    return STATUS[this.code] ?? 500
  }

  get body() {
    return { code: this.code, message: this.message, details: [] }
  }
}

const KINDS = {
  string: (value) => (typeof value === 'string' ? value : undefined),
  bool: (value) => (typeof value === 'boolean' ? value : undefined),
  bytes: (value) =>
    typeof value === 'string' && /^[A-Za-z0-9+/_-]*={0,2}$/.test(value) ? Buffer.from(value, 'base64') : undefined,
  int64: (value) => {
    const whole = Number.isSafeInteger(value) || (typeof value === 'string' && /^-?\d{1,19}$/.test(value))
    return whole ? BigInt(value) : undefined
  },
}
const ZERO = { string: '', bool: false, bytes: Buffer.alloc(0), int64: 0n }

/** A message's fields by their kinds, absent ones as zero; like LND's own reader it knows no others. */
export function fields(text, kinds) {
  let given
  try {
    given = JSON.parse(text || '{}')
  } catch {
    throw new Refusal('proto: syntax error', 3)
  }
  if (given === null || typeof given !== 'object' || Array.isArray(given)) throw new Refusal('proto: syntax error', 3)
  const read = Object.fromEntries(Object.entries(kinds).map(([name, kind]) => [name, ZERO[kind]]))
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(kinds, name)) throw new Refusal(`proto: unknown field "${name}"`, 3)
    const found = KINDS[kinds[name]](value)
    if (found === undefined) throw new Refusal(`proto: invalid value for ${kinds[name]} field ${name}`, 3)
    read[name] = found
  }
  return read
}

/** An amount stated in satoshi or in millisatoshi. */
export function msat_of(sat, msat) {
  if (sat && msat) throw new Refusal('sat and msat arguments are mutually exclusive')
  if (sat < 0n || msat < 0n) throw new Refusal('amount cannot be negative')
  return msat || sat * 1000n
}
