"""The order in which a network uses its parameters and finishes their gradients, recorded from a real step.

ZeRO-1 lays out its buckets in this order. A guessed order (of definition, say) costs no correctness but silently costs
the overlap of communication with backward: a bucket waits for the last gradient in it.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mindllm_engine.distributed.flat_parameters import trained_parameters
from mindllm_engine.distributed.process_group import ranks_with_another_value
from mindllm_engine.errors import ConfigError


@dataclass(frozen=True)
class ExecutionOrder:
    """Names of all parameters that train, a tied one once.

    Attributes:
        forward: in the order in which forward calls the modules that hold them.
        gradients: in the order in which backward finishes their gradients; those that get none come last.
    """

    forward: tuple[str, ...]
    gradients: tuple[str, ...]


def definition_order(model: nn.Module) -> ExecutionOrder:
    """What to expect of a network that has not run: parameters used as they are defined, gradients the other way."""
    names = tuple(trained_parameters(model))
    return ExecutionOrder(names, names[::-1])


def record_execution_order(model: nn.Module, loss: Callable[[], Tensor]) -> ExecutionOrder:
    """Run `loss()` (a forward of `model` that ends in one number) and its backward once; gradients are dropped.

    Raises:
        ConfigError: a parameter is used outside of the forward of the modules that hold it, where nothing would wait
            for its new value; or the ranks have different orders.
    """
    names = {parameter: name for name, parameter in trained_parameters(model).items()}
    forward: dict[str, None] = {}
    gradients: dict[str, None] = {}
    open_modules: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        open_modules.append(module)
        own = (parameter for parameter in module.parameters(recurse=False) if parameter in names)
        forward.update(dict.fromkeys(names[parameter] for parameter in own))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        open_modules.pop()

    handles: list[Any] = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    for parameter, name in names.items():
        handles.append(parameter.register_post_accumulate_grad_hook(lambda _, name=name: gradients.setdefault(name)))
    try:
        with UseOfParameters(names, open_modules):
            value = loss()
        for handle in handles[: 2 * len(list(model.modules()))]:  # backward may run forwards again, to recompute
            handle.remove()
        value.backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.grad = None
    everything = dict.fromkeys(names.values())
    order = ExecutionOrder(tuple(forward | everything), tuple(gradients | everything))
    refuse_different_orders(order)
    return order


class UseOfParameters(TorchFunctionMode):
    """While it is entered, a parameter that is used where no module holding it is being called raises `ConfigError`."""

    def __init__(self, names: dict[nn.Parameter, str], open_modules: list[nn.Module]) -> None:
        super().__init__()
        self.names = names
        self.open_modules = open_modules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in args:
            if isinstance(value, nn.Parameter) and value in self.names and not self.is_held(value):
                raise ConfigError(
                    f"model: {self.names[value]} is used outside of the forward of the module that holds it, where its "
                    "new value may not have arrived; register it in the module that uses it too"
                )
        return func(*args, **(kwargs or {}))

    def is_held(self, parameter: nn.Parameter) -> bool:
        return any(
            parameter is own
            for module in self.open_modules
            for own in module._parameters.values()  # `parameters()` would be seen here again
        )


def refuse_different_orders(order: ExecutionOrder) -> None:
    """Compare with rank 0's order.

    Raises:
        ConfigError: on all ranks, if some rank's differs.
    """
    ours = zlib.crc32("\n".join(order.forward + order.gradients).encode())
    if ranks_with_another_value(ours):
        raise ConfigError("model: the ranks do not run the same network in the same order; give all the same code")
