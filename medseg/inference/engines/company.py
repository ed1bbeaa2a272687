"""A window alone on a CPU, computed as torch computes it in company.

For a batch of one torch takes other convolutions where planes are small (`use_mkldnn` in ATen's Convolution.cpp), and
MKL multiplies a vector where a layer has one row. Both have other last bits, and such convolutions take up to twice the
time. With what it would take for two windows, one by itself has the bits, and nearly the speed, that it has in a batch:

    batch of one     1 x 64 x 12 x 12 x 12 -> slow convolution
    batch of two     2 x 64 x 12 x 12 x 12 -> oneDNN                 alone, too, within `AsInCompany`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_TRANSPOSED: Final = (torch.conv_transpose2d, torch.conv_transpose3d)
_ONEDNN: Final = torch._C._ConvBackend.Mkldnn  # type: ignore[attr-defined]
_PLAIN: Final = (torch.conv2d, torch.conv3d)


class AsInCompany(TorchFunctionMode):
    """Within it batches of one are computed as part of larger ones would be; in fp32, on a CPU."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input")
        if isinstance(given, Tensor) and len(args) > 1 and given.ndim > 1 and len(given) == 1:
            if function in _PLAIN or function in _TRANSPOSED:
                return _convolved(function, given, *args[1:], **kwargs)
            if function is functional.linear and given.ndim == 2:
                return _of_two(function, given, *args[1:], **kwargs)
        return function(*args, **kwargs)


def _of_two(function: Callable[..., Tensor], windows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return function(windows.expand(2, *windows.shape[1:]), *args, **kwargs)[:1]


def _convolved(function: Callable[..., Tensor], windows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    how = _how(function in _TRANSPOSED, windows.ndim - 2, *args, **kwargs)
    if how is None or not (windows.is_contiguous() and how.weight.is_contiguous()):
        return _of_two(function, windows, *args, **kwargs)
    alone, in_company = how.backend(windows), how.backend(windows.expand(2, *windows.shape[1:]))
    if alone == in_company:
        return function(windows, *args, **kwargs)
    if not how.transposed and in_company == _ONEDNN:
        sizes = how.padding, how.stride, how.dilation
        return torch.mkldnn_convolution(windows, how.weight, how.bias, *sizes, how.groups)
    return _of_two(function, windows, *args, **kwargs)


class _Convolution(NamedTuple):
    transposed: bool
    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    output_padding: list[int]
    groups: int

    def backend(self, windows: Tensor) -> Any:
        """What torch takes for them."""
        sizes = self.stride, self.padding, self.dilation, self.transposed, self.output_padding
        return torch._C._select_conv_backend(windows, self.weight, self.bias, *sizes, self.groups)


def _how(transposed: bool, dims: int, weight: Tensor, *args: Any, **kwargs: Any) -> _Convolution | None:
    """The arguments of a convolution behind its input; None where its padding is a word."""
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    of = {**dict(zip(("bias", "stride", "padding", *names), args, strict=False)), **kwargs}
    if isinstance(of.get("padding"), str):
        return None

    def along(name: str, default: int) -> list[int]:
        size = of.get(name, default)
        sizes = [size] if isinstance(size, int) else list(size)
        return sizes * dims if len(sizes) == 1 else sizes

    sizes = along("stride", 1), along("padding", 0), along("dilation", 1), along("output_padding", 0)
    return _Convolution(transposed, weight, of.get("bias"), *sizes, of.get("groups", 1))
