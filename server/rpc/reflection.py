"""Reflection with comments: the contract's own text is the manual, so grpcurl must be able to show it.

Generated Python code carries no comments, and the installed reflection service cannot find methods by name. This one
answers from the compiled contract that `make proto` keeps beside the generated code.
"""

from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

IMAGE = "contract.binpb"


class CommentedReflection(ReflectionServicer):  # type: ignore[misc]
    """Serves the contract's files with their comments, and everything else as the installed service does.

    Args:
        service_names: Full names of the services to list.
    """

    def __init__(self, service_names: Iterable[str]) -> None:
        super().__init__(service_names)
        image = descriptor_pb2.FileDescriptorSet.FromString(resources.files("mrm").joinpath(IMAGE).read_bytes())
        self._files = {file.name: file for file in image.file}
        self._symbols = {symbol: file.name for file in image.file for symbol in _symbols(file)}

    def _file_by_filename(self, request: Any, filename: str) -> Any:
        if filename not in self._files:
            return super()._file_by_filename(request, filename)
        return self._answer(request, filename)

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        filename = self._symbols.get(fully_qualified_name)
        if filename is None:
            return super()._file_containing_symbol(request, fully_qualified_name)
        return self._answer(request, filename)

    def _answer(self, request: Any, filename: str) -> Any:
        needed: dict[str, bytes] = {}
        waiting = [filename]
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed[name] = self._files[name].SerializeToString()
                waiting += self._files[name].dependency
        return reflection_pb2.ServerReflectionResponse(
            file_descriptor_response=reflection_pb2.FileDescriptorResponse(file_descriptor_proto=needed.values()),
            original_request=request,
        )


def _symbols(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """Full names of everything a file declares."""
    package = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _message_symbols(message, package)
    for enum in file.enum_type:
        yield package + enum.name
        yield from (package + value.name for value in enum.value)
    for service in file.service:
        yield package + service.name
        yield from (f"{package}{service.name}.{method.name}" for method in service.method)
    yield from (package + extension.name for extension in file.extension)


def _message_symbols(message: descriptor_pb2.DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield name
    yield from (f"{name}.{field.name}" for field in message.field)
    for inner in message.nested_type:
        yield from _message_symbols(inner, f"{name}.")
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
        yield from (f"{name}.{value.name}" for value in enum.value)
