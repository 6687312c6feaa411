#!/bin/sh
# Collects the wheels that benchmarks/gpu needs on a machine that has `has` below and what these
# require, but no network: Python 3.12, x86-64. tests/test_gpu_benchmark.py lets it import no more.
#
#   sh benchmarks/gpu_wheels.sh .whl          8.5 MiB; FAISS=1 adds faiss, a rival in search: 27 MiB
#
# There:  python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl
#         PYTHONPATH=/tmp/site:. python3 -m benchmarks.gpu --out DIR --minutes 8
set -eu
folder=${1:?usage: gpu_wheels.sh FOLDER}
has="torch torchvision timm numpy scipy numba scikit-learn pyarrow pillow pyyaml"
names="open_clip_torch ftfy wcwidth regex pydantic pydantic_core annotated-types typing-inspection
       typing_extensions tensorboardX protobuf packaging simplejpeg psutil rich pygments
       markdown-it-py mdurl"
limit=60  # MiB
[ -z "${FAISS:-}" ] || names="$names faiss-cpu"
here=$(dirname "$0")
mkdir -p "$folder"
for name in $names; do
    # constraints.txt spells names in its own way: compare without case and underscores
    wanted=$(awk -v name="$name" -F== '
        function plain(text) { gsub(/[_.]/, "-", text); return tolower(text) }
        plain($1) == plain(name) { print $1 "==" $2 }' "$here/../constraints.txt")
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --dest "$folder" "${wanted:-$name}"
done
echo "The machine itself must have: $has"
du -ch "$folder"/*.whl
bytes=$(cat "$folder"/*.whl | wc -c)
if [ "$bytes" -gt $((limit * 1024 * 1024)) ]; then
    echo "$folder holds more than $limit MiB of wheels" >&2
    exit 1
fi
