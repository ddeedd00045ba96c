"""What real kernels do that fake ones do not: memory that they take by themselves, fused LSTMs, a GPU's choices."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


def scratch(func: Any, args: Any) -> int:
    """Bytes that a CPU kernel takes and gives back by itself: oneDNN's gradient of a convolution's weight is made in a
    layout of its own, then copied."""
    return args[2].numel() * args[2].itemsize if func is aten.convolution_backward.default else 0


# Ops that autocast runs in float32 on a GPU and not on a CPU (torch's documentation of torch.amp, "CUDA Ops that
# autocast to float32").
FLOAT32_ON_GPU = {"layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax"}


class Kernels(TorchFunctionMode):
    """Puts in place of some functions what a device's kernels do."""

    def __init__(self, device: str, tracker: Any) -> None:
        super().__init__()
        self.device, self.tracker = device, tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "lstm" and len(args) == 9:  # not of a packed sequence
            return lstm(self.device, self.tracker, *args)
        if self.device == "cuda" and name in ("dropout", "scaled_dot_product_attention", *FLOAT32_ON_GPU):
            return self.on_gpu(name, func, args, kwargs)
        return func(*args, **kwargs)

    def on_gpu(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name == "dropout" and len(args) == 3 and args[2] and args[1]:
            return torch.native_dropout(*args)[0]
        if name == "scaled_dot_product_attention":
            return func(*args, **{**kwargs, "dropout_p": 0.0})
        if name in FLOAT32_ON_GPU and torch.is_autocast_enabled("cpu"):
            wide = [t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args]
            with torch.autocast("cpu", enabled=False):
                return func(*wide, **kwargs)
        return func(*args, **kwargs)


def lstm(
    device: str, tracker: Any, x: Tensor, states: Any, params: Any, has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What torch.lstm gives, by as many fused layers as oneDNN or cuDNN runs; fake tensors would be taken through it
    step by step, and all steps kept."""
    directions, each = 1 + bidirectional, len(params) // (num_layers * (1 + bidirectional))
    x = x.transpose(0, 1).contiguous() if batch_first else x  # [T, N, I]
    h: list[Tensor] = []
    c: list[Tensor] = []
    for layer in range(num_layers):
        sides: list[Tensor] = []
        for side in range(directions):
            i = layer * directions + side
            y, hy, cy = FusedLayer.apply(
                device, tracker, x, states[0][i], states[1][i], *params[i * each : (i + 1) * each]
            )
            sides, h, c = [*sides, y], [*h, hy], [*c, cy]
        x = torch.cat(sides, -1) if directions > 1 else sides[0]
        if dropout and train and layer < num_layers - 1:
            x = torch.nn.functional.dropout(x, dropout, True)
    return x.transpose(0, 1) if batch_first else x, torch.stack(h), torch.stack(c)


class FusedLayer(torch.autograd.Function):
    """One layer in one direction: x [T, N, I], h and c [N, H]."""

    @staticmethod
    def forward(ctx: Any, device: str, tracker: Any, x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> Any:
        if torch.is_autocast_enabled("cpu"):
            x, h, c, *cast = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, h, c, *weights))
            weights = tuple(cast)
        ctx.tracker, ctx.size = tracker, (device, *x.shape, h.shape[-1], x.itemsize)
        y = x.new_empty(*x.shape[:2], h.shape[-1])
        kept = x.new_empty(workspace(*ctx.size), dtype=torch.uint8)
        ctx.save_for_backward(x, h, c, y, kept, *weights)
        tracker.scratch(lstm_scratch(False, *ctx.size))
        ctx.flops = 2 * y.numel() * 4 * (x.shape[-1] + h.shape[-1])
        tracker.count(ctx.flops)
        return y, torch.empty_like(h), torch.empty_like(c)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, h, c, _, _, *weights = ctx.saved_tensors
        ctx.tracker.count(2 * ctx.flops)
        kept = [grad.float().contiguous() for grad in grads]  # oneDNN takes these in float32
        made = [torch.empty_like(t, dtype=torch.float32) for t in (x, h, c, *weights)]
        ctx.tracker.scratch(lstm_scratch(True, *ctx.size))
        del kept
        return None, None, *made


def padded(n: int, itemsize: int) -> int:
    """The length of a row in oneDNN: whole lines of the cache, and not a multiple of 256 (rnn_utils.cpp)."""
    line = 64 // itemsize
    n = -(-n // line) * line
    return n + line if n % 256 == 0 else n


def workspace(device: str, steps: int, size: int, inputs: int, width: int, itemsize: int) -> int:
    """Bytes that a layer keeps for its backward pass: in oneDNN 3 the gates, states, and gradients of states in
    float32; in cuDNN the gates and both states."""
    if device != "cpu":
        return steps * size * 6 * width * itemsize
    widest = max(inputs, width)
    states = 2 * itemsize * padded(widest, itemsize) + itemsize * (padded(width, itemsize) + width)
    gradients = 16 * padded(widest, 4) + 8 * width
    return size * (steps * itemsize * (padded(4 * width, itemsize) + width) + (steps + 1) * (states + gradients))


def lstm_scratch(backward: bool, device: str, steps: int, size: int, inputs: int, width: int, itemsize: int) -> int:
    """Bytes that oneDNN takes for a layer and gives back: the gates, and the weights in layouts of its own."""
    if device != "cpu":
        return 0
    all_steps = backward or size < 128
    gates = 4 * (steps if all_steps else 1) * size * padded(4 * width, 4) if itemsize == 4 else 0
    packed = 4 * padded(4 * width, 4) * (inputs + width) if backward or itemsize == 4 else 0
    copied = itemsize * 4 * width * (inputs + width) if backward or itemsize < 4 else 0
    return gates + 8 * size * width + packed + copied
