"""Checkpoints of a divided model: whole ones, which the first process gathers, and sharded ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from src.run.checkpoint import load
from src.run.errors import EnvironmentFault, KnownError
from src.run.files import sync
from src.run.shards import SHARDED, Shards, as_one_device, replaced, shards_of, write_shard


class DividedCheckpoints(ModelParallelStrategy):
    """The part of a strategy that saves and loads what is divided."""

    verified = True  # saves by the CheckpointIO alone
    restore_checkpoint_after_setup = False  # the network is divided when it is configured
    lightning_restore_optimizer = True
    sharded_checkpoints = False
    mesh: DeviceMesh | None = None
    shards: Shards | None = None  # of the checkpoint that is being loaded

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict(keep_vars=True)  # in which tied weights are one object

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        take: dict[str, tuple[int, Tensor]] = {}
        gather = self.taker(take) if self.sharded_checkpoints else self.gatherer()
        checkpoint |= {name: replaced(checkpoint[name], gather, name) for name in SHARDED}
        if self.sharded_checkpoints:
            checkpoint["shards"] = self.write_shards(Path(filepath), take)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def gatherer(self) -> Callable[[str, Tensor], Tensor]:
        """Makes tensors whole, on the first process's host; tied weights once."""
        found: dict[int, Tensor] = {}

        def whole(key: str, t: Tensor) -> Tensor:
            if isinstance(t, DTensor) and id(t) not in found:
                full: Any = t.detach().to(self.root_device)
                full = full.full_tensor()
                found[id(t)] = as_one_device(full.cpu()) if self.is_global_zero else full.to("meta")
            return found.get(id(t), t.detach())

        return whole

    def taker(self, rows: dict[str, tuple[int, Tensor]]) -> Callable[[str, Tensor], Tensor]:
        """Takes down this process's rows of each divided tensor, and leaves one without memory in its place."""

        def take(key: str, t: Tensor) -> Tensor:
            if not isinstance(t, DTensor):
                return t.detach()
            rows[key] = self.rows(t)[0], local(t).cpu()
            return torch.empty(t.shape, dtype=t.dtype, device="meta")

        return take

    def rows(self, t: DTensor) -> tuple[int, int]:
        """The rows of a divided tensor that this process has: from, and to before."""
        assert self.mesh is not None
        size, each = t.shape[0], -(-t.shape[0] // self.mesh["shards"].size())
        start = min(each * self.mesh.get_local_rank("shards"), size)
        return start, min(start + each, size)

    def write_shards(self, path: Path, rows: dict[str, tuple[int, Tensor]]) -> dict[str, str]:
        """All processes write at once and wait for each other; gives the hash of each file."""
        assert self.mesh is not None
        folder, mine, wrong = shards_of(path), {}, ""
        try:
            folder.mkdir(exist_ok=True)
            if self.mesh.get_local_rank("replicas") == 0:
                name = f"{self.mesh.get_local_rank('shards'):05d}.safetensors"
                mine = {name: write_shard(folder / name, rows)}
            sync(folder)
        except OSError as e:
            wrong = f"rank {self.global_rank}: {e.strerror}"
        everywhere: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(everywhere, (mine, wrong))
        if wrong := "; ".join(wrong for _, wrong in everywhere if wrong):
            todo = "mend that, then give the same command again"
            raise EnvironmentFault(f"checkpoint {path} was not written: {wrong} -> {todo}")
        return {name: sha256 for hashes, _ in everywhere for name, sha256 in hashes.items()}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint, with this process's part of each weight that is divided."""
        assert self.lightning_module is not None
        path = Path(checkpoint_path)
        checkpoint, own = self.verified_by_all(path), self.lightning_module.state_dict()
        self.shards = Shards(path, checkpoint["shards"]) if "shards" in checkpoint else None
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: self.part(f"state_dict.{n}", t, own.get(n)) for n, t in state.items()}
        return checkpoint

    def verified_by_all(self, path: Path) -> dict[str, Any]:
        """A checkpoint of whose shards each process verifies some; raises in all of them what one finds."""
        checkpoint, wrong = {}, None
        try:
            checkpoint = load(path, filled=False, share=slice(self.global_rank, None, self.world_size))
        except KnownError as e:
            wrong = e
        everywhere: list[Any] = [wrong] * self.world_size
        if self.mesh:
            torch.distributed.all_gather_object(everywhere, wrong)
        if found := next(filter(None, everywhere), None):
            raise found
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for i, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                n: {name: self.part(f"optimizer_states.{i}.state.{n}.{name}", t, params[n]) for name, t in of_p.items()}
                for n, of_p in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})
        self.shards = None

    def part(self, key: str, t: Any, like: Any) -> Any:
        """This process's part of a tensor of a checkpoint, if the tensor that it is for is divided."""
        if not isinstance(like, DTensor) or not isinstance(t, Tensor) or t.shape != like.shape:
            return self.shards.rows(key, 0, len(t)) if self.shards and isinstance(t, Tensor) and t.is_meta else t
        start, stop = self.rows(like)
        rows = self.shards.rows(key, start, stop) if self.shards and t.is_meta else t[start:stop]
        rows = rows.to(local(like).device).contiguous()
        return DTensor.from_local(rows, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def local(t: Tensor) -> Tensor:
    return t.to_local() if isinstance(t, DTensor) else t
