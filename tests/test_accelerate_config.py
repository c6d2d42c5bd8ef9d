"""Configurations of Accelerate: everything in them is taken over or refused by name."""

import pytest
import yaml
from tiny_runs import tiny

from volumediff.commands._doctor import _accelerate
from volumediff.distributed.accelerate_config import (
    overlaid_by_accelerate,
    requested,
    started_alone,
    variables,
)
from volumediff.distributed.processes import start
from volumediff.errors import UsageError

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
AXES = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}


def of(environment, *words):
    return overlaid_by_accelerate(tiny("data", "run", *words), environment)


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, {}),
        (
            # what `accelerate launch` sets for one or more GPUs without any question answered
            {
                "ACCELERATE_MIXED_PRECISION": "no",
                "ACCELERATE_DYNAMO_BACKEND": "NO",
                "ACCELERATE_USE_CPU": "False",
            },
            {},
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"memory.dtype": "bfloat16"}),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"memory.dtype": "float16"}),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, {"optim.accumulate": 2}),
        (FSDP, {"processes.shard": True}),
        (
            FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_OFFLOAD_PARAMS": "false"},
            {"processes.shard": True},
        ),
        (
            FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            {"processes.shard": True, "memory.checkpoint": True},
        ),
        (AXES | {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "4"}, {}),
        (AXES | {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "4"}, {"processes.shard": True}),
    ],
)
def test_what_is_asked_for_becomes_settings(environment, settings):
    assert requested(environment) == settings
    config, own = of(environment).dump(), tiny("data", "run").dump()
    for name, value in settings.items():
        section, _, key = name.partition(".")
        assert config[section].pop(key) == value
        assert own[section].pop(key) != value
    assert config == own, "nothing else changes"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported; use FSDP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision fp8 is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is not supported; set fsdp_version"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "fsdp_reshard_after_forward is not"),
        (AXES | {"PARALLELISM_CONFIG_TP_SIZE": "2"}, r"tensor parallelism \(tp_size\) is not"),
        (AXES | {"PARALLELISM_CONFIG_CP_SIZE": "2"}, r"cp_size\) is not .* processes.domain"),
        (AXES | {"PARALLELISM_CONFIG_SP_SIZE": "2"}, r"sequence parallelism \(sp_size\)"),
        (
            AXES
            | {
                "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
                "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
            },
            "hybrid sharding",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3"}, "batch_size .2. to be a multiple"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(environment, said):
    with pytest.raises(UsageError, match=f"^accelerate config: .*{said}") as caught:
        of(environment)
    assert "\n" not in str(caught.value)


def test_two_answers_to_one_question_are_refused():
    words = ["optim.batch_size=12", "optim.accumulate=3"]
    with pytest.raises(UsageError, match=r"accumulation_steps 2 and optim\.accumulate 3"):
        of({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, *words)
    assert of({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3"}, *words).optim.accumulate == 3


SAVED = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "mixed_precision": "bf16",
    "num_machines": 1,
    "num_processes": 4,
    "use_cpu": False,
    "debug": False,
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_activation_checkpointing": True,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    },
}


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, "ok", 'memory.dtype="bfloat16", processes.shard=true, memory.checkpoint=true'),
        ({"distributed_type": "MULTI_GPU", "fsdp_config": {}}, "ok", 'memory.dtype="bfloat16"'),
        ({"fsdp_config": {"fsdp_version": 1}}, "problem", "set fsdp_version to 2"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {}}, "problem", "DeepSpeed is not"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "problem", "dynamo_backend is not"),
        (
            {"parallelism_config": {"parallelism_config_tp_size": 2}},
            "problem",
            "tensor parallelism",
        ),
        ({"nonsense": 1}, "problem", "no configuration of Accelerate"),
    ],
)
def test_doctor_reads_the_saved_configuration(tmp_path, changes, state, said):
    file = tmp_path / "default_config.yaml"
    file.write_text(yaml.safe_dump(SAVED | changes))
    found = _accelerate({}, file)
    assert (found.state, said in found.message) == (state, True), found
    assert str(file) in found.message


def test_doctor_reads_the_launch_first(tmp_path):
    launched = _accelerate({"ACCELERATE_MIXED_PRECISION": "fp8"}, tmp_path / "none.yaml")
    assert launched.state == "problem"
    assert "accelerate launch: accelerate config: mixed_precision fp8" in launched.message
    assert _accelerate({}, tmp_path / "none.yaml").state == "ok"


def test_variables_are_those_of_accelerate(tmp_path):
    """The oracle: what Accelerate's own launcher makes of the file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(SAVED))
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "program.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    launched = {
        name: str(value).lower() for name, value in prepare_multi_gpu_env(arguments).items()
    }
    made = variables(file)
    assert requested(made) == requested(launched)
    for name in ("FSDP_VERSION", "FSDP_OFFLOAD_PARAMS", "FSDP_RESHARD_AFTER_FORWARD"):
        assert made[name] == launched[name]


# What `accelerate launch` 1.15 sets for `distributed_type: MULTI_CPU, num_processes: 2`.
MULTI_CPU = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_one_process_of_several_on_cpus_is_known():
    assert started_alone(MULTI_CPU)
    assert not started_alone(MULTI_CPU | {"WORLD_SIZE": "2"}), "started by torchrun"
    assert not started_alone({"ACCELERATE_USE_CPU": "True"}), "one was asked for"


def test_one_process_of_several_on_cpus_does_not_train(monkeypatch):
    for name, value in MULTI_CPU.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"one process was started, .* has several.* torchrun"):
        start(tiny("data", "run"))
