#!/bin/sh
# Collects the wheels that benchmarks/gpu needs on a machine that has torch, torchvision, timm,
# numpy, scipy, numba, scikit-learn, pyarrow, pillow and pyyaml, but no network: Python 3.12, x86-64.
#
#   sh benchmarks/gpu_wheels.sh .whl          without faiss, 6 MiB; FAISS=1 adds it (24 MiB)
#
# There:  python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl
#         PYTHONPATH=/tmp/site:. python3 -m benchmarks.gpu --out DIR --minutes 8
set -eu
folder=${1:?usage: gpu_wheels.sh FOLDER}
names="open_clip_torch ftfy wcwidth pydantic pydantic_core annotated-types typing-inspection
       typing_extensions tensorboardX protobuf packaging simplejpeg"
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
du -ch "$folder"/*.whl
