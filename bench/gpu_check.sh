#!/usr/bin/env bash
# Everything a machine with an NVIDIA GPU can tell about gru_fast, in one command and without a network.
#
#   bench/gpu_check.sh            a few minutes
#   bench/gpu_check.sh --quick    tests, memcheck and the smallest model only
#
# Needs python3 (or $PYTHON) with torch, pybind11, scikit-build-core and pytest, and nvcc. Builds into a folder of its own
# and leaves the installed packages alone. Writes bench/results/<device>.json and .md. A stage that fails or runs out of
# time does not stop the others; the exit status is 0 only if all of them passed.

set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
quick=false

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

for argument in "$@"; do
  case $argument in
    --quick) quick=true ;;
    -h | --help) usage; exit 0 ;;
    *) echo "gpu_check: unknown argument $argument" >&2; usage >&2; exit 2 ;;
  esac
done

refuse() { echo "gpu_check: $1" >&2; exit 2; }

# ---- what has to be there ----------------------------------------------------------------------------------------------

for folder in /usr/local/cuda/bin "${CUDA_HOME:-/usr/local/cuda}/bin"; do
  [[ -d $folder ]] && PATH=$PATH:$folder
done
export PATH
"$python" -c 'import torch' 2>/dev/null || refuse "$python has no torch; set PYTHON to one that has"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
  refuse "torch sees no CUDA device (nvidia-smi: $(nvidia-smi -L 2>&1 | head -n 1))"
command -v nvcc >/dev/null || refuse "no nvcc on PATH or in /usr/local/cuda/bin: the CUDA kernels cannot be built"

device=$("$python" -c 'import torch; print(torch.cuda.get_device_name())')
slug=$(tr '[:upper:] ' '[:lower:]-' <<<"$device" | tr -cd 'a-z0-9.-')
work=$(mktemp -d "${TMPDIR:-/tmp}/gru_fast_gpu_check.XXXXXX")
site=$work/site
results=$root/bench/results
mkdir -p "$results"
# Only what was built here is imported: not the source tree, not an installed copy.
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}

# ---- stages ------------------------------------------------------------------------------------------------------------

names=() outcomes=()

# stage NAME SECONDS COMMAND...: runs it with a time limit, keeps its output in $work/NAME.log.
stage() {
  local name=$1 limit=$2 began=$SECONDS status outcome
  shift 2
  echo "=== $name (at most $limit s)"
  (cd "$work" && timeout --kill-after=10 "$limit" "$@") 2>&1 | tee "$work/$name.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) outcome=ok ;;
    124 | 137) outcome="FAILED: over $limit s" ;;
    *) outcome="FAILED: exit status $status" ;;
  esac
  names+=("$name")
  outcomes+=("$outcome, $((SECONDS - began)) s")
  [[ $status == 0 ]]
}

summary() {
  local i failed=0
  for i in "${!names[@]}"; do
    printf '%-14s %s\n' "${names[i]}" "${outcomes[i]}"
    [[ ${outcomes[i]} == ok,* ]] || failed=1
  done
  return "$failed"
}

finish() {
  echo "=== summary: $device"
  summary
  local status=$?
  echo "logs: $work"
  exit "$status"
}

build() {
  GRU_FAST_CUDA=on "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-build-isolation \
    --no-deps --target "$site" "$root" &&
    "$python" -c 'import gru_fast; print(gru_fast.__file__); print(gru_fast.build_info())'
}

tests() { "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q "$root/tests" "$@"; }

# Without torch's caching allocator every tensor is an allocation of its own, and a step past its end is seen.
sanitizer() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 \
    "$python" "$root/bench/sanitizer_cases.py"
}

step_time() {
  "$python" "$root/bench/step_time.py" --device cuda --dtype bfloat16 --ema-dtype grad float32 --max-seconds 5 \
    --json "$results/$slug.json" "$@"
}

vector_time() {
  "$python" "$root/bench/vector_time.py" --device cuda --json "$results/$slug-vectors.json" "$@"
}

scaling() {
  "$python" "$root/bench/scaling.py" --device cuda --dtype bfloat16 --budget 20 --json "$results/$slug-scaling.json"
}

export root python site results slug
export -f build tests sanitizer step_time vector_time scaling

stage build 600 bash -c build || finish
stage tests 300 bash -c 'tests -m cuda'
stage graph-capture 120 bash -c 'tests -m cuda -k graph'
if $quick; then tools=(memcheck); else tools=(memcheck racecheck initcheck synccheck); fi
for tool in "${tools[@]}"; do
  stage "$tool" 180 bash -c "sanitizer $tool"
done
if $quick; then
  stage step-time 180 bash -c 'step_time --shapes gpt2-124m --budget 10 --no-compile'
else
  stage step-time 480 bash -c 'step_time --shapes gpt2-124m phi-1.5 llama2-7b --budget 60'
  stage vector-time 120 bash -c 'vector_time --shapes phi-1.5'
  stage scaling 240 bash -c scaling
fi

{
  printf '# %s\n\n```\n' "$device"
  summary
  printf '```\n\n'
  # The tables as they were printed; everything above the first one is the description of the machine.
  awk 'NR == 1 { print "```" } /^###/ && !tables { print "```\n"; tables = 1 } { print }' "$work/step-time.log"
  if [[ -f $work/vector-time.log ]]; then
    printf '\n## Task vectors\n\n'
    awk '/^###/ { tables = 1 } tables' "$work/vector-time.log"
  fi
} >"$results/$slug.md"
echo "results: $results/$slug.md"
finish
