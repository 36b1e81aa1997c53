// What every program needs once: services of the contract, deadlines, the token, error details, streams that resume.
// Copy this file and generated/mrm/contract.binpb, the whole contract with everything it imports.
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

const contract = readFileSync(new URL('../../generated/mrm/contract.binpb', import.meta.url))
const definitions = protoLoader.loadFileDescriptorSetFromBuffer(contract, {
  longs: String, // 64-bit numbers do not fit JavaScript's
  enums: String,
  defaults: true,
  oneofs: true // adds a property that names the member that is set
})
const { mrm } = grpc.loadPackageDefinition(definitions)
export { mrm }

/** Opens a service, such as `mrm.accounts.v1.SessionService`; `token` (of a session or API key) goes with every call. */
export function open (Service, target, token) {
  const local = /^(localhost|127\.|\[::1\])/.test(target)
  const credentials = local ? grpc.credentials.createInsecure() : grpc.credentials.createSsl()
  const authorize = (options, next) => new grpc.InterceptingCall(next(options), {
    start (metadata, listener, start) {
      if (token) metadata.set('authorization', `Bearer ${token}`)
      start(metadata, listener)
    }
  })
  return new Service(target, credentials, {
    interceptors: [authorize],
    'grpc.keepalive_time_ms': 30_000, // finds dead connections
    'grpc.max_reconnect_backoff_ms': 3_000
  })
}

/** Calls an RPC with one request and one reply: `await call(sessions, 'Login', {...})`. Every call has a deadline. */
export function call (service, method, request, seconds = 5) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + seconds * 1000
    service[method](request, { deadline }, (error, reply) => error ? reject(error) : resolve(reply))
  })
}

/** What an error says to programs: `{ 'google.rpc.ErrorInfo': { reason, ... }, 'google.rpc.BadRequest': {...}, ... }`. */
export function detailsOf (error) {
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? []
  const { details } = bytes ? definitions['google.rpc.Status'].deserialize(bytes) : { details: error.statusDetails ?? [] }
  return Object.fromEntries(details.map(({ type_url: url, value }) => {
    const name = url.split('/').pop()
    return [name, definitions[name].deserialize(value)]
  }))
}

/**
 * Appends an array of events to a named stream; tells from which one on, since the server may know the first. Whatever breaks,
 * it asks the server how far it got and goes on there.
 */
export async function append (statistics, clientId, streamId, events, batchSize = 5000) {
  let first
  return await persistently(async progress => {
    const stream = statistics.AppendEvents()
    stream.on('error', () => {}) // is thrown by `replies`
    const replies = stream[Symbol.asyncIterator]()
    const exchange = async request => {
      stream.write(request)
      const { value: reply } = await replies.next()
      if (!reply) throw Object.assign(new Error('the server ended the stream'), { code: grpc.status.UNAVAILABLE })
      const { error } = reply
      if (error && error.code !== grpc.status.ALREADY_EXISTS) { // already stored is as good as stored
        throw Object.assign(new Error(error.message), { code: error.code, statusDetails: error.details })
      }
      return Number(reply.next_offset)
    }
    try {
      let next = await exchange({ client_id: clientId, stream_id: streamId })
      first ??= next
      while (next < events.length) {
        next = await exchange({ offset: next, batch: { events: events.slice(next, next + batchSize) } })
        progress()
      }
      stream.end()
      await replies.next()
      return first
    } finally {
      stream.cancel()
    }
  })
}

/** Messages of a watch, over any number of disconnects: `for await (const message of watch(changes, 'WatchChanges', {...}))`. */
export async function * watch (service, method, request) {
  for (let failures = 0; ;) {
    let failure
    const stream = service[method](request)
    stream.on('error', () => {}) // is thrown by the loop
    try {
      for await (const message of stream) {
        failures = 0
        if (message.resume_token) request = { ...request, resume_token: message.resume_token }
        yield message
      }
    } catch (error) {
      if (!passing.has(error.code)) throw error
      failure = error
    } finally {
      stream.cancel()
    }
    await sleep(pause(++failures, failure))
  }
}

// Later the same call may succeed.
const passing = new Set([grpc.status.UNAVAILABLE, grpc.status.RESOURCE_EXHAUSTED, grpc.status.DEADLINE_EXCEEDED])

async function persistently (attempt, most = 10) {
  for (let failures = 0; ;) {
    try {
      return await attempt(() => { failures = 0 })
    } catch (error) {
      if (!passing.has(error.code) || ++failures === most) throw error
      await sleep(pause(failures, error))
    }
  }
}

// Milliseconds: what the server asks for, or ever longer; the chance in it spreads the callers of a server that comes back.
function pause (failures, error) {
  const asked = error && detailsOf(error)['google.rpc.RetryInfo']?.retry_delay
  const own = Math.min(5000, 50 * 2 ** failures)
  return Math.max(asked ? asked.seconds * 1000 + asked.nanos / 1e6 : 0, own / 2) + Math.random() * own / 2
}
