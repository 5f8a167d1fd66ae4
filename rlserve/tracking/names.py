"""What every metric is called: documented here once.

Three families. Training has verl's names, the engine has vLLM's, so that dashboards and eyes that know them need no
change; only what neither has is named by us (``pool/…``, ``manager/…``, ``weights/…``, ``rollout/…``).
TRL's name follows in brackets where TRL users know the same quantity.
"""

from __future__ import annotations

from collections.abc import Mapping

REWARD = "critic/score/mean"
KL = "critic/kl"
LOSS = "train/loss"
TIME = "training/time_s"
HELD_OUT = "val-core/held_out/mean@1"
HELD_OUT_FAILED = "val-core/held_out/num_failed"
HELD_OUT_LEFT_OUT = "val-core/held_out/num_left_out"
ROLLOUT_TOKENS_PER_S = "rollout/tokens_per_s"
TRAINED_TOKENS_PER_S = "perf/throughput"
QUEUE_LENGTH = "manager/queue_length"
NUM_BUFFERED = "rollout/num_buffered"
STALENESS_MAX = "training/staleness/max"
LOG_PROB_DIFFERENCE = "training/log_prob_diff_mean"
KL_K3 = "critic/kl_k3"
BEHAVIOUR_KL = "training/behaviour_kl"
ENTROPY = "actor/entropy"
POLICY_GRAD_NORM = "actor/grad_norm"
RESPONSE_LENGTH = "response_length/mean"
CLIP_RATIO = "response_length/clip_ratio"
FRAC_REWARD_ZERO_STD = "frac_reward_zero_std"
STEP_S = "timing_s/step"
WAIT_S = "timing_s/wait"
SAVE_S = "timing_s/save_checkpoint"
ROLLOUT_BUSY = "rollout/busy_share"
KEPT_SHARE = "rollout/kept_share"
MEAN_BATCH = "rollout/mean_batch"
WAIT_SHARE = "perf/wait_share"
SYNC_S = "weights/sync_s"
HOST_BUSY = "pool/host_busy_share"

