"""FSDP2: each device holds a share of all weights, gradients and optimizer states, and has the weights of a block whole
only while it computes with them."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from src.run.errors import ConfigError, KnownError
from src.run.private import start_process_group
from src.run.rng import rng_state, set_rng_state
from src.run.terminal import rank_zero_print
from src.strategies.checkpoints import DividedCheckpoints, local

T = TypeVar("T")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FSDP(DividedCheckpoints):
    """Data parallelism in which the model is divided, too (Zhao et al., PyTorch FSDP, 2023; torch's `fully_shard`).

    The network is divided by its blocks (`model.blocks`), and what is outside of them is gathered as one; without
    blocks it is gathered whole. Only the first process ever holds all of it, when it is made.

    Args:
        replicas: the model is divided over as many devices as there are for each replica; with the number of nodes,
            weights travel within a node only.
        offload: weights, gradients and optimizer states are in the host's memory, where the optimizer steps.
        reshard_after_forward: free a block's weights after its forward pass and gather them again for the backward
            pass; without, less is sent, and all weights are in memory for the time of a step.
        build_on: where the first process makes the network: on its device, for the weights that one device would begin
            with, or on the host where it does not fit. With offload always on the host.
        sharded_checkpoints: each process writes its own share into a folder that all must see; without, the first
            process gathers everything in the host's memory and writes one file.
    """

    def __init__(
        self,
        replicas: int = 1,
        offload: bool = False,
        reshard_after_forward: bool = True,
        build_on: Literal["device", "host"] = "device",
        sharded_checkpoints: bool = False,
    ) -> None:
        both = "cpu:gloo,cuda:nccl" if offload and torch.cuda.is_available() else None
        super().__init__(process_group_backend=both)
        self.replicas, self.offload, self.sharded_checkpoints = replicas, offload, sharded_checkpoints
        self.reshard = None if reshard_after_forward else False  # None: as torch does, which keeps the outermost part
        self.build_on = "host" if offload else build_on
        self.buffers: list[tuple[nn.Module, str]] = []  # the network's, of which a checkpoint has the first process's
        self.differ = False  # whether each process may have its own

    def check(self, world_size: int) -> None:
        if self.replicas < 1 or world_size % self.replicas:
            sizes = [n for n in range(1, world_size + 1) if world_size % n == 0]
            raise ConfigError(f"trainer.strategy.replicas: {self.replicas} of {world_size} devices -> one of {sizes}")

    def setup_environment(self) -> None:
        start_process_group(self)
        if self.mesh is None:
            shape = (self.replicas, self.world_size // self.replicas)
            self.mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicas", "shards"))

    # The network

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        device = self.root_device if self.build_on == "device" else torch.device("cpu")
        with device, self.precision_plugin.tensor_init_context():
            yield

    def first(self, find: Callable[[], T]) -> T:
        """What the first process finds, in all of them; its error is everyone's."""
        found: Any = None
        if self.global_rank == 0:
            try:
                found = find()
            except KnownError as e:
                found = e
        found = self.broadcast(found) if self.mesh else found
        if isinstance(found, KnownError):
            found.told = self.global_rank > 0
            raise found
        return found

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The network; in all processes but the first without memory for its weights, if it can be made so."""
        if self.global_rank == 0:
            return make()
        try:
            with torch.device("meta"):
                network = make()
        except ConfigError:  # its constructor looks at numbers; or is wrong, which the first process finds, too
            return make()
        return make() if holds_meta(network) else network

    @torch.no_grad()
    def divide(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Divide a network, in place, and give all processes their share of the first one's weights."""
        if self.mesh is None:  # nothing is trained
            return
        for p in network.parameters():
            p.data = p.data.contiguous()  # torch divides no others, such as kernels with channels innermost
        whole = {name: t.detach() for name, t in [*network.named_parameters(), *network.named_buffers()]}
        empty = any(t.is_meta for t in whole.values())
        if self.reduce_boolean_decision(not empty and self.global_rank > 0, all=False):
            rank_zero_print(f"Each process makes {type(network).__name__} whole: its constructor needs numbers.")
        check_tied(network, blocks)
        try:
            self.shard(network, blocks)
        except (ValueError, NotImplementedError, AssertionError) as e:
            what = str(e).splitlines()[0]
            raise ConfigError(f"model.blocks: {what} -> see docs/sharding.md") from e
        if empty:
            self.make_empty(network)
        for name, p in network.named_parameters():
            t = torch.empty(p.shape, dtype=p.dtype, device=self.root_device)
            t = whole[name].to(self.root_device) if self.global_rank == 0 else t
            assert isinstance(p, DTensor)
            local(p).copy_(local(distribute_tensor(t, p.device_mesh, p.placements)))
        for name, b in network.named_buffers():
            t = (whole[name] if self.global_rank == 0 else b).to(self.root_device).contiguous()
            torch.distributed.broadcast(t.view(-1).view(torch.uint8), 0)  # bytes, because gloo does not know all types
            b.copy_(t)
        names = [name.rpartition(".") for name in dict(network.named_buffers()).keys() & network.state_dict().keys()]
        self.buffers = [(network.get_submodule(owner), name) for owner, _, name in sorted(names)]
        set_rng_state(self.broadcast(rng_state()))  # making the network has drawn numbers

    def shard(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        assert self.mesh is not None
        mesh = self.mesh["shards"] if self.replicas == 1 else self.mesh
        pinned = self.root_device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pinned) if self.offload else OffloadPolicy()
        divide = partial(fully_shard, mesh=mesh, reshard_after_forward=self.reshard, offload_policy=offload)
        half = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        outer = replace(policy, cast_forward_inputs=False)  # the data itself is not rounded, as with ddp
        # No device computes a batch norm with weights in bfloat16 and statistics in float32.
        norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.affine and m not in blocks]
        for norm in norms if half else ():
            divide(norm, mp_policy=MixedPrecisionPolicy())
        for block in blocks:
            divide(block, mp_policy=policy)
        divide(network, mp_policy=outer)
        if inspect.ismethod(getattr(network, "features", None)):  # which model.loss_chunks calls in place of forward
            register_fsdp_forward_method(network, "features")

    def make_empty(self, network: nn.Module) -> None:
        """Get memory for a network that has none. Tied weights stay one."""
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            network.to_empty(device="cpu" if self.offload else self.root_device)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    def model_to_device(self) -> None:
        """All but offloaded weights."""
        assert self.lightning_module is not None
        for child in self.lightning_module.children():
            if not (self.offload and isinstance(child, FSDPModule)):
                child.to(self.root_device)
                continue
            for b in child.buffers():
                b.data = b.to(self.root_device)

    # Buffers: before each step all get the first process's, as with ddp, and before what is measured

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.share_buffers()
        self.differ = True
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        self.share_buffers()
        return super().validation_step(*args, **kwargs)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Give all processes the buffers of the first one, such as the statistics of batch norms, in one message."""
        buffers = [getattr(module, name) for module, name in self.buffers] if self.differ else []
        self.differ = False
        if buffers:
            parts = [b.contiguous().view(-1).view(torch.uint8) for b in buffers]
            together = torch.cat(parts)
            torch.distributed.broadcast(together, 0)
            for b, part in zip(buffers, together.split([len(part) for part in parts]), strict=True):
                b.copy_(part.clone().view(b.dtype).view_as(b))


def check_tied(network: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raise ConfigError where a parameter lies in two parts that are gathered apart."""
    part = {module: i for i, block in enumerate(blocks) for module in block.modules()}
    home: dict[nn.Parameter, int] = {}
    for module in network.modules():
        for name, p in module.named_parameters(recurse=False):
            if home.setdefault(p, part.get(module, -1)) != part.get(module, -1):
                what = f"{name} of {type(module).__name__} {list(p.shape)} is tied across blocks"
                raise ConfigError(f"model.blocks: {what} -> tie within one block, or outside of all")


def holds_meta(network: nn.Module) -> bool:
    """Whether tensors that are neither parameters nor buffers have no numbers, which nothing would replace."""
    return any(isinstance(v, Tensor) and v.is_meta for m in network.modules() for v in vars(m).values())
