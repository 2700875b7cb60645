"""The machine and the software behind a result. Only what is listed here is recorded: no user names, no home paths."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

RECORDED_LIBRARIES = (
    "consistentee",
    "datasets",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
REPOSITORY = Path(__file__).parents[2]
_CODE_PATHS = ("consistentee", "baselines", "benchmarks", "pyproject.toml")


def describe_environment() -> dict[str, Any]:
    """Describe machine, system, libraries and commit, which stay the same during a run."""
    code = [str(REPOSITORY / path) for path in _CODE_PATHS]  # changed results and texts do not count
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *code)
    torch = sys.modules.get("torch")  # recording an environment must not cost the seconds of loading it
    libraries: dict[str, str | None] = dict.fromkeys(RECORDED_LIBRARIES)
    for name in libraries:
        with suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch is not None else [],
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": libraries,
        "threads": {
            "torch": torch.get_num_threads() if torch is not None else None,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
    }


def describe_conditions() -> dict[str, Any]:
    """Describe what changes during a run and disturbs a clock."""
    return {
        "time": now(),
        "load_average": [round(value, 2) for value in psutil.getloadavg()],
        "memory_available_gib": round(psutil.virtual_memory().available / 2**30, 1),
    }


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def usable_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system can say
        return os.cpu_count() or 1


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return the command that started this process; absolute paths lose their folders."""
    program, *rest = sys.argv if arguments is None else arguments
    name = Path(program).name
    name = "consistentee" if name == "__main__.py" else name  # python -m benchmarks.cli
    return " ".join([name, *(re.sub(r"(^|=)/.*/", r"\1", argument) for argument in rest)])


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None