METRICS: Mapping[str, str] = {
    # Training (verl).
    "training/global_step": "number of the training step; 0 is before the first",
    TIME: "seconds that the run has been going when the step ended, stops between resumes left out",
    "actor/pg_loss": "clipped policy loss [TRL loss/policy_avg]",
    "actor/ppo_kl": "mean log-probability difference between the old policy and the new [TRL policy/approxkl_avg]",
    "actor/pg_clipfrac": "share of tokens whose ratio was clipped [TRL policy/clipfrac_avg]",
    ENTROPY: "mean entropy of the policy, nats per token [TRL policy/entropy_avg]; with entropy_coefficient=0 "
    "its estimate from the sampled tokens, minus their mean log-probability",
    POLICY_GRAD_NORM: "norm of the policy's gradient before clipping",
    "actor/lr": "learning rate of the policy",
    "actor/kl_loss": "(with kl_loss_coefficient) KL of the updated policy to the frozen reference, by kl_loss_type",
    "actor/entropy_threshold": "(with top_entropy_quantile) lowest entropy of a token that the surrogate is of",
    "actor/positive_nll_loss": "(with positive_nll_coefficient) mean negative log-likelihood of right answers' tokens",
    "critic/grad_norm": "(PPO) norm of the critic's gradient before clipping",
    "critic/lr": "(PPO) learning rate of the critic",
    "critic/head_lr": "(`trainer.critic_head_learning_rate`) learning rate of its value head",
    "critic/vf_loss": "(PPO) clipped value loss [TRL loss/value_avg]",
    "critic/vf_clipfrac": "(PPO) share of tokens whose value was clipped",
    "critic/vf_explained_var": "(PPO) share of the returns' variance that the values explain",
    "critic/score/{mean,max,min}": "reward of a sample as the reward function gave it [TRL objective/scores]",
    "critic/rewards/{mean,max,min}": "the same less penalties (kl_coefficient) [TRL objective/rlhf_reward]",
    "critic/advantages/{mean,max,min}": "advantages per token: of PPO before they are whitened",
    "critic/returns/{mean,max,min}": "(PPO) returns per token",
    "critic/values/{mean,max,min}": "(PPO) values per token",
    KL: "mean KL of the policy to the frozen reference, nats per token, by one sample: it scatters around the true "
    "value, and may be below 0, more so where top-k or top-p restrict the draws [TRL objective/kl]",
    "critic/kl_coefficient": "(with target_kl) coefficient of the KL penalty in this step [verl "
    "actor/reward_kl_penalty_coeff]",
    KL_K3: "the same by the estimate k3 (Schulman, http://joschu.net/blog/kl-approx.html), which is never below 0",
    "response_length/{mean,max,min}": "tokens of an answer that the model made",
    CLIP_RATIO: "share of answers cut by the length limit, or by environment.max_turns [TRL completions/clipped_ratio]",
    "response_length/environment_share": "(environment) share of the answers' tokens that the environment made",
    "rollout/num_turns/{mean,max,min}": "(environment) turns of the model in a conversation",
    FRAC_REWARD_ZERO_STD: "share of prompt groups whose answers all have the same reward; not written with one answer "
    "a prompt [TRL frac_reward_zero_std]",
    "rollout/greedy_score/mean": "(ReMax) mean reward of the greedy answers that the others are compared with",
    "prompt_length/{mean,max,min}": "tokens of a prompt",
    "training/staleness/{mean,max}": "steps between the version that made a token and the one it trains",
    "training/log_prob_diff_{mean,max}": "absolute difference of engine's and trainer's raw log-probability of a token",
    "training/log_prob_diff_staleness": "steps that the tokens compared there are old: 0 means the same weights",
    "training/rollout_probs_diff_mean": "the same difference of probabilities",
    "training/importance_weight_mean": "mean importance weight, within its thresholds [verl rollout_is_mean, TRL "
    "sampling/importance_sampling_ratio/mean]",
    "training/importance_weight_clipfrac": "share of tokens whose importance weight was beyond a threshold",
    "training/importance_weight_ess": "effective sample size of the importance weights before any threshold, as a "
    "share of the tokens [verl rollout_is_eff_sample_size]",
    "training/rejected_frac": "(with rollout_rs) share of tokens that were rejected",
    "training/num_nonfinite_samples": "samples left out of the step: a reward or a log-probability was not finite",
    BEHAVIOUR_KL: "KL of the distribution that was sampled from to the policy at the start of the step",
    "training/behaviour_kl_k3": "the same by k3, which is never below 0 [verl rollout_corr/k3_kl]",
    STEP_S: "seconds of the training step, waiting included",
    WAIT_S: "seconds that the trainer waited for samples",
    "timing_s/update_actor": "seconds of forward, backward and optimizer",
    SAVE_S: "seconds that training stood still after the step for a checkpoint, where one was due: to copy it, and "
    "until the one before was written",
    "timing_s/weights": "seconds of the step that training waited for weights: the copy, and of the wait for the batch "
    "what fell into the time that a version was on its way to the replicas",
    TRAINED_TOKENS_PER_S: "prompt and response tokens trained, per second of the step",
    "perf/total_num_tokens": "prompt and response tokens of the step",
    HELD_OUT: "share of held-out prompts answered right, of those whose answer could be scored; (reward_model) "
    "val/accuracy; (sft) exp(-val/loss), the geometric mean probability of a right token",
    LOSS: "(sft, reward_model) loss of the step: mean negative log-likelihood of the trained tokens, or of the pairs",
    "train/perplexity": "(sft) exp of the loss",
    "train/accuracy": "(reward_model) share of pairs whose chosen answer has the higher score [TRL accuracy]",
    "train/score_margin": "(reward_model) chosen less rejected score, in the mean [TRL margin]",
    "train/score": "(reward_model) mean score of all answers [TRL mean_reward]",
    "val/{loss,perplexity,accuracy,score_margin,score}": "the same of the held-out rows [TRL eval_loss and so on]",
    HELD_OUT_FAILED: "held-out answers that could not be scored: the reward failed, or the engine refused the prompt",
    HELD_OUT_LEFT_OUT: "held-out answers that the reward left out by returning None",
    "reward/NAME/mean": "mean of each further number that the reward or the environment returns, or of each of "
    "several rewards; NAME is environment for the sum of the environment's own rewards, and truncated for a reward "
    "model: share of texts that were too long for it",
    "val-core/held_out/NAME/mean@1": "mean of such a number over the held-out answers that were scored",
    # Engine (vLLM), summed or averaged over the replicas.
    "vllm:num_requests_running": "sequences in the engines' running batches",
    "vllm:num_requests_waiting": "sequences that wait inside the engines",
    "vllm:kv_cache_usage_perc": "share of the KV blocks in use, 0 to 1",
    "vllm:num_preemptions": "sequences thrown back to the waiting queue for want of KV blocks",
    "vllm:generation_tokens": "tokens generated since the run began",
    "vllm:prefix_cache_hit_rate": "share of prompt tokens found in the prefix cache",
    # Ours.
    ROLLOUT_TOKENS_PER_S: "tokens generated per second, all replicas together",
    ROLLOUT_BUSY: "share of their time that the replicas computed since the step before; the rest they waited",
    MEAN_BATCH: "samples in an engine's step, lately, in the mean of the replicas",
    KEPT_SHARE: "share of the scored prompt groups, lately, that may be trained on; the others are dropped",
    "perf/padding_share": "share of the tokens that went through the trainer's networks which are padding",
    WAIT_SHARE: "share of the trainer's time, lately, that it waited for samples",
    "rollout/num_{pending,running,buffered}": "prompt groups in that state",
    "rollout/num_dropped": "prompt groups dropped since the run began",
    "rollout/environment_s": "(environment) seconds that the environment of a conversation took, in the mean",
    "rollout/num_environment_failures": "(environment) prompt groups dropped since the run began because of it; from "
    "the first on",
    "pool/num_{train,rollout,moving,dead}": "slots that train, roll out, change roles, are lost",
    "pool/num_worker_failures": "workers lost since the run began",
    "pool/num_{wanted,asked,grown}": "(scale_out) slots of the types that the run grows by: that it has use for, "
    "up to its most; asked of the cluster, those that are there included; there",
    "cost/money_per_hour": "(scale_out) most that all slots of the run may cost an hour, with those that are "
    "still to come or to end",
    "cost/money_per_hour_limit": "(scale_out.money_per_hour) most that they may",
    "pool/num_{lent,borrowed}": "(a shared cluster) slots that other runs have because this one gave them up, or it "
    "because they did",
    "pool/num_owed": "(a shared cluster) slots of this run's share that others have not given up so far",
    "pool/turn_to_{train,rollout}_s": "(colocated) seconds from the end of the other role's turn until all gangs had "
    "this one",
    "pool/{engine,trainer}_released_bytes": "(colocated) memory that engines or trainers gave back at the end of their "
    "last turn, all slots together",
    "pool/{engine,trainer}_kept_bytes": "(colocated) what the processes of all slots still held then",
    HOST_BUSY: "share of their time that the processors of this machine are busy, where CPU slots share them",
    QUEUE_LENGTH: "prompt groups that wait for a replica: what the queue-length rule looks at",
    "manager/num_moves_to_{train,rollout}": "moves since the run began",
    "manager/move_s": "seconds of the last move, from the end of the old role to the new one",
    "manager/trainer_pause_s": "seconds that training stood still for it",
    "training/resize_s": "seconds of the changes of the trainers' group since the step before, from the call of its "
    "members until all were in it; only after a change, as the next two",
    "training/resize_moved_bytes": "state that trainers sent each other for that",
    "training/resize_least_bytes": "state that they were to hold and did not, which is the least that can be sent",
    "cost/gpu_hours": "time that the run has had its slots, all together; a CPU slot counts like a GPU, as in all "
    "of cost/",
    "cost/money": "(cost.prices) what that cost, in the currency of the prices, as in all of cost/",
    "cost/budget_share": "(cost.budget) share of the budget that is spent, of two the larger",
    "cost/useful_share": "share of that time that went into training steps, and into tokens that were trained on",
    "cost/{in_flight,startup,idle,bubble,switching,weight_sync}_share": "share that went into this: docs/cost.md",
    "cost/{evaluation,checkpoint,recompute,lost,dropped,surplus}_share": "share that went into this: docs/cost.md",
    "cost/clients_share": "share that went into tokens for clients of the run's server",
    "cost/{gpu_hours,money}_per_step": "all of it, for a training step",
    "cost/{gpu_hours,money}_per_1m_trained_tokens": "all of it, for a million tokens in training steps, prompts "
    "included",
    "cost/{gpu_hours,money}_per_1m_rollout_tokens": "of the slots in rollout, for a million tokens that they generated",
    "weights/version": "newest version that replicas can take",
    "weights/snapshot_s": "seconds that training stood still for a copy of the weights",
    "weights/publish_s": "seconds from the copy until replicas could take the version, beside the training",
    "weights/load_s": "longest that an engine stood still for its version: the swap and the proof of what is loaded",
    SYNC_S: "seconds from the offer of a version until a replica serves it, in the mean of the last",
    "weights/swap_s": "seconds from then until the last replica served the version",
    "weights/changed_share": "share of the elements, in the engines' type, that differ in any bit from the version "
    "sent before; of a sample where they are many",
    "weights/sent_bytes": "size of the newest version as it travelled, whole or as what changed",
    "weights/whole_bytes": "size of the whole weights",
    "weights/canary_difference_max": "largest difference of a replica from the trainer in the log-probabilities of the "
    "canary, nats a token, at the newest version that was compared",
    "weights/num_canary_refreshes": "times that a replica differed too much there and took the weights anew, since the "
    "run began",
}
"""Pattern of a name (braces list alternatives) and what it measures."""


def held_out_part(name: str) -> str:
    """The metric of a further number of the reward, over the held-out answers."""
    return f"val-core/held_out/{name}/mean@1"
