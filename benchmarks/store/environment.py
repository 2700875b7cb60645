"""The machine and the software behind a result. Only what is listed here is recorded: no user names, no home paths."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
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
_CPU_FOLDER = Path("/sys/devices/system/cpu")
_CGROUP_STATISTICS = Path("/sys/fs/cgroup/cpu.stat")


def describe_environment() -> dict[str, Any]:
    """Return machine, system, libraries and commit: what stays the same during a run."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": library_versions(RECORDED_LIBRARIES),
        "threads": _threads(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _uncommitted_changes(),
    }


def describe_conditions() -> dict[str, Any]:
    """Return what changes during a run and disturbs a clock: load, clock rates, throttling, time of day."""
    return {
        "time": now(),
        "load_average": [round(value, 2) for value in psutil.getloadavg()],
        "cpu_mhz": _cpu_megahertz(),
        "cpu_governor": _first_line(_CPU_FOLDER / "cpu0/cpufreq/scaling_governor"),
        "thermal_throttle_events": _thermal_throttle_events(),
        "cgroup_throttled_periods": _cgroup_throttled_periods(),
        "memory_available_gib": round(psutil.virtual_memory().available / 2**30, 1),
    }


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return the command that started this process; absolute paths become relative, or lose their folders."""
    program, *rest = sys.argv if arguments is None else arguments
    name = Path(program).name
    name = "consistentee" if name == "__main__.py" else name  # python -m benchmarks.cli
    return " ".join([name, *(_without_home(argument) for argument in rest)])


def _without_home(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and Path(value).is_absolute():
        return f"{option}={_relative(Path(value))}"
    return _relative(Path(argument)) if Path(argument).is_absolute() else argument


def _relative(path: Path) -> str:
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.name


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system can say
        return os.cpu_count() or 1


def _threads() -> dict[str, Any]:
    # Asked only if torch is loaded: recording an environment must not cost the seconds of loading it.
    torch = sys.modules.get("torch")
    return {
        "torch": torch.get_num_threads() if torch is not None else None,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _cpu_megahertz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return round(frequency.current) if frequency else None


def _thermal_throttle_events() -> int | None:
    counts = [_first_line(path) for path in _CPU_FOLDER.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    numbers = [int(count) for count in counts if count and count.isdigit()]
    return sum(numbers) if numbers else None


def _cgroup_throttled_periods() -> int | None:
    try:
        fields = dict(line.split() for line in _CGROUP_STATISTICS.read_text(encoding="utf-8").splitlines())
        return int(fields["nr_throttled"])
    except (OSError, ValueError, KeyError):
        return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _uncommitted_changes() -> bool | None:
    """Check whether code differs from the commit; changed results and texts do not count."""
    code = [str(REPOSITORY / path) for path in _CODE_PATHS]
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return None if changes is None else bool(changes)


def library_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the installed versions, without importing anything; None for what is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
