"""Which rights each role carries, as data (requirements §12.1). Tenant scope is decided apart, in SQL."""

from mrm.common.v1 import options_pb2
from server.rpc.policy import permission_name

_READ = frozenset({"CLIENTS_READ", "PROJECTS_READ", "CAMPAIGNS_READ", "STATISTICS_READ"})

# Rights that only a program's key may hold: measurements come from trackers and platforms, not from people.
KEY_ONLY = frozenset({"STATISTICS_INGEST"})

ALL = frozenset(permission_name(value) for value in options_pb2.Permission.values()) - {
    "UNSPECIFIED",
    "PUBLIC",
    "AUTHENTICATED",
}

ROLE_PERMISSIONS: dict[str, frozenset[str]] = {
    "admin": ALL - KEY_ONLY,
    "pm": _READ | {"PROJECTS_WRITE", "CAMPAIGNS_WRITE"},
    "media_planner": _READ,
    "analyst": _READ,
    "account_manager": _READ | {"CLIENTS_WRITE", "PROJECTS_WRITE"},
    "specialist": _READ | {"CAMPAIGNS_WRITE"},
}
