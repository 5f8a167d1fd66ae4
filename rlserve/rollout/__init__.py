"""The rollout side: prompts, the ledger of prompt groups, the router to replicas, rewards, and the sample buffer."""
