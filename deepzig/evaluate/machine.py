"""Describes this machine: the label of every measurement. Called by `reports`, `cli` and bench."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def now() -> str:
    """Date and time, as stamped on results."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def describe_machine() -> dict[str, Any]:
    """CPU, cores, memory and system."""
    import psutil

    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_software() -> dict[str, Any]:
    """Kernels picked, what was forced by an environment variable, and versions."""
    import numpy as np

    from deepzig import _kernels

    return {
        "kernels": dict(_kernels.ACTIVE),
        "kernels_for_prompts": dict(_kernels.FOR_PROMPTS),  # where they are others
        "forced": {name: os.environ[name] for name in ("DEEPZIG_ISA", "DEEPZIG_KERNEL") if name in os.environ},
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """The name that the system gives, with family and model, since virtual machines often name only the maker."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", info, re.MULTILINE))
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name'].strip()} (family {fields.get('cpu family')}, model {fields.get('model')})"
