#!/usr/bin/env bash
# Everything a machine with an NVIDIA GPU can tell about gru_fast, in one command and without a network.
#
#   bench/gpu_check.sh                     all stages, the most telling first; at most 540 s
#   bench/gpu_check.sh --part 1            what tells most, in less than 5 minutes; --part 2 and 3: the rest, likewise
#   bench/gpu_check.sh --quick             tests, memcheck and the smallest model only
#   bench/gpu_check.sh --only build,tests,user-step --seconds 300
#   bench/gpu_check.sh --study MODEL.gguf --data FOLDER [-- --seeds 0 --splits forget05]
#   bench/gpu_check.sh --cpu               a rehearsal: every stage in small on the CPU, with gru_fast as it is installed
#
# Stages: build (always) tests step-gpt2-124m step-phi-1.5 step-llama2-7b user-step host-syncs memcheck ncu racecheck initcheck
# synccheck scaling vector-time step-all; with --study: build study.
#
# Needs nvcc, and python3 (or $PYTHON) with torch, numpy, transformers, pybind11, scikit-build-core, cmake, ninja, pytest
# and hypothesis; memcheck and its like also compute-sanitizer, ncu itself; the study what gru_fast[unlearn] asks for, and
# gguf. Builds for the GPU it finds (or $CUDAARCHS), into a folder of its own: installed packages are left alone. Writes
# DIR/<device>*.json and .md (--results DIR, default bench/results), the summary anew after every stage and the JSON after
# every table, so that what is cut off leaves what it had; at the end all of it, with the logs, in DIR/<device>.tar.gz (of
# a part: <device>-part1.md and so on). A stage that fails or runs out of time does not stop the others; the exit status
# is 0 only if all of them passed. Clocks and modes of the device are left as they are. Where there is no git,
# GRU_FAST_COMMIT says which commit the results are of.
#
# The study goes on where it stopped if DIR is kept. Where a file is too large to be brought there whole:
# split -d -b 60M MODEL.gguf MODEL.gguf. makes pieces that are joined here (and checked against MODEL.gguf.sha256).

set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
device=cuda quick=false part='' only='' seconds='' results=$root/bench/results study='' data=locuslab/TOFU study_options=()

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while (($#)); do
  case $1 in
    --quick) quick=true ;;
    --cpu) device=cpu ;;
    --only | --part | --seconds | --results | --study | --data)
      [[ $# -ge 2 ]] || { echo "gpu_check: $1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
    --) shift; study_options=("$@"); break ;;
    -h | --help) usage; exit 0 ;;
    *) echo "gpu_check: unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

refuse() { echo "gpu_check: $1" >&2; exit 2; }

# ---- what has to be there ----------------------------------------------------------------------------------------------

stages=(build tests step-gpt2-124m step-phi-1.5 step-llama2-7b user-step host-syncs memcheck ncu racecheck initcheck
  synccheck scaling vector-time step-all)
$quick && stages=(build tests memcheck step-gpt2-124m)
case $part in
  '') ;;
  1) stages=(build tests memcheck step-gpt2-124m host-syncs ncu) ;;
  2) stages=(build step-phi-1.5 step-llama2-7b user-step) ;;
  3) stages=(build racecheck initcheck synccheck scaling vector-time) ;;
  *) refuse "--part: expected 1, 2 or 3, got $part" ;;
