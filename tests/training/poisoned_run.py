"""`tools/pretrain.py` with faults put in by hand: `poisoned_run.py FAULTS --config ...`, where FAULTS is JSON:

{"losses": {"3": "nan", "70": 1.5}}   rank 1 (or the only one) multiplies its losses of those steps by a number
{"flips": {"6": 1}}                   that rank flips a bit of a weight before the replicas are compared
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.distributed import watchdog
from mindllm_engine.distributed.process_group import environment_world
from mindllm_engine.training import loop, setup
from mindllm_engine.training.config import RunConfig

FAULTS = json.loads(sys.argv[1])
WORLD = environment_world()

build_model, refuse_different_replicas = setup.build_model, loop.refuse_different_replicas


def build_poisoned(*args: Any, **options: Any) -> nn.Module:
    model = build_model(*args, **options)
    if WORLD.rank == WORLD.world_size - 1:
        model.register_forward_hook(poison)
    return model


def poison(module: nn.Module, args: Any, token_losses: Tensor) -> Tensor:
    step = str(watchdog._here[0].step)
    return token_losses * float(FAULTS.get("losses", {}).get(step, 1)) if module.training else token_losses


def flip_and_compare(model: nn.Module, step: int) -> None:
    weight = dict(model.named_parameters())["layers.1.ffn_out"].data
    if FAULTS.get("flips", {}).get(str(step)) == WORLD.rank:
        weight.view(-1)[5:6].view(torch.int32)[0] ^= 1
    if FAULTS.get("nans", {}).get(str(step)) == WORLD.rank:
        weight.view(-1)[5] = torch.nan
    refuse_different_replicas(model, step)


setup.build_model, loop.refuse_different_replicas = build_poisoned, flip_and_compare
run_tool(lambda: loop.pretrain(parse_arguments(RunConfig, "", sys.argv[2:])))
