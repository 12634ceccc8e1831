"""A CUDA device for machines without one: tensors that have all but data.

`FakeCuda` fakes what is on `CUDA` and leaves the CPU's tensors real. Shapes, strides, dtypes and
devices are followed through PyTorch's own rules, forward and backward. It raises where two devices
meet and where a value is read, keeps the copies that make the CPU wait for the GPU, refuses an
optimiser's state or gradient of another layout than its parameter's, and counts the operations.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from data.items import blur_matrix
from models.losses import cosine_transform
from utils.filters import _kernel_on

CUDA = torch.device("cuda", 0)
CACHES = _kernel_on, cosine_transform, blur_matrix  # of tensors, by device
ATEN = torch.ops.aten
WITHOUT_KERNEL = {  # memory, and what only looks like an operation
    ATEN.empty.memory_format, ATEN.empty_like.default, ATEN.empty_strided.default,
    ATEN.new_empty.default, ATEN.new_empty_strided.default, ATEN._unsafe_view.default,
    ATEN.lift_fresh.default, ATEN.record_stream.default, torch.ops.prim.device.default,
}  # fmt: skip


def launches(func: OpOverload) -> bool:
    """Whether the operation runs something on the device: all but views and allocations."""
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
    views = any(r.alias_info is not None for r in func._schema.returns)
    return writes or not (views or func in WITHOUT_KERNEL)


class FakeCuda(FakeTensorMode):
    """waits: copies that made the CPU wait. operations: how often each ran; what one launches as
    several kernels, such as an optimiser's step, counts once."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []
        self.operations: Counter[str] = Counter()
        self.copied: list[Tensor] = []  # pinned memory that no event has vouched for yet
        self.depth = 0

    def forget(self) -> None:
        self.waits.clear()
        self.operations.clear()

    def dispatch(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is ATEN.copy_.default and len(args) == 3:
            args, kwargs = args[:2], {"non_blocking": args[2]}
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if func is ATEN._pin_memory.default:
            return args[0]
        to = kwargs.get("device")
        to = torch.device(to) if to is not None else None
        if to is not None and to.type == "meta":  # what C++ takes CUDA for, see `fake_cuda`
            kwargs["device"] = to = CUDA
        if not (to is not None and to.type == "cuda") and not any(map(_is_fake, args)):
            return func(*args, **kwargs)
        if self.depth:  # part of another operation
            return super().dispatch(func, types, args, kwargs)
        self.depth += 1
        try:
            if launches(func):
                self.operations[func.overloadpacket.__name__] += 1
            if func is ATEN.copy_.default and self._left_for_later(*args[:2], kwargs):
                return args[0]
            self._check(func, args, kwargs, to)
            return super().dispatch(func, types, args, kwargs)
        finally:
            self.depth -= 1

    def _left_for_later(self, target: Tensor, source: Tensor, kwargs: dict) -> bool:
        """A queued copy into pinned memory: NaN there, until an event says that it is done."""
        queued = kwargs.get("non_blocking") and not _is_fake(target) and _is_fake(source)
        if queued:
            target.fill_(torch.nan)
            self.copied.append(target)
        return bool(queued)

    def _check(self, func: OpOverload, args: Any, kwargs: dict, to: torch.device | None) -> None:
        between = None
        if func is ATEN._to_copy.default and to is not None:
            between = args[0].device.type, to.type
        elif func is ATEN.copy_.default:
            between = args[1].device.type, args[0].device.type
        if between and len(set(between)) > 1 and not kwargs.get("non_blocking"):
            # Also from pinned memory: without non_blocking, it is waited for.
            self.waits.append(f"{between[0]} to {between[1]}")
        if func.overloadpacket in (ATEN.index, ATEN.index_put, ATEN.index_put_) and any(
            i is not None and i.device != args[0].device for i in args[1]
        ):
            self.waits.append("an index on the CPU")
        if func.overloadpacket.__name__ == "_fused_adam_":
            # As the CUDA kernel does; the CPU's takes the layout for granted.
            for p, *others in zip(*args[:4], strict=True):
                for x in others:
                    if (x.stride(), x.dtype, x.device) != (p.stride(), p.dtype, p.device):
                        raise RuntimeError("params, grads and state must have one layout")


def _is_fake(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return any(map(_is_fake, x))
    return isinstance(x, FakeTensor)


class _Autocast(TorchFunctionMode):
    """CUDA's autocast, which C++ leaves out for what it takes for `meta`."""

    LOWER = frozenset({
        torch.nn.functional.linear, torch.conv2d, torch.conv_transpose2d, torch.bmm, torch.matmul,
        torch.mm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm,
    })  # fmt: skip

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None):
        if func in self.LOWER and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            args = [x.to(dtype) if _is_fake(x) and x.dtype == torch.float32 else x for x in args]
        return func(*args, **(kwargs or {}))


class _Generator(torch.Generator):
    device, offset = CUDA, 0

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        assert offset % 4 == 0  # as CUDA's asks
        self.offset = offset


class _Event:
    """In place of torch.cuda.Event: waiting for it makes what was copied before it readable."""

    mode: FakeCuda

    def record(self, stream: object = None) -> None:
        self.copied, self.mode.copied = self.mode.copied, []

    def synchronize(self) -> None:
        for memory in self.copied:
            memory.zero_()


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Inside the block, `CUDA` is there, of compute capability 9.0; what is on it has no data."""
    mode = FakeCuda()
    make, real = torch.Tensor._make_subclass, torch.Generator

    def hidden(*args: Any, **kwargs: Any) -> Tensor:
        # C++ sees `meta`, or autograd would look for the streams of a GPU that is not there.
        kwargs.pop("dispatch_device", None)
        return make(*args, **kwargs)

    def generator(device: torch.device | str = "cpu") -> torch.Generator:
        return _Generator() if torch.device(device).type == "cuda" else real(device)

    def patch(target: object, name: str, value: object) -> None:
        patches.enter_context(mock.patch.object(target, name, value))

    def always(value: object) -> Callable:
        return lambda *_, **__: value

    with contextlib.ExitStack() as patches:
        patch(torch.Tensor, "_make_subclass", staticmethod(hidden))
        patches.enter_context(
            mock.patch.object(FakeTensor, "is_cuda", property(lambda x: x.device.type == "cuda"))
        )
        patch(torch, "Generator", generator)
        patch(torch.cuda, "current_stream", always(None))
        patch(torch.cuda, "Event", type("Event", (_Event,), {"mode": mode}))
        patch(torch.cuda, "is_bf16_supported", always(True))
        patch(torch.cuda.amp.common, "amp_definitely_not_available", always(False))
        with mode, _Autocast():
            for cache in CACHES:
                patches.callback(cache.cache_clear)
                cache.cache_clear()
            yield mode
