#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most nine minutes on 16 cores: python, a torch with CUDA and nvcc are enough.
#
#   benchmarks/gpu_check.sh [--out DIR] [--only STAGE[,STAGE...]]
#
# Stages, each a process of its own with a time limit, so that a hang or a failure costs that stage alone:
#   build     the libraries for the GPU found
#   tests     every team's kernels against the reference, then the tests on the cuda backend where pytest is installed
#   sanitize  compute-sanitizer (memcheck, racecheck, synccheck) on a few small layers
#   latency   what the constants of csrc/plan.cpp stand for
#   bench     headline and feature benchmarks against cuDNN
# JSON goes to DIR (benchmarks/results/gpu-check by default) item by item; logs lie beside it; a short table comes last. A stage
# replaces what an earlier run of it left in DIR. All stages run; the exit status is 1 where one failed: an item was wrong or an
# error, or the time was up.
# PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; }

wrong() { echo "gpu_check.sh: $1" >&2; usage >&2; exit 2; }

declare -A limits=([build]=120 [tests]=150 [sanitize]=90 [latency]=30 [bench]=130)
order=(build tests sanitize latency bench)
python="${PYTHON:-python3}"
out="benchmarks/results/gpu-check"
only="$(IFS=,; echo "${order[*]}")"

while [ $# -gt 0 ]; do
  case "$1" in
    --out) [ -n "${2:-}" ] || wrong "--out needs a folder"; out="$2"; shift 2 ;;
    --only) [[ "${2:-}" =~ [^,] ]] || wrong "--only needs stages: ${order[*]}"; only="$2"; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) wrong "unknown argument $1" ;;
  esac
done
for stage in ${only//,/ }; do
  if [ -z "${limits[$stage]:-}" ]; then
    echo "gpu_check.sh: unknown stage $stage, expected of: ${order[*]}" >&2
    exit 2
  fi
done
if ! "$python" -c 'import torch' 2>/dev/null; then
  echo "gpu_check.sh: $python has no torch; PYTHON names another interpreter" >&2
  exit 2
fi

mkdir -p "$out"
failed=0
for stage in "${order[@]}"; do
  case ",$only," in *",$stage,"*) ;; *) continue ;; esac
  echo "=== $stage (at most ${limits[$stage]} s)"
  start=$SECONDS
  timeout --kill-after=5 "${limits[$stage]}" "$python" -m benchmarks.gpu "$stage" --out "$out" ||
    { echo "=== $stage ended with $? after $((SECONDS - start)) s"; failed=1; }
done
echo "=== table"
"$python" -m benchmarks.gpu table --out "$out" | tee "$out/table.txt"
exit "$failed"
