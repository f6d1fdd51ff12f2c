"""What `uv run resq demo` and the tests download on Linux x86-64, by the lock: packages and bytes.

uv run --group dev python benchmarks/environment.py
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any

from common import ROOT, machine, parser, write
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

TAGS = {tag: rank for rank, tag in enumerate(sys_tags())}
CUDA = ("torch", "triton", "cuda-", "nvidia-")


def wanted(*groups: str) -> Iterator[tuple[str, str]]:
    """Name and version of what uv installs for the default group and these, on this machine."""
    options = [word for group in groups for word in ("--group", group)]
    command = ["uv", "export", "--quiet", "--no-hashes", "--no-annotate", "--no-header", "--no-emit-project", *options]
    for line in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement.name, str(requirement.specifier).removeprefix("==")


def download(package: dict[str, Any]) -> int:
    """Bytes of the wheel that fits this machine best, or of the sources."""
    ranked = []
    for wheel in package.get("wheels", ()):
        tags = parse_wheel_filename(wheel["url"].rpartition("/")[2])[3]
        ranked += [(TAGS[tag], wheel["size"]) for tag in tags if tag in TAGS]
    return min(ranked)[1] if ranked else package["sdist"]["size"]


def measure(*groups: str) -> dict[str, Any]:
    """Packages, megabytes, and how many of them are torch and the CUDA libraries that its wheel is linked against."""
    locked = {
        (package["name"], package.get("version")): package
        for package in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    }
    sizes = {name: download(locked[name, version]) for name, version in wanted(*groups)}
    cuda = sum(size for name, size in sizes.items() if name.startswith(CUDA))
    return {
        "packages": len(sizes),
        "megabytes": round(sum(sizes.values()) / 1e6),
        "torch_and_cuda_megabytes": round(cuda / 1e6),
    }


def main() -> None:
    """Read the lock and write what it says."""
    args = parser(__doc__, "environment.json").parse_args()
    found = {"machine": machine(), "demo": measure(), "tests": measure("dev"), "site": measure("docs")}
    write(args.out, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
