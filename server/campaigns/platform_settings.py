"""Typed settings of platforms, as stored and back, without loss of what this version of the contract does not know.

A newer peer may send fields that are not in our descriptors, and a newer server may have stored keys that are not. The
former are kept under `_UNKNOWN`, the latter where they stand: both come through a change made here. Enums are stored as
numbers, so that one without a name survives too.
"""

import base64
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from mrm.campaigns.v1 import platform_settings_pb2 as pb
from server.rpc.errors import InvalidRequest

_UNKNOWN: Final = "_unknown"
_LARGEST_UNKNOWN: Final = 32 * 1024


def message(stored: Mapping[str, Any]) -> pb.PlatformSettings:
    """Stored settings as a message."""
    settings = ParseDict(dict(stored), pb.PlatformSettings(), ignore_unknown_fields=True)
    _restore(settings, stored)
    return settings


def stored(settings: pb.PlatformSettings, before: Mapping[str, Any], platform: str, currency: str) -> dict[str, Any]:
    """Settings as they are to be stored.

    Args:
        settings: As they are to be.
        before: As they are stored now.
        platform: The campaign's.
        currency: The campaign's.

    Raises:
        InvalidRequest: They are of another platform or in another currency, or hold too much that is not known here.
    """
    named = settings.WhichOneof("platform")
    if named is not None and named != platform:
        raise InvalidRequest.field("campaign.settings", "PLATFORM_MISMATCH", f"must be those of {platform}")
    for field, value in getattr(settings, named).ListFields() if named else ():
        if field.message_type is not None and field.message_type.name == "Money" and value.currency_code != currency:
            path = f"campaign.settings.{named}.{field.name}.currency_code"
            raise InvalidRequest.field(path, "CURRENCY_MISMATCH", f"must be {currency}")
    plain = MessageToDict(settings, preserving_proto_field_name=True, use_integers_for_enums=True)
    _keep(settings, plain)
    return _merged(plain, before, settings)


def _unknown(settings: Message) -> bytes:
    """The bytes of fields that the descriptor does not have."""
    bare = type(settings)()
    bare.CopyFrom(settings)
    for field, _ in bare.ListFields():
        bare.ClearField(field.name)
    return bare.SerializeToString()


def _keep(settings: Message, plain: dict[str, Any]) -> None:
    unknown = _unknown(settings)
    if len(unknown) > _LARGEST_UNKNOWN:
        raise InvalidRequest.field("campaign.settings", "TOO_LARGE", "hold too much that this contract does not know")
    if unknown:
        plain[_UNKNOWN] = base64.b64encode(unknown).decode()
    for field, value in settings.ListFields():
        if field.message_type is not None and not field.is_repeated:
            _keep(value, plain[field.name])


def _restore(settings: Message, plain: Mapping[str, Any]) -> None:
    if _UNKNOWN in plain:
        settings.MergeFromString(base64.b64decode(plain[_UNKNOWN]))
    for field, value in settings.ListFields():
        if field.message_type is not None and not field.is_repeated:
            _restore(value, plain.get(field.name, {}))


def _merged(plain: dict[str, Any], before: Mapping[str, Any], settings: Message) -> dict[str, Any]:
    """Adds what is stored and has no field here, as far as the message that it is a part of is still there."""
    known = settings.DESCRIPTOR.fields_by_name
    for key, value in before.items():
        if key != _UNKNOWN and key not in known:
            plain.setdefault(key, value)
    for field, value in settings.ListFields():
        inner = before.get(field.name)
        if field.message_type is not None and not field.is_repeated and isinstance(inner, dict):
            _merged(plain[field.name], inner, value)
    return plain
