// From signing in to live figures: everything a program needs of this service, in the order it needs it.
// It runs against a service with an administrator (`make up`, then `mrm admin create --email admin@example.com`):
//
//   npm ci && MRM_ADMIN_PASSWORD='...' npm start
import { randomUUID } from 'node:crypto'
import grpc from '@grpc/grpc-js'
import { append, call, detailsOf, mrm, open, watch } from './client.js'

const target = process.env.MRM_TARGET ?? '127.0.0.1:50051'
const email = process.env.MRM_ADMIN_EMAIL ?? 'admin@example.com'

// A person signs in; the token goes with every call from then on.
const login = await call(open(mrm.accounts.v1.SessionService, target), 'Login', {
  email, password: process.env.MRM_ADMIN_PASSWORD
})
console.log('signed in as', login.user.email)
const service = Service => open(Service, target, login.session_token)

// A client, its project, its campaign. The `request_id` makes sending a call again safe.
const { client } = await call(service(mrm.accounts.v1.ClientService), 'CreateClient', {
  client: { display_name: 'Rosebud', type: 'CLIENT_TYPE_DIRECT_ADVERTISER' }, request_id: randomUUID()
})
const { project } = await call(service(mrm.planning.v1.ProjectService), 'CreateProject', {
  project: { client_id: client.client_id, display_name: 'Spring' }, request_id: randomUUID()
})
const campaigns = service(mrm.campaigns.v1.CampaignService)
const { campaign } = await call(campaigns, 'CreateCampaign', {
  campaign: { project_id: project.project_id, platform: 'PLATFORM_OTHER', display_name: 'Banner' }, request_id: randomUUID()
})
console.log('created campaign', campaign.display_name)

// A program that sends events gets a key of its own; its secret is shown this once.
const key = await call(service(mrm.accounts.v1.ApiKeyService), 'CreateApiKey', {
  display_name: 'tracker', permissions: ['PERMISSION_STATISTICS_INGEST'], client_ids: [client.client_id], request_id: randomUUID()
})

// The stream has a name, and the server knows how far it got: whoever opens it again goes on from there.
const statistics = open(mrm.statistics.v1.StatisticsService, target, key.secret)
const events = Array.from({ length: 10 }, () => ({
  event_id: randomUUID(),
  event_time: { seconds: Math.floor(Date.now() / 1000) },
  campaign_id: campaign.campaign_id,
  event_type: 'EVENT_TYPE_IMPRESSION'
}))
for (const source of [events.slice(0, 6), events]) { // as after a crash: the first six are not sent again
  const first = await append(statistics, client.client_id, 'tracker-1', source)
  console.log('appended from event', first, 'to', source.length)
}

// Live figures. The first messages are a snapshot, later ones bring the campaigns that changed.
const metrics = watch(service(mrm.statistics.v1.StatisticsService), 'WatchMetrics', { client_id: client.client_id })
for await (const message of metrics) {
  const known = message.snapshot ?? message.update
  const seen = Number(known?.campaigns.find(one => one.campaign_id === campaign.campaign_id)?.metrics.impressions ?? 0)
  console.log(message.kind, seen)
  if (seen >= events.length) break
}

// Who changed what, each change exactly once: from the oldest, until the campaign's creation came by.
const changes = service(mrm.operations.v1.ChangeService)
const filter = { client_id: client.client_id }
const oldest = await call(changes, 'GetOldestChangeToken', { filter })
for await (const { batch } of watch(changes, 'WatchChanges', { filter, resume_token: oldest.resume_token })) {
  for (const change of batch?.changes ?? []) console.log('change:', change.action, change.resource_type)
  if (batch?.changes.some(change => change.resource_type === 'campaign')) break
}

// A refusal has a code for the program, a text for people, and says which field is at fault.
try {
  await call(campaigns, 'GetCampaign', { campaign_id: 'no such thing' })
} catch (error) {
  const details = detailsOf(error)
  console.log('refused:', grpc.status[error.code], details['google.rpc.ErrorInfo'].reason,
    details['google.rpc.BadRequest'].field_violations.map(({ field, description }) => `${field}: ${description}`))
}
