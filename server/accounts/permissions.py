"""Which rights each role carries, as data (requirements §12.1). `server.rpc.rights` evaluates them."""

from mrm.common.v1 import options_pb2
from server.rpc.policy import permission_name

_READ = frozenset(
    {
        "CLIENTS_READ",
        "PROJECTS_READ",
        "MEDIA_PLANS_READ",
        "MEDIA_PLANS_COMMENT",
        "CAMPAIGNS_READ",
        "STATISTICS_READ",
        "CHANGES_READ",
        "ALERTS_READ",
        "REPORTS_READ",
        "PROMPTS_READ",
        "FEEDBACK_READ",
        "TEMPLATES_READ",
        "SEARCH",
        "JOBS_READ",
        "JOBS_CONTROL",
    }
)

# Rights that only a program's key may hold: measurements come from trackers and platforms, and work is done by workers,
# not by people.
KEY_ONLY = frozenset({"STATISTICS_INGEST", "JOBS_WORK"})

# Rights that no key may hold: a key that makes people makes itself an administrator, and what cannot be undone, is a
# decision or an opinion has a person behind it.
PEOPLE_ONLY = frozenset(
    {"USERS_WRITE", "CLIENTS_PURGE", "MEDIA_PLANS_APPROVE", "MEDIA_PLANS_COMMENT", "PROMPTS_PROMOTE", "ERASURE_OPERATE"}
)

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
        "PROJECTS_TRANSFER",
        "MEDIA_PLANS_WRITE",
        "CAMPAIGNS_WRITE",
        "ALERTS_WRITE",
        "REPORTS_WRITE",
        "FEEDBACK_WRITE",
        "TEMPLATES_WRITE",
        "CAMPAIGNS_IMPORT",
        "CAMPAIGNS_SYNC",
        "OPERATIONS_READ",
    },
    "media_planner": _READ | {"USERS_READ", "MEDIA_PLANS_WRITE", "REPORTS_WRITE", "FEEDBACK_WRITE", "TEMPLATES_WRITE"},
    "analyst": _READ | {"USERS_READ", "STATISTICS_ROLLUP", "REPORTS_WRITE", "PROMPTS_WRITE", "TEMPLATES_WRITE"},
    "account_manager": _READ
    | {
        "USERS_READ",
        "CLIENTS_WRITE",
        "INTEGRATIONS_READ",
        "INTEGRATIONS_WRITE",
        "PROJECTS_WRITE",
        "PROJECTS_TRANSFER",
        "ALERTS_WRITE",
        "CAMPAIGNS_SYNC",
        "REPORTS_WRITE",
        "FEEDBACK_WRITE",
        "TEMPLATES_WRITE",
        "OPERATIONS_READ",
    },
    "specialist": _READ
    | {
        "INTEGRATIONS_READ",
        "INTEGRATIONS_WRITE",
        "CAMPAIGNS_WRITE",
        "CAMPAIGNS_IMPORT",
        "CAMPAIGNS_SYNC",
        "ALERTS_WRITE",
        "FEEDBACK_WRITE",
    },
}

# The roles that a person may have inside a project, beside or against the one everywhere.
PROJECT_ROLES = tuple(role for role in ROLE_PERMISSIONS if role != "admin")

# Rights that a place in a project's team can carry, and the letters of RACI that it takes: the Responsible edit, the
# Accountable decides as well, the Consulted and the Informed look on.
TEAM_LETTERS: dict[str, str] = {
    "PROJECTS_READ": "RACI",
    "MEDIA_PLANS_READ": "RACI",
    "CAMPAIGNS_READ": "RACI",
    "STATISTICS_READ": "RACI",
    "CHANGES_READ": "RACI",
    "ALERTS_READ": "RACI",
    "REPORTS_READ": "RACI",
    "FEEDBACK_READ": "RACI",
    "SEARCH": "RACI",
    "MEDIA_PLANS_COMMENT": "RAC",
    "PROJECTS_WRITE": "RA",
    "MEDIA_PLANS_WRITE": "RA",
    "CAMPAIGNS_WRITE": "RA",
    "ALERTS_WRITE": "RA",
    "REPORTS_WRITE": "RA",
    "FEEDBACK_WRITE": "RA",
    "CAMPAIGNS_IMPORT": "RA",
    "MEDIA_PLANS_APPROVE": "A",
    "PROJECTS_TRANSFER": "A",
}

# Rights that come with being Accountable, whatever the project role: to be accountable is to decide.
OF_THE_ACCOUNTABLE = frozenset({"MEDIA_PLANS_APPROVE", "PROJECTS_TRANSFER"})
