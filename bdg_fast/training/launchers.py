"""What `accelerate launch` was told and a run does not read: it starts processes, all else is settings."""

from __future__ import annotations

from collections.abc import Mapping

from .config import TrainConfig


def unread(environment: Mapping[str, str], config: TrainConfig) -> list[str]:
    """A line for each option of `accelerate launch` that asks for something else than the settings do.

    Args:
        environment: of the process, as `os.environ`: what the launcher passes on.
        config: of the run.
    """
    dtype = {"bf16": "bfloat16"}.get(precision := environment.get("ACCELERATE_MIXED_PRECISION", "no"), precision)
    dynamo = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    found = []
    if dtype not in ("no", config.dtype):
        found.append(f"mixed_precision={precision} of accelerate is not read: the run has dtype={config.dtype}")
    if dynamo.upper() != "NO" and not config.compile:
        found.append(f"dynamo_backend={dynamo.lower()} of accelerate is not read: the run has compile=false")
    if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true" and config.parallel != "fsdp":
        found.append(f"use_fsdp of accelerate is not read: the run has parallel={config.parallel}")
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        found.append(f"use_deepspeed of accelerate is not read: the run has parallel={config.parallel}")
    # it names an address for several processes, and starts one unless it is told that they have GPUs
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= environment.keys() and "WORLD_SIZE" not in environment:
        found.append("accelerate started one process: with --multi_gpu it starts --num_processes, on CPUs too")
    return found
