"""What several devices change: which share of each part one of them keeps, what it has besides, what it sends."""

from dataclasses import dataclass

from src.cost.devices import GIB, Device

STATES = ("weights", "buffers", "gradients", "optimizer", "copies", "average", "update")
# What torch does not count: a CUDA context with the kernels that it loads, or Python with torch on a host; and the
# buffers of NCCL, where devices talk. Of the order that NVIDIA and PyTorch users report, and to be on the safe side.
PROCESS_GIB, NCCL_GIB = 0.5, 0.5
FRAGMENTS = 0.05  # of what is allocated: the caching allocator's blocks are seldom full
MACHINE, NETWORK = 8, 50.0  # devices of one machine; GB/s of each to others, as of a 400 Gbit/s link


@dataclass
class Layout:
    """How a model lies on devices.

    Args:
        name: `one`, `ddp`, `fsdp`, or `fsdp_offload`, with the states in the host's memory.
        replicas: groups of devices that each hold a whole model in shards.
        views: DDP's gradients are views of what it sends, not copies.
    """

    name: str
    devices: int = 1
    replicas: int = 1
    views: bool = False

    @property
    def shards(self) -> int:
        return self.devices // self.replicas

    def shares(self) -> dict[str, float]:
        """Of each part, what one device keeps; 1 where nothing is said."""
        if not self.name.startswith("fsdp"):
            return {}
        share = 0.0 if self.name == "fsdp_offload" else 1 / self.shards
        return dict.fromkeys(STATES, share) | {"buffers": 1.0, "cast weights": 0.0}  # gathered in that precision

    def besides(
        self, trained: int, blocks: list[int], rest: int, itemsize: int
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes that a device has besides: in forward and backward FSDP2's gathered blocks, the one in use and the
        next, with the gradients of one, and what belongs to no block, which stays gathered; always DDP's copies of the
        gradients in buckets.

        Args:
            trained, blocks, rest: numbers of parameters, of those trained, of each block and outside of them.
            itemsize: bytes of a parameter in the forward pass.
        """
        if self.name == "ddp" and self.devices > 1 and not self.views:
            return {}, {"buckets": 4 * trained}
        if not self.name.startswith("fsdp"):
            return {}, {}
        largest = max(blocks, default=0)
        return {"gathered": itemsize * (2 * largest + rest) + (itemsize + 4) * max(largest, rest)}, {}

    def sent(self, parameters: int, itemsize: int, micro_batches: int) -> int:
        """Bytes that a device sends in a step, in a ring (Rajbhandari et al., ZeRO, 2020): DDP averages the gradients;
        FSDP gathers the weights in forward and backward of each micro-batch, and scatters the gradients once."""
        if self.devices == 1:
            return 0
        if self.name == "ddp":
            return int(2 * (self.devices - 1) / self.devices * parameters * 4)
        ring = (self.shards - 1) / self.shards * parameters * (2 * micro_batches * itemsize + 4)
        across = 2 * (self.replicas - 1) / self.replicas * parameters / self.shards * 4
        return int(ring + across)

    def speed(self, device: Device) -> float:
        """Bytes a second at which a device sends."""
        return 1e9 * (device.link if self.devices <= MACHINE else min(device.link, NETWORK))


def outside(layout: Layout, device: Device) -> float:
    """GiB of a device that a process takes besides what torch allocates."""
    return PROCESS_GIB + (NCCL_GIB if layout.devices > 1 and device.kind == "cuda" else 0.0)


def total_gib(parts: dict[str, int], layout: Layout, device: Device) -> float:
    """All that a device must have."""
    spread = 1 + FRAGMENTS if device.kind == "cuda" else 1.0
    return spread * sum(parts.values()) / GIB + outside(layout, device)
