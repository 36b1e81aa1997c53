"""Fails when generated/ is not exactly what `make proto` would write."""

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path


def differences(compared: "filecmp.dircmp[str]") -> list[str]:
    """Paths that are missing, surplus or different."""
    found = [str(Path(compared.right, name)) for name in compared.right_only + compared.diff_files]
    found += [str(Path(compared.left, name)) for name in compared.left_only]
    for inner in compared.subdirs.values():
        found += differences(inner)
    return found


def main() -> None:
    """Generates into a temporary folder and compares."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["buf", "generate", "--output", folder], check=True)
        subprocess.run(["buf", "build", "--output", f"{folder}/generated/mrm/contract.binpb"], check=True)
        ignore = ["__pycache__", ".mypy_cache", ".ruff_cache"]
        found = differences(filecmp.dircmp("generated", str(Path(folder, "generated")), ignore=ignore))
    if found:
        sys.exit("generated/ is out of date, run `make proto`:\n  " + "\n  ".join(found))


if __name__ == "__main__":
    main()
