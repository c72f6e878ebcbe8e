"""Where the vectors of a linear-like module lie, and how to run it on rows, whatever its class.

A projection is any module that computes `W x + b` for a vector: `nn.Linear`, a 1x1 convolution,
GPT-2's `Conv1D`, a quantised or offloaded layer of any library. Its weight may be transposed,
packed, on another device or absent, so nothing here reads it: sizes come from attributes where the
class is torch's own, and from running the module otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankedit.errors import ProjectionError
from rankedit.models.asking import loaded, no_parameters, stand_in

_COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Largest relative deviation from additivity of a layer that still counts as linear: layers with
# 8-bit activations deviate by about 0.01, nonlinear ones by about 1.
_LINEAR_TOLERANCE = 0.1


@dataclass(frozen=True)
class Geometry:
    """Sizes of a projection and where the vectors lie in what it reads.

    Attributes:
        in_features: width of the vectors that it reads.
        out_features: width of the vectors that it writes.
        stride: one number for each spatial axis behind the channels of a 1x1 convolution; empty
            where the vectors lie along the last axis.
    """

    in_features: int
    out_features: int
    stride: tuple[int, ...] = ()

    def to_rows(self, inputs: Tensor) -> Tensor:
        """The vectors of an input along the last axis, only those that the layer looks at."""
        if not self.stride:
            return inputs
        for axis, step in enumerate(reversed(self.stride), start=1):
            if step != 1:
                inputs = inputs.transpose(-axis, -1)[..., ::step].transpose(-axis, -1)
        return inputs.movedim(-1 - len(self.stride), -1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Vectors along the last axis in the layout of the layer's output."""
        return rows.movedim(-1, -1 - len(self.stride)) if self.stride else rows

    def pixels(self, rows: Tensor) -> Tensor:
        """Rows `[n, width]` as n inputs of one pixel each."""
        return rows.reshape(*rows.shape, *(1 for _ in self.stride))


def innermost(module: nn.Module) -> nn.Module:
    """The layer below all wrappers that keep it as `base_layer` (the form of LoRA libraries)."""
    base = getattr(module, "base_layer", None)
    return innermost(base) if isinstance(base, nn.Module) else module


def geometry(module: nn.Module) -> Geometry:
    """Sizes and layout of a linear-like module.

    Args:
        module: a projection, or wrappers around one. Classes other than torch's linear and
            convolution layers are run on five small rows to see whether they are linear.

    Raises:
        ProjectionError: it is not linear, or cannot be run; says which.
    """
    inner = innermost(module)
    if isinstance(inner, nn.Linear):
        if inner.in_features < 1 or inner.out_features < 1:
            raise ProjectionError(
                f"geometry: {type(inner).__name__} has in_features={inner.in_features} and "
                f"out_features={inner.out_features}; run a lazy layer once before editing it."
            )
        if weight_dtype(inner).is_complex:
            raise ProjectionError(
                f"geometry: {type(inner).__name__} must have real weights, got "
                f"{weight_dtype(inner)}, beside which an edit would lose every imaginary part."
            )
        return Geometry(inner.in_features, inner.out_features)
    if isinstance(inner, nn.modules.conv._ConvNd):
        return _convolution(inner)
    return _probed(inner)


def is_projection(module: nn.Module) -> bool:
    """Whether `geometry` accepts the module."""
    try:
        geometry(module)
    except ProjectionError:
        return False
    return True


def _convolution(layer: nn.modules.conv._ConvNd) -> Geometry:
    pointwise = all(size == 1 for size in layer.kernel_size) and not layer.transposed
    unpadded = layer.padding == "valid" or all(pad == 0 for pad in layer.padding)
    if not pointwise or not unpadded or layer.groups != 1:
        raise ProjectionError(
            f"geometry: a convolution is a projection if its kernel is 1x1, without padding and "
            f"groups; got {layer}. Edit a linear layer or a 1x1 convolution beside it."
        )
    return Geometry(layer.in_channels, layer.out_channels, tuple(layer.stride))


def _probed(module: nn.Module) -> Geometry:
    for width in _possible_widths(module):
        outputs = _probe(module, width)
        if outputs is not None and _is_linear(outputs):
            return Geometry(width, outputs.shape[1])
    raise ProjectionError(
        f"geometry: {type(module).__name__} is not a projection: expected a module that maps rows "
        f"[n, in] linearly to rows [n, out], got {str(module)[:200]}. Name the linear layer itself."
    )


def _possible_widths(module: nn.Module) -> list[int]:
    declared = getattr(module, "in_features", None)
    if isinstance(declared, int) and declared > 0:
        return [declared]
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return list(dict.fromkeys(size for tensor in own if tensor.ndim == 2 for size in tensor.shape))


def seen_curved(module: nn.Module, width: int) -> bool:
    """Whether a module that can be run on rows of this width gives what no linear one does."""
    outputs = _probe(module, width)
    return outputs is not None and bool((outputs != outputs[0]).any()) and not _is_linear(outputs)


