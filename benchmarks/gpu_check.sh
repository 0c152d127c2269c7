#!/usr/bin/env bash
# Check this project on a GPU in at most eight minutes: tests, sanitizer, and the tables of speed, into one small folder.
set -uo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    cat <<'TEXT'
usage: bash benchmarks/gpu_check.sh [OUT]

Writes OUT/summary.md (outputs/gpu_check) and the output of each part, under 16 MB: the tests that need a GPU,
compute-sanitizer over the splats where it is installed, the splats beside scatter_add and a device copy, frames a
second, seconds a prediction, a photograph animated from end to end. Each part has its own time limit.
Exit code: 0 where all tests passed, else 1; what is slow or missing does not count. PYTHON names the interpreter.
TEXT
    exit 0
fi
cd "$(dirname "$0")/.."
out=${1:-outputs/gpu_check} python=${PYTHON:-python} failed=0
mkdir -p "$out" || exit 2
out=$(realpath "$out")
summary=$out/summary.md

# part NAME SECONDS COMMAND...: run it with a limit, keep the end of its output and the tables, note how it ended
part() {
    local name=$1 limit=$2 begun=$SECONDS code=0
    shift 2
    echo "== $name: $*"
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.part" 2>&1 || code=$?
    tail -c 200000 "$out/$name.part" >"$out/$name.log" && rm "$out/$name.part"
    tail -n 2 "$out/$name.log"
    local ended=done
    ((code == 0)) || ended="exit code $code"
    ((code != 124 && code != 137)) || ended="stopped after $limit s"
    echo "| $name | $ended | $((SECONDS - begun)) |" >>"$summary"
    return "$code"
}

{
    echo "# GPU check"
    echo
    echo "$(date -u +%F), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    "$python" -c 'import torch; gpu = torch.cuda.is_available(); print(f"torch {torch.__version__},", torch.cuda.get_device_name() if gpu else "no CUDA device")'
    echo
    echo "| part | ended | seconds |"
    echo "|---|---|---:|"
} >"$summary"

# Correctness
splats="tests/test_splatting_gpu.py tests/test_splatting_cuda.py"
part tests 150 "$python" -m pytest -m gpu -rs tests || failed=1
if command -v compute-sanitizer >/dev/null; then
    # Its kernels run tens of times slower: one test of every operator, not all.
    part sanitizer 75 compute-sanitizer --error-exitcode 9 "$python" -m pytest -x -m gpu -k "reference and not grad" $splats
    code=$?
    ((code == 0 || code == 124 || code == 137 || code == 5)) || failed=1
else
    echo "| sanitizer | not installed | 0 |" >>"$summary"
fi

# Speed
part splatting 60 "$python" benchmark.py splatting --repeats 5 --out "$out/splatting"
part render 60 "$python" benchmark.py render --sizes 256x160 512x320 1920x1080 --frames 32 --out "$out/render"
part render_fp16 40 "$python" benchmark.py render --sizes 256x160 512x320 --frames 64 --precision fp16 --out "$out/render_fp16"
part motion 40 "$python" benchmark.py motion --samplers dpm --steps 20 --samples 1 16 --guidance 0 --out "$out/motion"
part animate 40 "$python" animate.py data/samples/blossom.jpg --out "$out/blossom.mp4"

for table in splatting render render_fp16 motion; do
    [[ ! -f $out/$table/results.md ]] || { echo && cat "$out/$table/results.md"; } >>"$summary"
done
cat "$summary"
exit "$failed"
