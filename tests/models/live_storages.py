"""What memory is really held: every storage that torch makes, and which of them are alive."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Sees all storages made while it is entered, under any operator, on any device.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}  # by address of the storage's own record
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {self.address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and self.address(tensor) not in given | self.made.keys():
                storage = tensor.untyped_storage()
                self.made[self.address(tensor)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.alive())
        return out

    def alive(self) -> int:
        """Bytes of those that are alive now."""
        self.made = {address: made for address, made in self.made.items() if not made[0].expired()}
        return sum(size for _, size in self.made.values())

    @staticmethod
    def address(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata
