#!/usr/bin/env bash
# The CPU's ops as another processor computes them: builds the comparison of ops (gptloom parity) for aarch64 and runs it
# under qemu-user. The definition must have the bits there that it has here, and NEON agree with the oracle. That shows
# that they are right, not how fast they are.
#
#     dev/aarch64.sh [BUILD]
#
# Of the cross compiler it needs no libraries: xxHash is a header, and nothing of what is linked uses cJSON.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
there=$build/aarch64

# Prints where a header of this machine lies.
header() {
    echo "#include <$1>" | ${CC:-gcc} -M -x c - ${CPATH:+"-I$CPATH"} $([ ! -d third-party ] || echo -Ithird-party/include) |
        tr ' ' '\n' | grep -m 1 "/$1\$"
}

mkdir -p "$there/include/cjson"
ln -sf "$(realpath "$(header xxhash.h)")" "$there/include/"
ln -sf "$(realpath "$(header cjson/cJSON.h)")" "$there/include/cjson/"
make --no-print-directory BUILD="$there" CC=aarch64-linux-gnu-gcc CUDA= MPICC= MATMUL=plain STRICT= \
    CFLAGS="-DXXH_INLINE_ALL -I$there/include" "$there/parity"

# Where both processors are, one comparison keeps one busy.
emulated() {
    qemu-aarch64 -L /usr/aarch64-linux-gnu "$there/parity" --op all --threads 1 "$@"
}
here=$("$build/gptloom" parity --op all --threads 1 --device definition | tail -n 1) || true
emulated --device cpu --dtype fp32 >"$there/neon.log" &
neon=$!
emulated --device definition >"$there/definition.log" || true
definition=$(tail -n 1 "$there/definition.log")
status=0
wait $neon || status=1
echo "aarch64, NEON, fp32:  $(tail -n 1 "$there/neon.log")"
echo "aarch64, definition:  $definition"
if [ "$definition" != "$here" ]; then
    echo "aarch64: the definition is not what it is here, $here; all of it is in $there/definition.log" >&2
    status=1
fi
exit $status
