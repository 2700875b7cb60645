"""A second device on any machine, written in Python: it refuses what a GPU refuses, and counts what a GPU waits for.

Tensors of the device keep their numbers on the CPU and answer every operation there, so that results equal the CPU's.
As on a GPU, they cannot be mixed with tensors of the CPU. Copies to and from the device are counted, and so are
operations whose result makes the host wait.

The device holds for the whole process, so it has one of its own: ``pytest -p second_device``. There
``torch.accelerator`` finds it, and models are trained and run on it.
"""
# ruff: noqa: SLF001 (torch's devices in Python are private)

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration

NAME = "second"
REGISTER = "_setup_privateuseone_for_python_backend"
MISSING = None if hasattr(backend_registration, REGISTER) else f"torch {torch.__version__} has no devices in Python"

INDEXED = {"index": 1, "_unsafe_index": 1, "index_put": 1, "index_put_": 1, "_index_put_impl_": 1}
"""Operations that take indices of the CPU, which are copied, and the place of the indices among their arguments."""
WAITING = {
    *("_local_scalar_dense", "equal", "bincount", "nonzero", "masked_select"),
    *("_unique2", "unique_consecutive", "unique_dim", "repeat_interleave"),
}
"""Operations whose result is on the host, or of a size that is known only once the device has computed it."""

COPIES = ("copy_", "_to_copy")
_work: Counter[str] = Counter()
_libraries: list[torch.library.Library] = []


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count ``operations``, copies ``to device`` and ``to host``, and ``reads``, which wait for the device too."""
    before, work = _work.copy(), Counter[str]()
    yield work
    work.update(_work - before)


class DeviceTensor(Tensor):
    """A tensor of the device; ``host`` has its numbers."""

    host: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        if torch.is_inference_mode_enabled():  # else it is called for the parts of an operation alone
            found = operation.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """Copy the numbers to the host, as torch does itself for a device that is not written in Python."""
        return self.cpu().tolist()

    @property
    def data(self) -> Tensor:
        """The tensor without its gradient; a module that changes its type puts new numbers there."""
        return self.detach()

    @data.setter
    def data(self, other: "DeviceTensor") -> None:
        Tensor.data.__set__(self, other)
        self.host = other.host

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory of the numbers, by which files of weights tell what is tied."""
        return self.host.untyped_storage()

    def __repr__(self) -> str:
        return f"DeviceTensor({self.host})"


def _on_device(host: Tensor) -> DeviceTensor:
    """Return a tensor of the device that shares its memory with one of the CPU."""
    as_usual = host.is_inference() == torch.is_inference_mode_enabled()
    with nullcontext() if as_usual else torch.inference_mode(host.is_inference()):
        tensor = Tensor._make_wrapper_subclass(
            DeviceTensor,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
    tensor.host = host
    return tensor


@cache
def _name_of(operation: Any) -> str:
    return operation.name().removeprefix("aten::").partition(".")[0]


def _run(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    name, given = _name_of(operation), dict[int, Tensor]()  # by the identity of the tensor on the host
    if name == "_fused_sdp_choice":
        return torch.nn.attention.SDPBackend.MATH.value

    def on_host(value: Any) -> Any:
        if isinstance(value, Tensor):
            host = value.host if isinstance(value, DeviceTensor) else value
            given[id(host)] = value
            return host
        return [on_host(one) for one in value] if isinstance(value, list | tuple) else value

    def back(value: Any) -> Any:
        if isinstance(value, Tensor):
            return given[id(value)] if id(value) in given else _on_device(value)
        return type(value)(map(back, value)) if isinstance(value, list | tuple) else value

    hosts, options = on_host(args), {key: on_host(value) for key, value in kwargs.items()}
    place = kwargs.get("device")
    stays = place is None or place.type == NAME
    tensors = list(given.values())
    _check(name, args, kwargs, tensors)
    _count(name, args, tensors, stays)
    if place is not None:
        options["device"] = torch.device("cpu")
    found = operation(*hosts, **options)
    if stays:
        return back(found)
    return found.clone() if id(found) in given else found


def _indices(name: str, args: Sequence[Any]) -> list[Tensor]:
    return [index for index in args[INDEXED[name]] if index is not None] if name in INDEXED else []


def _check(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Tensor]) -> None:
    """Raise RuntimeError for a generator of the CPU, and for a tensor of it that is neither an index nor a number."""
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu'")
    allowed = {id(index) for index in _indices(name, args) if isinstance(args[0], DeviceTensor)}
    foreign = (t for t in given if not isinstance(t, DeviceTensor) and t.dim() and id(t) not in allowed)
    if name not in COPIES and any(True for _ in foreign):
        found = f"found at least two devices, {NAME}:0 and cpu! ({name})"
        raise RuntimeError(f"Expected all tensors to be on the same device, but {found}")


def _count(name: str, args: Sequence[Any], given: Sequence[Tensor], stays: bool) -> None:
    _work["operations"] += 1
    _work["reads"] += name in WAITING
    if name in COPIES:
        from_device = isinstance(given[-1], DeviceTensor)
        to_device = isinstance(given[0], DeviceTensor) and stays
        _work["to device"] += to_device and not from_device
        _work["to host"] += from_device and not to_device
    fills = name.startswith(("index_put", "_index_put")) and args[2].dim() == 0  # a mask is filled without a read
    for index in _indices(name, args):
        on_device = isinstance(index, DeviceTensor)
        _work["to device"] += not on_device
        _work["reads"] += on_device and index.dtype == torch.bool and not fills


class _Module(getattr(backend_registration, "_DummyBackendModule", object)):
    """``torch.second``. The device draws from the generator of the CPU."""

    get_rng_state, set_rng_state = staticmethod(torch.get_rng_state), staticmethod(torch.set_rng_state)


def _moved_together(move: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Tie weights again that were tied: torch moves weights in place only between devices of its own."""

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
        for part in module.modules():
            for name, weight in part._parameters.items():
                places.setdefault(weight, []).append((part, name))
        move(module, *args, **kwargs)
        for (first, own), *others in places.values():
            for part, name in others:
                part._parameters[name] = first._parameters[own]
        return module

    return to


def pytest_configure() -> None:
    """Register the device, for the rest of the process."""
    getattr(backend_registration, REGISTER)(NAME, backend_module=_Module())
    nn.Module.to = _moved_together(nn.Module.to)
    torch.accelerator.synchronize = lambda device=None: None  # there is nothing to wait for, and no way to say so
    aten = torch.library.Library("aten", "IMPL")
    for name in ("arange", "arange.start", "arange.start_step", "copy_", "empty.memory_format", "empty_strided"):
        operation = getattr(getattr(torch.ops.aten, name.partition(".")[0]), name.partition(".")[2] or "default")
        aten.impl(name, lambda *args, of=operation, **kwargs: _run(of, args, kwargs), "PrivateUse1")
    _libraries.append(aten)  # it holds as long as it is kept
