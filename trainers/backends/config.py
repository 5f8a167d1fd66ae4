"""Configuration of the backends, one dataclass each, told apart by ``backend``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlserve.errors import check_fields

SAME_BITS_BLOCK_SIZES = (16, 32, 64, 128)
"""``block_size`` of engines that give the log-probabilities of a deterministic trainer, bit for bit: with all of these
attention adds up a row in one and the same order."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train low-rank adapters (Hu et al. 2021, arXiv 2106.09685) in place of the model's own weights, by peft."""

    rank: int = 0
    """Of the adapters; 0 trains all weights."""
    alpha: float = 32.0
    """An adapter's product is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter, in every layer of policy and critic."""

    @property
    def is_on(self) -> bool:
        """Whether adapters are trained."""
        return self.rank > 0

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.alpha / self.rank

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "rank": self.rank >= 0 or "must be at least 0",
                "alpha": self.alpha > 0 or "must be above 0",
                "target_modules": bool(self.target_modules) or "must name at least one",
            },
        )


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """What all backends have: the optimizer, precision, and how much is computed at once."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the forward and backward passes compute in; master weights are always float32."""
    activation_checkpointing: bool = False
    """Keep of a forward pass only what goes into each decoder layer, and compute the layer again in the backward pass:
    a fourth more arithmetic, and much less memory where samples are long. The results are the same."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    learning_rate: float = 1e-6
    """Of the policy."""
    critic_learning_rate: float = 5e-6
    """Of the critic."""
    critic_head_learning_rate: float | None = None
    """Of the critic's value head, which is new where its backbone is trained already; it follows the critic's schedule.
    None: that of the critic."""
    critic_trunk: Literal["separate", "shared"] = "separate"
    """`separate`: the critic is a network of its own, like the policy. `shared`: it is a value head on the policy's
    last hidden states, and the losses of policy and values go through one network in one pass, whose gradient is
    clipped as one. The network learns at the policy's rate, and the head at the critic's."""
    critic_model_path: str | None = None
    """Reward model that the critic begins as: folder or hub name of a sequence classifier of transformers with one
    label and a backbone of the policy's shape; its ``score`` becomes the value head. None: the policy's backbone, with
    a new head."""
    num_warmup_steps: int = 0
    """Optimizer steps over which the learning rates rise linearly to their value."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rates do after that: stay, or fall along a line or half a cosine, as the schedules of
    transformers."""
    num_schedule_steps: int | None = None
    """Optimizer steps, those of the warm-up included, after which they have fallen. None: all those of the run."""
    min_learning_rate_ratio: float = 0.0
    """What they fall to, as a share of their value."""
    critic_warmup_steps: int = 0
    """Optimizer steps at the beginning in which the critic alone learns: the policy stays as it is, and its schedule
    begins after them (VC-PPO, arXiv 2503.01491; verl's critic_warmup). With a shared trunk the value head alone."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW, policy and critic."""
    decay_norms_and_biases: bool = False
    """Let weight decay act on norms and biases too, as plain AdamW does; False as the Trainer of transformers."""
    adam_beta1: float = 0.9
    """Decay of the mean of the gradients in AdamW."""
    adam_beta2: float = 0.95
    """Decay of the mean of their squares."""
    max_grad_norm: float = 1.0
    """Norm that the gradients of policy and critic are each clipped to; with a shared trunk, that of both together."""
    ppo_max_token_len_per_gpu: int = 16384
    """Most tokens, padding included, that go through a network at once. What a rank computes of a mini-batch is cut
    into passes between samples; less takes less memory. One sample always fits."""
    timeout_s: float = 120.0
    """Deadline of every collective operation, and of forming a group."""
    step_timeout_s: float = 3600.0
    """Deadline of one whole training step."""

    @property
    def weights_are_spread(self) -> bool:
        """Whether each rank of a group has some of the policy's tensors to send and to save; otherwise rank 0 has all
        of them (``Trainer.weights``)."""
        return False

    @property
    def shares_trunk(self) -> bool:
        """Whether a critic, where there is one, is a head on the policy."""
        return self.critic_trunk == "shared"

    def __post_init__(self) -> None:
        check_fields(self, self._ranges())

    def _fits_critic_model(self) -> Literal[True] | str:
        """True, or what is wrong."""
        if self.shares_trunk:
            return "must be null with critic_trunk=shared, where the policy is the trunk; or use critic_trunk=separate"
        if self.lora.is_on:
            return "must be null with lora.rank, where policy and critic share one frozen base"
        return True

    def _ranges(self) -> dict[str, bool | str]:
        return {
            "learning_rate": self.learning_rate > 0 or "must be above 0",
            "critic_learning_rate": self.critic_learning_rate > 0 or "must be above 0",
            "critic_head_learning_rate": self.critic_head_learning_rate is None
            or self.critic_head_learning_rate > 0
            or "must be above 0, or null",
            "critic_model_path": self.critic_model_path is None or self._fits_critic_model(),
            "num_warmup_steps": self.num_warmup_steps >= 0 or "must be at least 0",
            "num_schedule_steps": self.num_schedule_steps is None
            or self.num_schedule_steps >= 1
            or "must be at least 1, or null",
            "min_learning_rate_ratio": 0 <= self.min_learning_rate_ratio <= 1 or "must be in [0, 1]",
            "critic_warmup_steps": self.critic_warmup_steps >= 0 or "must be at least 0",
            "weight_decay": self.weight_decay >= 0 or "must be at least 0",
            "adam_beta1": 0 <= self.adam_beta1 < 1 or "must be in [0, 1)",
            "adam_beta2": 0 <= self.adam_beta2 < 1 or "must be in [0, 1)",
            "max_grad_norm": self.max_grad_norm > 0 or "must be above 0",
            "ppo_max_token_len_per_gpu": self.ppo_max_token_len_per_gpu >= 1 or "must be at least 1",
            "timeout_s": self.timeout_s > 0 or "must be above 0",
            "step_timeout_s": self.step_timeout_s > 0 or "must be above 0",
        }


@dataclass(frozen=True, kw_only=True)
class TorchTrainerConfig(OptimizationConfig):
    """Plain PyTorch, data-parallel: what is cut up over the ranks, and what computes."""

    backend: Literal["torch"] = "torch"
    """What computes."""
    kernels: Literal["auto", "torch", "triton", "native"] = "auto"
    """What computes the networks' layers: `torch` is transformers' own code; `triton` computes norms, rotary embeddings
    and gated activations in one operation each, and rounds weights once a step. It needs a GPU. `native` is for CPUs:
    it does the same and attention too, without padding, and computes once what samples share at their beginning, a
    prompt above all. `auto` takes `triton` on a GPU and `native` on a CPU where they can be had."""
    deterministic: bool = False
    """Compute the policy with the engine's own kernels, so that its log-probabilities are those of an engine on the CPU
    in float32, bit for bit; gradients are PyTorch's. Needs the CPU, dtype float32 and a model without experts."""
    offload_optimizer: bool = False
    """Keep AdamW's moments, 8 bytes a trained parameter, in pinned host memory, and bring them to the GPU in parts at
    each update. The results are the same. On a CPU it saves nothing."""
    sharding: Literal["optimizer", "full"] = "optimizer"
    """What is cut up over the trainers: `optimizer` leaves policy, critic and reference whole on each, gives the same
    bits on any number of them, and loses nothing with any one; `full` cuts these up too (PyTorch's `fully_shard`), for
    models that do not fit one GPU: a trainer that is lost ends the run, which goes on with `--resume`, and `auto`
    kernels are those of `torch`."""
    num_logical_shards: int = 12
    """Parts that every mini-batch is cut into, whatever the number of ranks: gradients are summed over them in a
    fixed tree, so the trajectory does not depend on how many ranks compute it. A rank computes one shard at a time.
    With `kernels=native` there are fewer, but two, where they would have less than 1,024 tokens."""

    @property
    def weights_are_spread(self) -> bool:
        return self.sharding == "full"

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {
            "deterministic": not self.deterministic
            or (self.dtype != "float32" and "needs dtype=float32")
            or (self.lora.is_on and "needs lora.rank=0: the engine multiplies adapters out, and the trainer does not")
            or True,
            "sharding": self.sharding == "optimizer" or self._fits_full_sharding(),
            "num_logical_shards": self.num_logical_shards >= 1 or "must be at least 1",
        }

    def _fits_full_sharding(self) -> Literal[True] | str:
        """True, or what is wrong."""
        if self.deterministic:
            return "must be optimizer with deterministic=true, which computes with whole weights"
        if self.lora.is_on:
            return f"must be optimizer with lora.rank={self.lora.rank}: the networks share one base, and it is whole"
        if self.kernels not in ("auto", "torch"):
            return f"must be optimizer with kernels={self.kernels}, which computes with whole weights"
        return True


@dataclass(frozen=True, kw_only=True)
class DeepSpeedTrainerConfig(OptimizationConfig):
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): what a rank would hold alike is cut up among all.
    Needs the package, the extra `rlserve[deepspeed]`."""

    backend: Literal["deepspeed"] = "deepspeed"
    """What computes."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is cut up: nothing, the optimizer's state, gradients too, or parameters too."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory, and update there. Needs zero_stage 1 or above."""
    offload_parameters: bool = False
    """Keep parameters in host memory while they are not computed with. Needs zero_stage 3."""

    @property
    def weights_are_spread(self) -> bool:
        return self.zero_stage == 3

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {
            "offload_optimizer": not self.offload_optimizer
            or self.zero_stage >= 1
            or "needs zero_stage 1, 2 or 3, which cut up the optimizer's state",
            "offload_parameters": not self.offload_parameters
            or self.zero_stage == 3
            or "needs zero_stage=3, which cuts up the parameters",
            "zero_stage": self.zero_stage != 3
            or not self.lora.is_on
            or "must be 0, 1 or 2 with lora.rank above 0: the frozen base, which the networks share, is not cut up",
        }


TrainerConfig = TorchTrainerConfig | DeepSpeedTrainerConfig
"""Any backend's; without a ``backend`` it is the first."""
