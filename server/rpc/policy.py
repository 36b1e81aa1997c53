"""The call policy that each RPC declares in its proto, read once at start."""

from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from mrm.common.v1 import options_pb2


class PolicyMissing(Exception):
    """An RPC has no complete `(mrm.common.v1.policy)`: the server must not start."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may make a call, and how it is treated.

    Attributes:
        permission: Right the caller must hold, such as ``CAMPAIGNS_READ``, or ``PUBLIC`` or ``AUTHENTICATED``.
        scope: Which ids bind the call to a tenant, such as ``CLIENT``.
        rate_class: Limit class, such as ``LIGHT``.
        deadline: Longest time the server works on the call, in seconds; None for streams.
        idempotency: ``READ_ONLY``, ``REQUEST_ID``, ``NATURAL`` or ``NONE``.
    """

    permission: str
    scope: str
    rate_class: str
    deadline: float | None
    idempotency: str


def permission_name(value: int) -> str:
    """Name of a `mrm.common.v1.Permission` without its prefix."""
    return options_pb2.Permission.Name(value).removeprefix("PERMISSION_")  # type: ignore[arg-type]


def read_policy(method: MethodDescriptor) -> Policy:
    """Reads the policy of one RPC.

    Raises:
        PolicyMissing: An option is absent or contradicts the RPC's shape.
    """
    declared = method.GetOptions().Extensions[options_pb2.policy]
    streams = method.client_streaming or method.server_streaming
    if not (declared.permission and declared.scope and declared.rate_class and declared.idempotency):
        raise PolicyMissing(f"{method.full_name} declares no complete (mrm.common.v1.policy)")
    if streams == bool(declared.deadline_ms):
        raise PolicyMissing(f"{method.full_name}: unary calls need deadline_ms, streams have none")
    if (declared.idempotency == options_pb2.IDEMPOTENCY_REQUEST_ID) != (
        "request_id" in method.input_type.fields_by_name
    ):
        raise PolicyMissing(f"{method.full_name}: IDEMPOTENCY_REQUEST_ID and a request_id field belong together")
    return Policy(
        permission=permission_name(declared.permission),
        scope=options_pb2.Scope.Name(declared.scope).removeprefix("SCOPE_"),
        rate_class=options_pb2.RateClass.Name(declared.rate_class).removeprefix("RATE_CLASS_"),
        deadline=None if streams else declared.deadline_ms / 1000,
        idempotency=options_pb2.Idempotency.Name(declared.idempotency).removeprefix("IDEMPOTENCY_"),
    )


def policies(service: ServiceDescriptor) -> dict[str, Policy]:
    """Policies of all RPCs of a service, by RPC name."""
    return {method.name: read_policy(method) for method in service.methods}
