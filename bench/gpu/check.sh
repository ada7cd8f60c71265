#!/usr/bin/env bash
# Tests that need a GPU, then the bench, on a bare machine: no SGLang, nothing installed.
#   bash bench/gpu/check.sh PYTHON OUT [options of bench gpu]
# A failing test does not keep the bench from running; the exit status tells of both.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$1
out=$2
shift 2
mkdir -p "$out"
export PYTHONUNBUFFERED=1
"$python" -c 'import sglang_flowprefill.kernels' 2>/dev/null \
  || ln -sfn ../kernels sglang_flowprefill/kernels # what an installation maps there
"$python" -c 'import torch, triton; print(torch.__version__, triton.__version__, torch.cuda.get_device_name())'
timeout 180 "$python" -m pytest -o addopts= -o filterwarnings=default -p no:cacheprovider -o faulthandler_timeout=60 \
  -m 'gpu or triton' -q --durations=8 tests/gpu tests/triton 2>&1 | tee "$out/tests.log"
tests=$?
timeout 240 "$python" -m bench.gpu --out "$out/bench" "$@" 2>&1 | tee "$out/bench.log"
bench=$?
echo "tests: $tests, bench: $bench"
exit $((tests != 0 || bench != 0))
