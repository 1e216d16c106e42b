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
# JSON goes to DIR (benchmarks/results/gpu-check by default) item by item; logs lie beside it; a short table comes last.
# PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; }

declare -A limits=([build]=120 [tests]=150 [sanitize]=90 [latency]=30 [bench]=130)
order=(build tests sanitize latency bench)
python="${PYTHON:-python3}"
out="benchmarks/results/gpu-check"
only="$(IFS=,; echo "${order[*]}")"

while [ $# -gt 0 ]; do
  case "$1" in
    --out) out="${2:?--out needs a folder}"; shift 2 ;;
    --only) only="${2:?--only needs stages: ${order[*]}}"; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "gpu_check.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
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
