"""Which fields of a change are recorded, and how."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from mrm.accounts.v1 import client_pb2
from mrm.campaigns.v1 import campaign_pb2
from mrm.common.v1 import money_pb2
from server.rpc.auditing import audit_diff
from storage.postgres.audit import REDACTED


def test_paths_lead_to_the_fields_that_differ() -> None:
    before = client_pb2.Client(display_name="a", industry="x", etag="1")
    before.settings.time_zone = "Europe/Moscow"
    before.settings.extra.update({"kept": 1, "two words": [1], "gone": True})
    after = client_pb2.Client()
    after.CopyFrom(before)
    after.etag = "2"
    after.update_time.GetCurrentTime()
    assert audit_diff(before, after) == {}
    after.display_name = "b"
    after.industry = ""
    after.settings.time_zone = "Asia/Omsk"
    after.settings.extra.update({"two words": [2]})
    del after.settings.extra["gone"]
    assert audit_diff(before, after) == {
        "display_name": ["a", "b"],
        "industry": ["x", None],
        "settings.extra.`two words`": [[1], [2]],
        "settings.extra.gone": [True, None],
        "settings.time_zone": ["Europe/Moscow", "Asia/Omsk"],
    }


def test_money_is_one_value_and_whole_resources_come_and_go() -> None:
    campaign = campaign_pb2.Campaign(display_name="a", daily_budget=money_pb2.Money(currency_code="RUB", micros=10**12))
    shown = {"currency_code": "RUB", "micros": "1000000000000"}
    assert audit_diff(None, campaign) == {"daily_budget": [None, shown], "display_name": [None, "a"]}
    assert audit_diff(campaign, None) == {"daily_budget": [shown, None], "display_name": ["a", None]}


def account() -> type[Message]:
    """A message with secrets wherever a field can be."""
    file = descriptor_pb2.FileDescriptorProto(name="secretive.proto", package="secretive", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    login = file.message_type.add(name="Login")
    login.field.add(name="user", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    secret = login.field.add(name="password", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    secret.options.debug_redact = True
    top = file.message_type.add(name="Account")
    entry = top.nested_type.add(name="ByNameEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    for holder, name, number, label, of in [
        (entry, "value", 2, kinds.LABEL_OPTIONAL, "Login"),
        (top, "one", 1, kinds.LABEL_OPTIONAL, "Login"),
        (top, "many", 2, kinds.LABEL_REPEATED, "Login"),
        (top, "by_name", 3, kinds.LABEL_REPEATED, "Account.ByNameEntry"),
        (top, "hidden", 4, kinds.LABEL_OPTIONAL, "Login"),
    ]:
        field = holder.field.add(name=name, number=number, type=kinds.TYPE_MESSAGE, label=label)
        field.type_name = f".secretive.{of}"
        field.options.debug_redact = name == "hidden"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[attr-defined]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("secretive.Account"))


def test_secrets_are_left_out_wherever_they_stand() -> None:
    kind = account()
    before, after = kind(), kind()
    for message, password in ((before, "hush-1"), (after, "hush-2")):
        for login in (message.one, message.many.add(), message.by_name["a"], message.hidden):  # type: ignore[attr-defined]
            login.user, login.password = "ann", password
    diff = audit_diff(before, after)
    assert "hush" not in str(diff)
    assert diff["one.password"] is diff["hidden"] is REDACTED
    assert audit_diff(None, after)["one.user"] == [None, "ann"]
    assert "hush" not in str(audit_diff(None, after))
