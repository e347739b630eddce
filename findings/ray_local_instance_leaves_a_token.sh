#!/usr/bin/env bash
# Ray 2.60.0: a local ray.init() leaves a token in the home folder; a cluster that is started later on the machine then
# wants it, and a client that does have it on disk fails to connect all the same unless it says that it has one.
#
# Guess: a local instance is a matter of its process, and leaves nothing in the home folder; and where there is a token,
#        everybody on the machine who may read it can connect.
# Seen:  ray.init(address="local") writes ~/.ray/auth_token. From then on `ray start --head` turns authentication on, and
#        ray.init("HOST:PORT") of the same user, with the same file, ends with "Failed to connect to Ray cluster" after
#        its retries. With RAY_AUTH_MODE=token in its environment it connects.
#
# What it means here: gru_fast/jobs/driver.py gives a local instance a token of its own in the environment, which leaves no
# file; docs/clusters.md has RAY_AUTH_MODE=token in front of every command.
#
# Needs a package index and some 300 MB in a temporary folder. Exit status 0: as described; 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
python3 -m venv "$work/venv"
export PATH=$work/venv/bin:$PATH HOME=$work RAY_USAGE_STATS_ENABLED=0 RAY_gcs_rpc_server_reconnect_timeout_s=5
port=$((20000 + RANDOM % 20000))
trap 'pkill -f "gcs_server.*--gcs_server_port=$port" || true; sleep 2; rm -rf "$work"' EXIT
pip install --quiet --disable-pip-version-check ray==2.60.0

python -c 'import ray; ray.init(address="local", num_cpus=1, include_dashboard=False); ray.shutdown()' >"$work/log" 2>&1
[[ -f $HOME/.ray/auth_token ]] && left=yes || left=no
echo "after a local instance: a token in the home folder: $left"

ray start --head --port="$port" --num-cpus=1 --include-dashboard=false >>"$work/log" 2>&1
join="import ray; ray.init('127.0.0.1:$port'); print('connected')"
plain=$(timeout 120 python -c "$join" 2>>"$work/log" | tail -1 || true)
named=$(RAY_AUTH_MODE=token timeout 120 python -c "$join" 2>>"$work/log" | tail -1 || true)
echo "a client of the same user: ${plain:-failed to connect}; with RAY_AUTH_MODE=token: ${named:-failed to connect}"
[[ $left == yes && $plain != connected && $named == connected ]]
