"""Builds SGLang's model of a configuration without weights, on torch's ``meta`` device.

For questions about a model's structure that must not cost its loading. Takes a second and no
memory, but changes this process for good (settings published, a group of one rank): for commands,
not for servers.
"""

import tempfile
from typing import Any

import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.parallel_state import (
    init_distributed_environment,
    initialize_model_parallel,
)
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.model_loader.loader import _initialize_model
from sglang.srt.runtime_context import SpawnRanks, publish
from torch import nn


def model_config(settings: Any) -> Any:
    """Return SGLang's ``ModelConfig`` of a server's settings.

    Raises:
        Exception: Whatever SGLang or transformers say of a model that they cannot read.
    """
    return ModelConfig.from_server_args(settings)


def bare_model(settings: Any, config: Any) -> nn.Module:
    """Build the model of one rank, without weights.

    Args:
        settings: SGLang's ``ServerArgs``, resolved, for one rank.
        config: Its ``ModelConfig``.

    Raises:
        Exception: Whatever the model's own code says, for instance without a GPU that it needs.
    """
    publish(settings, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    with tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{folder}/rendezvous",
            backend="gloo",
        )
        initialize_model_parallel()
        initialize_dp_attention(settings)
        try:
            with torch.device("meta"):
                model: nn.Module = _initialize_model(config, LoadConfig())
            return model
        finally:
            torch.distributed.destroy_process_group()