esac
[[ -n $seconds ]] || seconds=$([[ -n $part ]] && echo 290 || echo 540)
[[ -n $study ]] && stages=(build study)
for name in ${only//,/ }; do
  [[ " ${stages[*]} " == *" $name "* ]] || refuse "--only $name: expected stages among ${stages[*]}"
done
[[ $seconds =~ ^[0-9]+$ ]] || refuse "--seconds: expected a whole number, got $seconds"

for folder in /usr/local/cuda/bin "${CUDA_HOME:-/usr/local/cuda}/bin"; do
  [[ -d $folder ]] && PATH=$PATH:$folder
done
export PATH
"$python" -c 'import torch' 2>/dev/null || refuse "$python has no torch; set PYTHON to one that has"
work=$(mktemp -d "${TMPDIR:-/tmp}/gru_fast_gpu_check.XXXXXX")
site=$work/site
if [[ $device == cuda ]]; then
  "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    refuse "torch sees no CUDA device (nvidia-smi: $(nvidia-smi -L 2>&1 | head -n 1))"
  command -v nvcc >/dev/null || refuse "no nvcc on PATH or in /usr/local/cuda/bin: the CUDA kernels cannot be built"
  title=$("$python" -c 'import torch; print(torch.cuda.get_device_name())')
  # Only what was built here is imported: not the source tree, not an installed copy.
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
else
  title='rehearsal on the CPU'
fi
slug=$(tr '[:upper:] ' '[:lower:]-' <<<"$title" | tr -cd 'a-z0-9.-')
summary_name=$slug${part:+-part$part}
mkdir -p "$results" && results=$(cd "$results" && pwd) || refuse "--results: cannot make $results"

# ---- stages ------------------------------------------------------------------------------------------------------------

names=() outcomes=()

# stage NAME SECONDS COMMAND...: runs it with a time limit, if it was asked for, and keeps its output in $work/NAME.log.
stage() {
  local name=$1 limit=$2 began=$SECONDS status outcome
  shift 2
  [[ " ${stages[*]} " == *" $name "* && ( -z $only || ",build,$only," == *",$name,"* ) ]] || return 0
  ((limit > seconds - SECONDS)) && limit=$((seconds - SECONDS))
  if ((limit < 5)); then
    names+=("$name")
    outcomes+=("NOT RUN: the $seconds s are over")
    return 1
  fi
  echo "=== $name (at most $limit s)"
  (cd "$work" && timeout --kill-after=10 "$limit" "$@") 2>&1 | tee "$work/$name.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) outcome=ok ;;
    77) outcome="NOT RUN: $(tail -n 1 "$work/$name.log")" ;;
    124 | 137) outcome="FAILED: over $limit s" ;;
    *) outcome="FAILED: exit status $status" ;;
  esac
  names+=("$name")
  outcomes+=("$outcome, $((SECONDS - began)) s")
  write_summary
  [[ $status == 0 ]]
}

summary() {
  local i failed=0
  for i in "${!names[@]}"; do
    printf '%-16s %s\n' "${names[i]}" "${outcomes[i]}"
    [[ ${outcomes[i]} == ok,* ]] || failed=1
  done
  return "$failed"
}

# What every stage printed last; of those that print tables, the tables.
write_summary() {
  local name
  {
    printf '# %s\n\n```\n' "$title"
    summary
    printf '```\n'
    for name in "${names[@]}"; do
      [[ -f $work/$name.log ]] || continue
      printf '\n## %s\n\n```\n' "$name"
      if grep -q '^###' "$work/$name.log"; then
        awk '/^###/ { tables = 1 } tables' "$work/$name.log"
      else
        tail -n 20 "$work/$name.log"
      fi
      printf '```\n'
    done
  } >"$results/$summary_name.md.part" && mv "$results/$summary_name.md.part" "$results/$summary_name.md"
}

finish() {
  write_summary
  echo "=== summary: $title"
  summary
  local status=$?
  local found=("$results/$slug"*.json "$results/$summary_name.md") files=() file
  for file in "${found[@]}"; do
    [[ -f $file ]] && files+=("$(basename "$file")")
  done
  (cd "$work" && find . -maxdepth 1 \( -name '*.log' -o -name 'ncu-*.txt' \) -print0 |
    tar -czf "$results/$summary_name.tar.gz" --null -T - -C "$results" "${files[@]}")
  echo "results: $results/$summary_name.md, with the logs in $summary_name.tar.gz; work: $work"
  exit "$status"
}

