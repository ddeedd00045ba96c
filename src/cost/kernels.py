"""What real kernels do that fake ones do not: memory that they take by themselves, fused LSTMs, a GPU's choices."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Run in float32 by autocast on a GPU and not on a CPU ("CUDA Ops that autocast to float32", torch's documentation).
FLOAT32_ON_GPU = ("layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax")


def scratch(func: Any, args: Any) -> int:
    """Bytes that a CPU kernel takes and gives back by itself: oneDNN's gradient of a convolution's weight is made in a
    layout of its own, then copied; and grouped ones copy what has not its channels innermost."""
    aten = torch.ops.aten
    if func is aten.convolution.default:
        return copied(args[0]) if args[8] > 1 else 0
    if func is not aten.convolution_backward.default:
        return 0
    grad, x, w, groups = args[0], args[1], args[2], args[9]
    if groups == 1:
        return nbytes(w)
    return copied(grad) + copied(x) + nbytes(w) + in_blocks(grad, x, w, groups)


def in_blocks(grad: Tensor, x: Tensor, w: Tensor, groups: int) -> int:
    """Of the gradient of a grouped convolution's weight, as measured on a CPU (oneDNN in torch 2.15): each group's
    channels are filled up to blocks of 16, but for depthwise ones of at most 3 x 3 within their maps, which have a
    kernel of their own; in 16 bits there is another in float32, and x and `grad` are made anew."""
    inputs, outputs, kernel = w.shape[1], w.shape[0] // groups, w.shape[2:]
    has_own = inputs == outputs == 1 and all(k <= min(3, n) for k, n in zip(kernel, x.shape[2:], strict=True))
    if has_own:
        return nbytes(w)
    size = groups * -(-inputs // 16) * -(-outputs // 16) * 256 * kernel.numel()
    return size * w.itemsize if w.itemsize == 4 else size * (w.itemsize + 4) + nbytes(x) + nbytes(grad)


def copied(t: Tensor) -> int:
    innermost = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return 0 if innermost else nbytes(t)


def nbytes(t: Tensor) -> int:
    return t.numel() * t.itemsize


class Kernels(TorchFunctionMode):
    """Puts in place of some functions what a device's kernels do; the tracker counts them."""

    def __init__(self, tracker: Any) -> None:
        super().__init__()
        self.tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "lstm" and len(args) == 9:  # not of a packed sequence
            return lstm(self.tracker, *args)
        if not self.tracker.on_gpu:
            return func(*args, **kwargs)
        if name == "dropout" and len(args) == 3 and args[1] and args[2]:  # a mask of bytes, not of numbers
            return torch.native_dropout(*args)[0]
        if name == "scaled_dot_product_attention":  # flash attention, also with dropout
            kwargs["dropout_p"] = 0.0
        if name in FLOAT32_ON_GPU and torch.is_autocast_enabled("cpu"):
            args = [t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args]
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def lstm(
    tracker: Any, x: Tensor, states: Any, params: Any, has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What torch.lstm gives, by fused layers as oneDNN or cuDNN runs them; fake tensors would keep each step."""
    directions = 1 + bidirectional
    each = len(params) // (num_layers * directions)
    x = x.transpose(0, 1).contiguous() if batch_first else x  # [T, N, I]
    found: list[Any] = []
    for i in range(0, num_layers * directions, directions):
        if i and dropout and train:
            x = torch.nn.functional.dropout(x, dropout, True)
        for k in range(i, i + directions):
            own = params[k * each : (k + 1) * each]
            found.append(FusedLayer.apply(tracker, x, states[0][k], states[1][k], *own))
        x = torch.cat([y for y, _, _ in found[i:]], -1) if directions > 1 else found[i][0]
    _, h, c = zip(*found, strict=True)
    return x.transpose(0, 1) if batch_first else x, torch.stack(h), torch.stack(c)


class FusedLayer(torch.autograd.Function):
    """One layer in one direction: x [T, N, I], h and c [N, H]."""

    @staticmethod
    def forward(ctx: Any, tracker: Any, *tensors: Tensor) -> Any:
        if torch.is_autocast_enabled("cpu"):
            tensors = tuple(t.to(torch.get_autocast_dtype("cpu")) for t in tensors)
        x, h, c = tensors[:3]
        y = x.new_empty(*x.shape[:2], h.shape[-1])
        ctx.tracker, ctx.flops = tracker, 8 * y.numel() * (x.shape[-1] + h.shape[-1])
        ctx.size = tracker.on_gpu, *x.shape, h.shape[-1], x.itemsize
        kept = x.new_empty(workspace(*ctx.size), dtype=torch.uint8)
        ctx.save_for_backward(*tensors, y, kept)
        tracker.scratch(layer_scratch(False, *ctx.size))
        tracker.count(ctx.flops)
        return y, torch.empty_like(h), torch.empty_like(c)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        kept = [grad.float().contiguous() for grad in grads]  # oneDNN takes these in float32
        made = [torch.empty_like(t, dtype=torch.float32) for t in ctx.saved_tensors[:-2]]
        ctx.tracker.scratch(layer_scratch(True, *ctx.size))
        ctx.tracker.count(2 * ctx.flops)
        del kept
        return None, *made


def padded(n: int, itemsize: int) -> int:
    """The length of a row in oneDNN: whole lines of the cache, and not a multiple of 256 (its rnn_utils.cpp)."""
    line = 64 // itemsize
    n = -(-n // line) * line
    return n + line if n % 256 == 0 else n


def workspace(on_gpu: bool, steps: int, size: int, inputs: int, width: int, itemsize: int) -> int:
    """Bytes that a layer keeps for backward: gates and states in cuDNN; in oneDNN 3, as measured, gates, states, and
    gradients of states in float32."""
    if on_gpu:
        return steps * size * 6 * width * itemsize
    widest = max(inputs, width)
    states = 2 * itemsize * padded(widest, itemsize) + itemsize * (padded(width, itemsize) + width)
    gradients = 16 * padded(widest, 4) + 8 * width
    return size * (steps * itemsize * (padded(4 * width, itemsize) + width) + (steps + 1) * (states + gradients))


def layer_scratch(backward: bool, on_gpu: bool, steps: int, size: int, inputs: int, width: int, itemsize: int) -> int:
    """Bytes that oneDNN takes for a layer and gives back: the gates, and the weights in layouts of its own."""
    if on_gpu:
        return 0
    gates = 4 * (steps if backward or size < 128 else 1) * size * padded(4 * width, 4) if itemsize == 4 else 0
    packed = 4 * padded(4 * width, 4) * (inputs + width) if backward or itemsize == 4 else 0
    copied = itemsize * 4 * width * (inputs + width) if backward or itemsize < 4 else 0
    return gates + packed + copied + 8 * size * width
