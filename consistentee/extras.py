"""The extras of the installation: parts that few users need, by the packages that each of them brings."""

from importlib.metadata import distributions, requires
from typing import Literal

from packaging.requirements import Requirement

from consistentee.errors import UserError

Extra = Literal["bench", "cluster", "gguf", "lora", "lm-eval"]


def check_extra(extra: Extra, purpose: str) -> None:
    """Raise UserError if a package of an extra is not installed; ``purpose`` is what needs it."""
    missing = [name for name in packages_of(extra) if not any(distributions(name=name))]
    if missing:
        raise UserError(f'{purpose} needs {", ".join(missing)}; run: pip install "consistentee[{extra}]"')


def packages_of(extra: Extra) -> list[str]:
    """Return the packages of an extra, as the metadata of this installation lists them."""
    wanted = map(Requirement, requires("consistentee") or ())
    return [each.name for each in wanted if each.marker is not None and each.marker.evaluate({"extra": extra})]