build() {
  if [[ $device == cuda ]]; then
    local here
    here=$("$python" -c 'import torch; print("{}{}-real".format(*torch.cuda.get_device_capability()))') || return
    CUDAARCHS=${CUDAARCHS:-$here} GRU_FAST_CUDA=on "$python" -m pip install --quiet --disable-pip-version-check \
      --no-index --no-build-isolation --no-deps --target "$site" "$root" || return
  fi
  "$python" -c 'import gru_fast; print(gru_fast.__file__); print(gru_fast.build_info())'
}

# The files that hold tests marked cuda, all of them (tests/test_gpu_check.py): others import what may not be there.
tests() {
  local chosen=(-m cuda) name
  local files=(test_build core/test_cuda core/test_ema core/test_gates core/test_ops core/test_passes core/test_promises core/test_rules core/test_sets core/test_vectors)
  [[ $device == cpu ]] && chosen=(-k by_hand)
  # Warnings of a torch that CI has not seen are no failures here.
  [[ $device == cuda ]] && chosen+=(-W default)
  for name in "${files[@]}"; do
    chosen+=("$root/tests/$name.py")
  done
  "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q "${chosen[@]}"
}

# Exit status 77 with a reason: the stage cannot be run here.
cannot() { echo "$1"; exit 77; }

# Without torch's caching allocator every tensor is an allocation of its own, and a step past its end is seen.
sanitizer() {
  local tool=(compute-sanitizer --tool "$1" --error-exitcode 1)
  [[ $device == cpu ]] && tool=()
  [[ $device == cpu ]] || command -v compute-sanitizer >/dev/null || cannot "no compute-sanitizer on PATH"
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${tool[@]}" "$python" "$root/bench/sanitizer_cases.py" --device "$device"
}

profile() { "$python" "$root/bench/profile_step.py" --device "$device" "$@"; }

host_syncs() {
  local dtypes
  for dtypes in 'bfloat16 bfloat16' 'bfloat16 float32' 'float32 float32'; do
    profile --dtype "${dtypes% *}" --ema-dtype "${dtypes#* }" || return
  done
}

# Two steps with bfloat16 gradients and either e: time, bytes, share of the memory's speed, occupancy of reduce and apply.
ncu_figures() {
  [[ $device == cpu ]] && { profile --no-profiler --steps 1; return; }
  command -v ncu >/dev/null || cannot "no ncu on PATH"
  local metrics=gpu__time_duration.sum,dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
  local ema status=0
  for ema in bfloat16 float32; do
    ncu --clock-control none --kernel-name 'regex:(reduce|apply)_kernel' --launch-count 6 --metrics "$metrics" \
      "$python" "$root/bench/profile_step.py" --device cuda --shapes phi-1.5 --ema-dtype "$ema" --no-profiler --steps 2 \
      >"ncu-$ema.txt" 2>&1 || status=$?
    cat "ncu-$ema.txt"
    ! grep -q ERR_NVGPUCTRPERM "ncu-$ema.txt" || cannot "ncu may not read the counters here (ERR_NVGPUCTRPERM)"
  done
  return "$status"
}

# step_time MODEL SECONDS [OPTION...]
step_time() {
  local model=$1 budget=$2 sizes=(--shapes "$1")
  shift 2
  [[ $device == cpu ]] && sizes=(--tensors 8 --numel 100000 --rounds 2 --no-compile)
  "$python" "$root/bench/step_time.py" --device "$device" --dtype bfloat16 --ema-dtype grad float32 --max-seconds 5 \
    --budget "$budget" "${sizes[@]}" --json "$results/$slug-$model.json" "$@"
}

user_step() {
  local sizes=(--models smollm2-135m llama-3.2-1b --budget 25) ema
  [[ $device == cpu ]] && sizes=(--models tiny --batch-size 2 --length 16 --rounds 2)
  for ema in bfloat16 float32; do
    "$python" "$root/bench/user_step.py" --device "$device" --dtype bfloat16 --ema-dtype "$ema" "${sizes[@]}" \
      --json "$results/$slug-user-step-$ema.json" || return
  done
}

