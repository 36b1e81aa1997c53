"""Which changes a caller gets: what was asked for, within what the caller may read."""

import hashlib
from uuid import UUID

from google.protobuf.message import Message

from mrm.common.v1 import time_pb2
from mrm.operations.v1 import change_service_pb2 as pb
from server.operations import convert
from server.rpc.call import Call
from server.rpc.values import moment, optional_id
from storage.postgres.changes import Selection

# Kind of resource -> the right to read it. A kind that is missing here is shown to administrators only.
_RIGHTS = {
    "client": "CLIENTS_READ",
    "client_membership": "CLIENTS_READ",
    "integration": "INTEGRATIONS_READ",
    "project": "PROJECTS_READ",
    "project_member": "PROJECTS_READ",
    "media_plan": "MEDIA_PLANS_READ",
    "campaign": "CAMPAIGNS_READ",
    "rollup": "STATISTICS_READ",
    "alert": "ALERTS_READ",
    "email": "ALERTS_READ",
    "email_suppression": "USERS_READ",
    "budget_alert_policy": "ALERTS_READ",
    "campaign_import": "CAMPAIGNS_READ",
    "report": "REPORTS_READ",
    "prompt": "PROMPTS_READ",
    "prompt_version": "PROMPTS_READ",
    "prompt_label": "PROMPTS_READ",
    "prompt_experiment": "PROMPTS_READ",
    "template": "TEMPLATES_READ",
    "embedding": "EMBEDDINGS_OPERATE",
    "job": "JOBS_READ",
    "retention": "RETENTION_OPERATE",
    "archive_month": "RETENTION_OPERATE",
    "legal_hold": "RETENTION_OPERATE",
    "erasure": "ERASURE_OPERATE",
    "user": "USERS_READ",
    "session": "USERS_READ",
    "api_key": "API_KEYS_READ",
    "service_account": "API_KEYS_READ",
}


def selection(wanted: pb.ChangeFilter, call: Call, times: time_pb2.TimeRange | None = None) -> Selection:
    """What to read for a filter and its caller."""
    resource_id = optional_id(wanted.resource_id)
    return Selection(
        readable_types=_readable(call),
        client_id=optional_id(wanted.client_id),
        project_id=optional_id(wanted.project_id),
        resource_types=list(wanted.resource_types) or None,
        resource_id=None if resource_id is None else str(resource_id),
        actor_kind=convert.ACTOR_KINDS.optional_word(wanted.actor_kind),
        actor_id=optional_id(wanted.actor_id),
        actions=list(wanted.actions) or None,
        since=None if times is None else moment(times.start_time),
        before=None if times is None else moment(times.end_time),
    )


def binding(wanted: pb.ChangeFilter, call: Call, *others: Message) -> bytes:
    """What a token is bound to: the caller, the filter whatever its spelling, and other conditions."""
    bare = pb.ChangeFilter(
        client_id=_canonical(wanted.client_id),
        project_id=_canonical(wanted.project_id),
        resource_types=sorted(wanted.resource_types),
        resource_id=_canonical(wanted.resource_id),
        actor_kind=wanted.actor_kind,
        actor_id=_canonical(wanted.actor_id),
        actions=sorted(wanted.actions),
    )
    digest = hashlib.sha256(f"{call.principal.kind}|{call.principal.principal_id}|".encode())
    for message in (bare, *others):
        data = message.SerializeToString(deterministic=True)
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.digest()


def _readable(call: Call) -> list[str] | None:
    principal = call.principal
    if principal.role == "admin":
        return None
    return [kind for kind, right in _RIGHTS.items() if right in principal.permissions]


def _canonical(text: str) -> str:
    return str(UUID(text)) if text else ""
