"""What `accelerate config` asks for, as settings of a run.

`accelerate launch` hands its configuration to the program in environment variables. Each is taken
over or refused by name:

    mixed_precision bf16, fp16                 memory.dtype=bfloat16, float16
    FSDP, version 2                            processes.shard=true
    fsdp_activation_checkpointing              memory.checkpoint=true
    parallelism_config dp_shard_size > 1       processes.shard=true
    gradient_accumulation_steps                optim.accumulate

What is brought together at a time by FSDP2 are the residual blocks, and checkpoints are whole
safetensors, whatever `fsdp_auto_wrap_policy` and `fsdp_state_dict_type` say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from volumediff.errors import UsageError
from volumediff.settings.run_config import RunConfig, parse

__all__ = ["overlaid_by_accelerate", "requested", "started_alone", "variables"]

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
# Variable -> (the value that asks for nothing, its name in accelerate config, what to do instead).
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": ("false", "DeepSpeed", "use FSDP with fsdp_version 2"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "Megatron-LM", "use FSDP with fsdp_version 2"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "dynamo_backend", "set it to 'no'"),
}
REFUSED_WITH_FSDP = {
    "FSDP_OFFLOAD_PARAMS": (
        "false",
        "fsdp_offload_params",
        "set it to false; memory.offload keeps activations in host memory",
    ),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "fsdp_reshard_after_forward", "set it to true"),
}
REFUSED_AXES = {
    "PARALLELISM_CONFIG_TP_SIZE": ("1", "tensor parallelism (tp_size)", "set it to 1"),
    "PARALLELISM_CONFIG_CP_SIZE": (
        "1",
        "context parallelism (cp_size)",
        "set it to 1; processes.domain divides volumes among processes",
    ),
    "PARALLELISM_CONFIG_SP_SIZE": ("1", "sequence parallelism (sp_size)", "set it to 1"),
}


def requested(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings `section.key` -> value that the environment variables of Accelerate ask for.

    Raises:
        UsageError: something that is not supported; names it
    """
    settings: dict[str, Any] = {}
    _refuse(environment, REFUSED)
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision in PRECISIONS:
        settings["memory.dtype"] = PRECISIONS[precision]
    elif precision not in ("no", ""):
        raise UsageError(
            f"accelerate config: mixed_precision {precision} is not supported; choose bf16, fp16 "
            "or no."
        )
    steps = int(environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"))
    if steps > 1:
        settings["optim.accumulate"] = steps
    if _true(environment, "ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION", "1") != "2":
            raise UsageError(
                "accelerate config: FSDP version 1 is not supported; set fsdp_version to 2."
            )
        _refuse(environment, REFUSED_WITH_FSDP)
        settings["processes.shard"] = True
        if _true(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
            settings["memory.checkpoint"] = True
    if _true(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        _refuse(environment, REFUSED_AXES)
        copies, shares = (
            int(environment.get(f"PARALLELISM_CONFIG_DP_{axis}_SIZE", "1"))
            for axis in ("REPLICATE", "SHARD")
        )
        if copies > 1 and shares > 1:
            raise UsageError(
                "accelerate config: hybrid sharding (dp_replicate_size and dp_shard_size above 1) "
                "is not supported; set one of them to 1."
            )
        if shares > 1:
            settings["processes.shard"] = True
    return settings


def started_alone(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch` was to start several processes on CPUs, and started this one.

    It then says where they are to meet, and no launcher has said how many there are.
    """
    meeting = _true(environment, "ACCELERATE_USE_CPU") and "MASTER_PORT" in environment
    return meeting and "WORLD_SIZE" not in environment


def variables(file: Path) -> dict[str, str]:
    """The environment variables that `accelerate launch` makes of a saved configuration.

    Raises:
        UsageError: no configuration of Accelerate for this machine
    """
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        found = load_config_from_file(str(file)).to_dict()
    except (KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"no configuration of Accelerate ({reason}).") from None
    kind = str(found.get("distributed_type", "NO"))
    made = {
        "ACCELERATE_MIXED_PRECISION": found.get("mixed_precision") or "no",
        "ACCELERATE_USE_DEEPSPEED": kind == "DEEPSPEED",
        "ACCELERATE_USE_MEGATRON_LM": kind == "MEGATRON_LM",
        "ACCELERATE_USE_FSDP": kind == "FSDP",
        "ACCELERATE_USE_PARALLELISM_CONFIG": bool(found.get("parallelism_config")),
    }
    for section in ("dynamo_config", "fsdp_config", "parallelism_config"):
        prefix = "ACCELERATE_" if section == "dynamo_config" else ""
        for name, value in (found.get(section) or {}).items():
            made[f"{prefix}{name.upper()}"] = value
    return {name: str(value).lower() for name, value in made.items()}


def overlaid_by_accelerate(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """The configuration of a run with what the environment asks for.

    Raises:
        UsageError: not supported, or the configuration says otherwise
    """
    settings = requested(environment)
    steps, own = settings.get("optim.accumulate", 1), config.optim.accumulate
    if steps > 1 and own not in (1, steps):
        raise UsageError(
            f"accelerate config: gradient_accumulation_steps {steps} and optim.accumulate {own} "
            "differ; give one of them."
        )
    if not settings:
        return config
    tree = config.dump()
    for name, value in settings.items():
        section, _, key = name.partition(".")
        tree[section][key] = value
    return parse(tree, where="accelerate config")


def _true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1", "yes")


def _refuse(environment: Mapping[str, str], table: Mapping[str, tuple[str, str, str]]) -> None:
    for variable, (neutral, name, remedy) in table.items():
        if environment.get(variable, neutral).lower() not in (neutral, ""):
            raise UsageError(f"accelerate config: {name} is not supported; {remedy}.")
