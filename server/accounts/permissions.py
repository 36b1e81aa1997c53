"""Which rights each role carries, as data (requirements §12.1). Tenant scope is decided apart, in SQL."""

from mrm.common.v1 import options_pb2
from server.rpc.policy import permission_name

_READ = frozenset(
    {"CLIENTS_READ", "PROJECTS_READ", "MEDIA_PLANS_READ", "CAMPAIGNS_READ", "STATISTICS_READ", "CHANGES_READ"}
)

# Rights that only a program's key may hold: measurements come from trackers and platforms, not from people.
KEY_ONLY = frozenset({"STATISTICS_INGEST"})

# Rights that no key may hold: a key that makes people makes itself an administrator, and what cannot be undone or is a
# decision has a person behind it.
PEOPLE_ONLY = frozenset({"USERS_WRITE", "CLIENTS_PURGE", "MEDIA_PLANS_APPROVE"})

ALL = frozenset(permission_name(value) for value in options_pb2.Permission.values()) - {
    "UNSPECIFIED",
    "PUBLIC",
    "AUTHENTICATED",
}

ROLE_PERMISSIONS: dict[str, frozenset[str]] = {
    "admin": ALL - KEY_ONLY,
    "pm": _READ
    | {
        "USERS_READ",
        "INTEGRATIONS_READ",
        "PROJECTS_WRITE",
        "MEDIA_PLANS_WRITE",
        "MEDIA_PLANS_APPROVE",
        "CAMPAIGNS_WRITE",
    },
    "media_planner": _READ | {"USERS_READ", "MEDIA_PLANS_WRITE"},
    "analyst": _READ | {"USERS_READ"},
    "account_manager": _READ
    | {
        "USERS_READ",
        "CLIENTS_WRITE",
        "INTEGRATIONS_READ",
        "INTEGRATIONS_WRITE",
        "PROJECTS_WRITE",
        "MEDIA_PLANS_APPROVE",
    },
    "specialist": _READ | {"INTEGRATIONS_READ", "INTEGRATIONS_WRITE", "CAMPAIGNS_WRITE"},
}
