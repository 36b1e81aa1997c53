// A worker in Node.js. BullMQ tells it where to look; the service says whether the job is to be done, and by whom:
//
//   import { work } from './worker.js'
//   await work('reports', async (payload, { progress, signal }) => {
//     await progress(1, 2, 'half of it')
//     return { pages: 12 }
//   }, { redis: 'redis://127.0.0.1:6379', target: '127.0.0.1:50051', token: process.env.MRM_TOKEN })
//
// The token is that of an API key with PERMISSION_JOBS_WORK. A job may be begun more than once, so what a handler does must
// bear repeating.
import { hostname } from 'node:os'
import { randomUUID } from 'node:crypto'
import { Worker } from 'bullmq'
import { Redis } from 'ioredis'
import { call, detailsOf, mrm, open } from './client.js'

/**
 * Works on a queue until the returned worker is closed. `handle(payload, { job, progress, signal })` does a job and returns its
 * result, or throws; `signal` aborts when the job is cancelled or taken away. An error with `final: true` is not tried again.
 */
export async function work (queue, handle, { redis, target, token, concurrency = 4, leaseSeconds = 30 }) {
  const jobs = open(mrm.operations.v1.JobService, target, token)
  const holder = `${hostname()}:${process.pid}`
  const lease = { seconds: leaseSeconds }
  const connection = new Redis(redis, { maxRetriesPerRequest: null }) // waits for a Redis that is away
  const options = { connection, prefix: 'queue', concurrency, maxStalledCount: 2 ** 20 }
  const worker = new Worker(queue, entry => attempt(jobs, handle, entry.data.job_id, holder, lease), options)
  worker.on('error', error => console.error('queue:', error.message)) // it connects again by itself
  worker.on('closed', () => connection.disconnect())
  await worker.waitUntilReady()
  return worker
}

async function attempt (jobs, handle, jobId, holder, lease) {
  const { job } = await call(jobs, 'ClaimJob', { job_id: jobId, holder, lease, request_id: randomUUID() })
  if (!job) return // done already, or not yet: the service will tell again
  const stop = new AbortController()
  const tried = { job_id: jobId, fence: job.fence }
  const heartbeat = async progress => {
    try {
      const { cancel_requested: cancelled } = await call(jobs, 'HeartbeatJob', { ...tried, lease, progress })
      if (cancelled) stop.abort(new Error('cancelled'))
    } catch (error) {
      if (isFenced(error)) stop.abort(error) // others may pass before the lease ends
    }
  }
  const beating = setInterval(heartbeat, lease.seconds * 250)
  const progress = async (done, total, note = '') => {
    await heartbeat({ done, total, note })
    stop.signal.throwIfAborted()
  }
  try {
    const result = await handle(plain(job.payload), { job, progress, signal: stop.signal })
    await call(jobs, 'CompleteJob', { ...tried, result: struct(result ?? {}) })
  } catch (error) {
    if (isFenced(error)) return // somebody else's by now
    await call(jobs, 'FailJob', { ...tried, error: error.message || error.name, final: error.final === true })
  } finally {
    clearInterval(beating)
  }
}

const isFenced = error => detailsOf(error)['google.rpc.ErrorInfo']?.reason === 'JOB_FENCED'

/** What a google.protobuf.Struct holds. */
export function plain (struct) {
  const value = each => {
    if (each.kind === 'struct_value') return plain(each.struct_value)
    if (each.kind === 'list_value') return each.list_value.values.map(value)
    return each.kind === 'null_value' ? null : each[each.kind]
  }
  // Of a contract in binary form the loader reads maps as lists of entries.
  return Object.fromEntries((struct?.fields ?? []).map(each => [each.key, value(each.value)]))
}

/** A google.protobuf.Struct of plain values. */
export function struct (object) {
  const value = each => {
    if (each === null || each === undefined) return { null_value: 'NULL_VALUE' }
    if (Array.isArray(each)) return { list_value: { values: each.map(value) } }
    if (typeof each === 'object') return { struct_value: struct(each) }
    if (typeof each === 'boolean') return { bool_value: each }
    return typeof each === 'number' ? { number_value: each } : { string_value: String(each) }
  }
  return { fields: Object.entries(object).map(([key, each]) => ({ key, value: value(each) })) }
}
