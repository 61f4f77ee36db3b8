"""A machine as a roofline: what it reads and multiplies in a second, and what an operation costs beside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from polydraft.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Op:
    """A group of operations.

    Attributes:
        name: "layers", "kv", ...: figures add up those of one name.
        bytes: read and written. flops: a multiplication and an addition count two.
        launches: operations in it. sharded: whether several devices divide it among themselves.
        reduces: sums over the devices, each of `reduce_bytes`.
    """

    name: str
    bytes: float = 0.0
    flops: float = 0.0
    launches: float = 0.0
    sharded: bool = True
    reduces: int = 0
    reduce_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One device, or several alike that divide the weights among themselves (tensor parallel).

        seconds(op) = max(bytes / (devices share_b bandwidth), flops / (devices share_c flops))
                      + launches launch + reduces (latency + 2 (devices - 1) / devices reduce_bytes / link)

    Attributes:
        bandwidth: bytes per second. flops: per second, in the dtype of the weights. memory: bytes, of one
            device; 0 for one that is not checked. bandwidth_share, compute_share: what is reached of them.
        launch: seconds of an operation beside its work.
        devices: how many. link: bytes per second from one to another, of a ring. latency: seconds of a sum
            over the devices beside its bytes.
    """

    name: str
    bandwidth: float
    flops: float
    memory: float = 0.0
    bandwidth_share: float = 1.0
    compute_share: float = 1.0
    launch: float = 0.0
    devices: int = 1
    link: float = float("inf")
    latency: float = 10e-6

    def __post_init__(self) -> None:
        for name in ("bandwidth", "flops", "bandwidth_share", "compute_share", "link"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name):g}")
        for name in ("bandwidth_share", "compute_share"):
            if getattr(self, name) > 1:
                raise InputError(f"{name} is a share, at most 1, got {getattr(self, name):g}")
        if self.launch < 0 or self.devices < 1:
            raise InputError(
                f"launch must be 0 or more and devices 1 or more: {self.launch:g}, {self.devices}"
            )

    def seconds(self, op: Op) -> float:
        """Of one group; see the class."""
        devices = self.devices if op.sharded else 1
        reading = op.bytes / (devices * self.bandwidth_share * self.bandwidth)
        computing = op.flops / (devices * self.compute_share * self.flops)
        return max(reading, computing) + op.launches * self.launch + self.reducing(op)

    def reducing(self, op: Op) -> float:
        """Seconds of its sums over the devices; none on one."""
        if self.devices == 1:
            return 0.0
        moved = 2 * (self.devices - 1) / self.devices * op.reduce_bytes
        return op.reduces * (self.latency + moved / self.link)

    def total(self, ops: Iterable[Op]) -> float:
        """Seconds of groups, one after the other."""
        return sum(self.seconds(op) for op in ops)
