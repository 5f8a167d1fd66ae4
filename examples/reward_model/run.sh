#!/bin/sh
# The whole way, from random weights: two minutes and a half on two CPU cores. Stand in the repository.
set -e
python examples/reward_model/make_model.py sorting/blank
rlserve launch examples/reward_model/sft.yaml name=warm
rlserve export warm --to sorting/warm
rlserve launch examples/reward_model/reward_model.yaml name=judge
rlserve export judge --to sorting/judge
rlserve launch examples/reward_model/ppo.yaml name=rlhf
