"""Collects the .proto files of others that ours import into third_party/proto, which git ignores.

Google's come with the installed googleapis-common-protos. `buf/validate/validate.proto` is in no wheel, only in the
source distribution of protovalidate; its hash is checked.
"""

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

TARGET = Path("third_party/proto")
GOOGLE = ["google/rpc/status.proto", "google/rpc/error_details.proto"]
VALIDATE = "buf/validate/validate.proto"
VALIDATE_SHA256 = "2a3e0c64526998fe77d15033a2cc7d86d9f3770d89d960dec09bcc150a2487c1"


def copy_google() -> None:
    """Copies Google's protos from site-packages."""
    root = Path(str(importlib.metadata.distribution("googleapis-common-protos").locate_file("")))
    for name in GOOGLE:
        (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, TARGET / name)


def digest(path: Path) -> str:
    """SHA-256 of a file, empty if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def fetch_validate() -> None:
    """Takes validate.proto out of protovalidate's source distribution, unless it is here already."""
    target = TARGET / VALIDATE
    if digest(target) == VALIDATE_SHA256:
        return
    version = importlib.metadata.version("protovalidate")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["unearth", f"protovalidate=={version}", "--no-binary", "--download", folder],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        found = next(Path(folder).glob(f"*/proto/{VALIDATE}"), None)
        if found is None or digest(found) != VALIDATE_SHA256:
            sys.exit(f"validate.proto of protovalidate {version} is not the expected one: {digest(found or target)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)


if __name__ == "__main__":
    copy_google()
    fetch_validate()