def _probe(module: nn.Module, width: int) -> Tensor | None:
    """Outputs for 0, a, b, a + b and 2a; None where the module cannot be run on such rows."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, width, generator=generator)
    rows = torch.stack([torch.zeros(width), first, second, first + second, 2 * first])
    try:
        with torch.no_grad():
            outputs: object = run(module, rows)
    # Any exception of a foreign forward means the same here: it does not take rows of this width.
    except Exception:
        return None
    fits = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.is_floating_point()
    return outputs.double() if isinstance(outputs, Tensor) and fits and len(outputs) == 5 else None


def _is_linear(outputs: Tensor) -> bool:
    first, second, both, twice = outputs[1:] - outputs[0]
    size = float(first.norm() + second.norm())
    error = float((both - first - second).norm() + (twice - 2 * first).norm())
    return 0 < size < float("inf") and error <= _LINEAR_TOLERANCE * size


# -------------------------------------------------------------------------------- running a layer


def run(module: nn.Module, rows: Tensor, layout: Geometry | None = None) -> Tensor:
    """Run a layer on rows `[n, in]` in its own dtype and on its own device, without touching it.

    `forward` is called rather than the module: offloading wraps `forward`, whereas what hangs on
    the call (forward hooks that collect statistics, a sharding library's first-call set-up) is not
    meant for a side question. Autocast, dropout of wrappers and gradients of the layer's own
    parameters are off; gradients of the rows are kept. Other threads may run the layer meanwhile.

    Returns:
        rows `[n, out]` in the dtype and on the device that the layer gives.

    Raises:
        ProjectionError: the layer fails in every dtype; carries its last error.
    """
    layout = layout or Geometry(rows.shape[1], 0)
    with loaded(module):
        device, asked = device_of(module, rows.device), stand_in(module, innermost(module))
        _compute_weight(asked)
        return no_parameters(lambda x: _attempt(asked, x, layout, device), rows)


def _compute_weight(asked: nn.Module) -> None:
    """Let torch's older weight norm, spectral norm and pruning compute the weight, as a call does.

    They keep the last one as an attribute, which is not what loading or training made of it since.
    """
    inner = innermost(asked)
    for hook in inner._forward_pre_hooks.values():
        own = any(cls.__module__.startswith("torch.nn.utils.") for cls in type(hook).__mro__)
        if own and torch.is_tensor(vars(inner).get("weight")):
            with torch.no_grad():
                hook(inner, ())


def _attempt(module: nn.Module, rows: Tensor, layout: Geometry, device: torch.device) -> Tensor:
    failure: RuntimeError | None = None
    for dtype in _dtypes(module):
        inputs = layout.pixels(rows.to(device=device, dtype=dtype))
        try:
            with torch.autocast(device.type, enabled=False):
                outputs: Tensor = module.forward(inputs)
        # Quantised layers do not say which dtype they compute in: the next one may be right.
        except RuntimeError as error:
            failure = error
            continue
        if not isinstance(outputs, Tensor):
            raise ProjectionError(
                f"geometry.run: {type(module).__name__} must give a tensor, got "
                f"{type(outputs).__name__}; name a layer inside it that gives its output alone."
            )
        return outputs.flatten(1) if layout.stride else outputs
    raise ProjectionError(
        f"geometry.run: {type(module).__name__} could not be run on rows {list(rows.shape)} "
        f"on {device} in any of {[str(dtype) for dtype in _dtypes(module)]}: {failure}"
    ) from failure


def device_of(module: nn.Module, default: torch.device | None = None) -> torch.device:
    """The device that a layer computes on, also where its weights wait elsewhere (offloading).

    Raises:
        ProjectionError: the weights are on the meta device and nothing brings them back.
    """
    inner = innermost(module)
    hook = getattr(inner, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        execution = getattr(part, "execution_device", None)
        if execution is not None:
            return torch.device(execution)
    tensors = [*inner.parameters(), *inner.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ProjectionError(
            f"geometry: a layer must have data, but weights of {type(inner).__name__} are on the "
            "meta device and no offloading hook loads them; load the checkpoint before editing."
        )
    return tensors[0].device if tensors else default or torch.device("cpu")


def _dtypes(module: nn.Module) -> list[torch.dtype]:
    """Dtypes to try: the weight's, if one can compute in it, then the usual ones."""
    own = weight_dtype(module)
    computes = own.is_floating_point and own.itemsize >= 2
    return list(dict.fromkeys([own, *_COMPUTE_DTYPES] if computes else _COMPUTE_DTYPES))


def weight_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the innermost layer's weight; float32 if it has none."""
    inner = innermost(module)
    computed = getattr(inner._modules.get("parametrizations"), "weight", None)
    # To read a parametrised weight computes it, which spectral norm counts as a step of training.
    weight = next(computed.parameters(), None) if computed else getattr(inner, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) else torch.float32
