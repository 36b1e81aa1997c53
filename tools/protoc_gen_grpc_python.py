"""protoc plugin that runs the grpc_python generator inside grpcio-tools, which ships no plugin binary of its own."""

import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from grpc_tools import protoc


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Generates `*_pb2_grpc.py` for every requested file that declares a service."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    requested = set(request.file_to_generate)
    wanted = [file.name for file in request.proto_file if file.name in requested and file.service]
    if not wanted:
        return response
    with tempfile.TemporaryDirectory() as folder:
        descriptors, out = Path(folder, "set.binpb"), Path(folder, "out")
        out.mkdir()
        descriptors.write_bytes(descriptor_pb2.FileDescriptorSet(file=request.proto_file).SerializeToString())
        options = [f"--grpc_python_opt={request.parameter}"] if request.parameter else []
        if protoc.main(["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *options, *wanted]):
            response.error = "the grpc_python generator failed"
            return response
        for path in sorted(out.rglob("*_pb2_grpc.py")):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text())
    return response


if __name__ == "__main__":
    sys.stdout.buffer.write(
        generate(plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())).SerializeToString()
    )
