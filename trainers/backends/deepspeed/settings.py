"""DeepSpeed's own configuration of one network, from ours. Pure."""

from __future__ import annotations

from typing import Any

from rlserve.trainers.backends.config import DeepSpeedTrainerConfig

_BUCKET_ELEMENTS = 50_000_000
"""Most of a gradient that is summed at once: 200 MB, which DeepSpeed sets aside for each network."""


def deepspeed_settings(config: DeepSpeedTrainerConfig, *, num_elements: int, pins_memory: bool) -> dict[str, Any]:
    """As ``deepspeed.initialize`` takes them, for a network of so many elements.

    Args:
        pins_memory: whether what is in host memory is to be pinned, for copies to a GPU.
    """
    in_host_memory = {"device": "cpu", "pin_memory": pins_memory}
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": min(_BUCKET_ELEMENTS, num_elements),
        "overlap_comm": pins_memory,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = in_host_memory
    if config.offload_parameters:
        zero["offload_param"] = in_host_memory
    return {
        # How samples are cut into passes is our own affair, and so is when a mini-batch is complete.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Parameters stay float32, and so are the sums of gradients, since no modules are named as safe in less.
        "torch_autocast": {
            "enabled": config.dtype == "bfloat16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
