"""The command line with FSDP on the CPU over gloo. accelerate leaves that to accelerators: it is told this is one."""

import os
import sys

from accelerate import DistributedType, PartialState

from pixelbert import cli

# What `accelerate launch` sets by the command in docs/reliability.md.
SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Layer",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}

if __name__ == "__main__":
    os.environ.update(SETTINGS)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    cli.main(sys.argv[1:])
