"""The contract's own rules, checked over every file, RPC, field and enum of it."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import EnumDescriptor, FileDescriptor, MethodDescriptor, ServiceDescriptor

from mrm.common.v1 import error_reason_pb2, options_pb2
from server.accounts.permissions import ALL, KEY_ONLY, ROLE_PERMISSIONS
from server.app import SERVICES
from server.rpc.pipeline import Pipeline
from server.rpc.policy import PolicyMissing, policies, read_policy

ROOT = Path(__file__).parents[1]
GENERATED = sorted((ROOT / "generated").rglob("*_pb2*.py"))
MODULES = [str(path.relative_to(ROOT / "generated").with_suffix("")).replace("/", ".") for path in GENERATED]


def files() -> Iterator[FileDescriptor]:
    for name in MODULES:
        if name.startswith("mrm.") and name.endswith("_pb2"):
            yield importlib.import_module(name).DESCRIPTOR


def methods() -> list[MethodDescriptor]:
    return [method for file in files() for service in file.services_by_name.values() for method in service.methods]


@pytest.mark.parametrize("module", MODULES)
def test_every_stub_imports_by_itself(module: str) -> None:
    code = f"import sys; sys.path.insert(0, 'generated'); import {module}"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=ROOT)


def test_the_server_knows_every_service() -> None:
    declared = {service.full_name for file in files() for service in file.services_by_name.values()}
    assert declared == {service.full_name for service in SERVICES}


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_every_rpc_declares_a_policy(method: MethodDescriptor) -> None:
    policy = read_policy(method)
    assert policy.permission in ALL | {"PUBLIC", "AUTHENTICATED"}
    reading = "Get List Check Query Watch Export Diff Forecast Compare Download Render Search Suggest Find"
    changes = not method.name.startswith(tuple(reading.split()))
    assert changes == (policy.idempotency != "READ_ONLY")
    if method.name.startswith(("Create", "Update", "Delete", "Revoke")):
        assert policy.idempotency == "REQUEST_ID"


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_every_mutation_can_be_retried(method: MethodDescriptor) -> None:
    replayed = read_policy(method).idempotency == "REQUEST_ID"
    assert ("request_id" in method.input_type.fields_by_name) == replayed
    if method.name.startswith("Update"):
        resource = method.input_type.fields[0].message_type
        assert "etag" in resource.fields_by_name
        assert "update_mask" in method.input_type.fields_by_name


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_every_list_pages(method: MethodDescriptor) -> None:
    if method.name.startswith("List"):
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
        assert "next_page_token" in method.output_type.fields_by_name


def test_a_method_without_policy_stops_the_server() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="bare.proto", package="bare", syntax="proto3")
    file.message_type.add(name="Request")
    service = file.service.add(name="BareService")
    service.method.add(name="Do", input_type=".bare.Request", output_type=".bare.Request")
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()
    pool.Add(file)  # type: ignore[attr-defined]
    bare: ServiceDescriptor = pool.FindServiceByName("bare.BareService")
    with pytest.raises(PolicyMissing, match=r"bare\.BareService\.Do"):
        policies(bare)


async def test_a_method_without_code_stops_the_server() -> None:
    pipeline = Pipeline(None, None, None)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="Login"):
        pipeline.register(grpc.aio.server(), SERVICES[0], [object()])


def test_every_enum_begins_unspecified() -> None:
    def enums(file: FileDescriptor) -> Iterator[EnumDescriptor]:
        yield from file.enum_types_by_name.values()
        for message in file.message_types_by_name.values():
            yield from message.enum_types

    for file in files():
        for enum in enums(file):
            assert enum.values_by_number[0].name.endswith("_UNSPECIFIED"), enum.full_name


def test_roles_hold_only_known_rights_and_none_of_a_key() -> None:
    assert set(ROLE_PERMISSIONS) == {"admin", "pm", "media_planner", "analyst", "account_manager", "specialist"}
    for permissions in ROLE_PERMISSIONS.values():
        assert permissions <= ALL - KEY_ONLY
    assert {f"PERMISSION_{name}" for name in ALL} <= set(options_pb2.Permission.keys())


def test_every_error_reason_is_raised_somewhere() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name:
        short = name.removeprefix("ERROR_REASON_")
        assert short == "UNSPECIFIED" or f'"{short}"' in code, name
