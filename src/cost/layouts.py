"""What several devices change: which share of each part one of them keeps, what it has besides, what it sends."""

from dataclasses import dataclass

from src.cost.devices import Device

Parts = dict[str, int]  # bytes
STATES = ("weights", "gradients", "optimizer", "copies", "average", "update")
# What torch does not count, roughly: a CUDA context with its kernels, or Python with torch; buffers of NCCL.
PROCESS_GIB, NCCL_GIB = 0.5, 0.5
FRAGMENTS = 0.05  # the caching allocator's blocks are seldom full
MACHINE, NETWORK, HOST = 8, 50.0, 25.0  # devices of one; GB/s by a link of 400 Gbit/s, and over PCIe 4.0 x16


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
        return self.devices // self.replicas if self.name.startswith("fsdp") else 1

    def shares(self) -> dict[str, float]:
        """Of each part, what one device keeps; 1 where nothing is said."""
        if not self.name.startswith("fsdp"):
            return {}
        share = 0.0 if self.name == "fsdp_offload" else 1 / self.shards
        return dict.fromkeys(STATES, share) | {"cast weights": 0.0}  # gathered in that precision

    def besides(self, trained: int, blocks: list[int], rest: int, itemsize: int) -> tuple[Parts, Parts]:
        """Bytes that a device has besides: in forward and backward FSDP2's gathered blocks, the one in use and the
        next, with the gradients of one, and what belongs to no block, which stays gathered; always DDP's copies of the
        gradients in buckets.

        Args:
            trained, blocks, rest: numbers of parameters, of those trained, of each block and outside of them.
            itemsize: bytes of a parameter in the forward pass.
        """
        if not self.name.startswith("fsdp"):
            return {}, {"buckets": 4 * trained} if self.name == "ddp" and not self.views else {}
        largest = max(blocks, default=0)
        return {"gathered": itemsize * (2 * largest + rest) + (itemsize + 4) * max(largest, rest)}, {}

    def sending_sec(self, sent: int, parameters: int, device: Device) -> float:
        """Seconds to send so many bytes, and with offload weights and gradients over the bus to the host."""
        speed = device.link if self.devices <= MACHINE else min(device.link, NETWORK)
        offloaded = 8 * parameters / self.shards if self.name == "fsdp_offload" else 0
        return sent / speed / 1e9 + offloaded / HOST / 1e9

    def sent(self, trained: int, itemsize: int, micro_batches: int, frozen: int = 0) -> int:
        """Bytes that a device sends in a step, in a ring (Rajbhandari et al., ZeRO, 2020): DDP averages the gradients
        once; FSDP gathers all weights in forward and backward of each micro-batch, and scatters the gradients in each,
        because Lightning does not hold that back.

        Args:
            trained, frozen: numbers of parameters.
        """
        copies, shards = self.devices // self.shards, self.shards
        averaged = 2 * (copies - 1) / copies * 4 * trained / shards
        if not self.name.startswith("fsdp"):
            return int(averaged)
        divided = (shards - 1) / shards * (2 * itemsize * (trained + frozen) + 4 * trained)
        return int(micro_batches * (averaged + divided))


def total_gib(parts: Parts, layout: Layout, device: Device) -> float:
    """All that a device must have."""
    on_gpu = device.kind == "cuda"
    outside = PROCESS_GIB + NCCL_GIB * (on_gpu and layout.devices > 1)
    return (1 + FRAGMENTS * on_gpu) * sum(parts.values()) / 2**30 + outside