vector_time() {
  local sizes=(--shapes phi-1.5)
  [[ $device == cpu ]] && sizes=(--tensors 8 --numel 100000 --rounds 2 --no-compile)
  "$python" "$root/bench/vector_time.py" --device "$device" "${sizes[@]}" --json "$results/$slug-vectors.json"
}

scaling() {
  local sizes=(--budget 15)
  [[ $device == cpu ]] && sizes=(--numel 10000 --tensors 1 50 --total 20000 --rounds 2 --no-compile)
  "$python" "$root/bench/scaling.py" --device "$device" --dtype bfloat16 "${sizes[@]}" \
    --json "$results/$slug-scaling.json"
}

# The study with the model from a file, as far as the time goes; then the report of what there is.
run_study() {
  local model=$study recipe=$work/tofu-smollm2.yaml command=("$python" -m gru_fast.cli study "$work/tofu-smollm2.yaml")
  if [[ ! -f $model ]]; then
    compgen -G "$study.[0-9][0-9]" >/dev/null || { echo "no $study and no pieces $study.00 ..."; return 2; }
    model=$work/$(basename "$study")
    cat "$study".[0-9][0-9] >"$model" || return
    if [[ -f $study.sha256 ]]; then
      (cd "$work" && sha256sum --check "$study.sha256") || return
    fi
  fi
  sed "s|^model: {model: [^,]*|model: {model: '$model'|" "$root/gru_fast/recipes/studies/tofu-smollm2.yaml" >"$recipe"
  grep -qF "$model" "$recipe" || { echo "the recipe names its model otherwise than expected"; return 2; }
  command+=(--output-dir "$results/tofu-smollm2" --data "$data")
  [[ $device == cpu ]] && { "${command[@]}" "$@" --print-commands; return; }
  timeout --signal=TERM --kill-after=30 "$STUDY_SECONDS" "${command[@]}" "$@"
  local status=$?
  ((status == 124)) && echo "the time is over; the same call goes on from here"
  "${command[@]}" "$@" --report
  return "$status"
}

[[ -z $study ]] || study=$(realpath -m -- "$study")
[[ ! -e $data ]] || data=$(realpath -- "$data")
export root python device site results slug work study data
export -f build tests cannot sanitizer profile host_syncs ncu_figures step_time user_step vector_time scaling run_study

if ! stage build 240 bash -c build; then finish; fi
stage tests 120 bash -c tests
stage step-gpt2-124m 90 bash -c "step_time gpt2-124m 12 $($quick && echo --no-compile)"
# The public code flattens to the host and works in float64: a step of it takes longer than all others together.
stage step-phi-1.5 90 bash -c 'step_time phi-1.5 16 --without official'
stage step-llama2-7b 90 bash -c 'step_time llama2-7b 16 --without official'
stage user-step 120 bash -c user_step
stage host-syncs 60 bash -c host_syncs
stage memcheck 90 bash -c 'sanitizer memcheck'
stage ncu 60 bash -c ncu_figures
for tool in racecheck initcheck synccheck; do
  stage "$tool" 90 bash -c "sanitizer $tool"
done
stage scaling 60 bash -c scaling
stage vector-time 60 bash -c vector_time
# With the forms that take minutes to compile: torch.compile over the lists, and with max-autotune.
stage step-all 240 bash -c 'step_time gpt2-124m 20 --all --json "$results/$slug-gpt2-124m-all.json"'
STUDY_SECONDS=$((seconds - SECONDS > 120 ? seconds - SECONDS - 60 : 60))  # the rest is for the report
export STUDY_SECONDS
stage study "$seconds" bash -c 'run_study "$@"' study "${study_options[@]}"
finish
