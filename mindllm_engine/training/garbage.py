"""Garbage collection by hand. Python's own may run at any moment, on each rank at another, and all ranks wait for the
one that pauses; here all of them collect after the same steps."""

import gc


class ManualCollection:
    """While it is entered, cyclic garbage is collected every so many steps and at no other time.

    What exists on entry (modules, the network) is taken out of what a collection looks at.

    Args:
        every: steps between collections; 0 leaves everything to Python.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def __enter__(self) -> "ManualCollection":
        if self.every:
            gc.collect()
            gc.freeze()
            gc.disable()
        return self

    def __exit__(self, *error: object) -> None:
        if self.every:
            gc.enable()
            gc.unfreeze()

    def after_step(self, step: int) -> None:
        """Collect if it is due after this step."""
        if self.every and step % self.every == 0:
            gc.collect()
