#!/bin/bash
# A machine of the run: node.sh head|HOST-OF-HEAD OPTIONS-OF-RAY-START
set -uo pipefail
trap '' TERM INT  # SkyPilot signals all processes, and ends them 30 s later: the run saves, this script waits for it
head=$1 port=22379; shift
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/rlserve/ray_token RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS  # SkyPilot has a Ray of its own
ray_node=(python3 -m rlserve.launch.ray_node --temp-dir=/tmp/rlserve-ray)
is_task_of_head=$([[ $head == head ]] && echo yes || echo no)
[[ $is_task_of_head == yes ]] && head=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")

if [[ $is_task_of_head == yes && $SKYPILOT_NODE_RANK == 0 ]]; then
    "${ray_node[@]}" --head --node-ip-address="$head" --port=$port "$@" &
    python3 -m rlserve launch ~/rlserve/run.yaml --continue launch.address="$head:$port"
    code=$?
    kill -ALRM $!  # Ray heeds none of the usual signals
    wait
    exit $code
fi

# Any other machine belongs to the run's Ray as long as that lives. Where the head has been replaced, it joins the new one;
# beside the head, its task ends with it.
while true; do
    address=$(getent hosts "$head" | cut -d ' ' -f 1 | head -n 1)
    if [[ -n $address ]] && (exec 3<> "/dev/tcp/$address/$port") 2> /dev/null; then
        "${ray_node[@]}" --address="$address:$port" "$@"
        [[ $is_task_of_head == yes ]] && exit 0
    fi
    sleep 5
done
