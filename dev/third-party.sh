#!/bin/sh
# Collects the headers and libraries of cJSON and xxHash, as they are installed here, in a folder: copied beside the
# Makefile of a machine where nothing can be installed (a lent GPU), they are used from there.
#
#     dev/third-party.sh [FOLDER]        FOLDER is third-party where it is not given
set -eu
folder=${1:-third-party}
CC=${CC:-gcc}

# header NAME: the file that #include <NAME> finds.
header() {
    printf '#include <%s>\n' "$1" | $CC -E -x c - | sed -n 's|^# 1 "\(/.*/'"$1"'\)".*|\1|p' | head -n 1
}

mkdir -p "$folder/include/cjson" "$folder/lib"
for name in cjson/cJSON.h xxhash.h; do
    found=$(header "$name")
    if [ -z "$found" ]; then
        echo "third-party: <$name> is not installed; dev/setup.sh installs it" >&2
        exit 2
    fi
    cp "$found" "$folder/include/$name"
    # What the header itself includes from its own folder.
    for beside in "$(dirname "$found")"/xxh3.h; do
        [ ! -f "$beside" ] || cp "$beside" "$folder/include/"
    done
done
for name in cjson xxhash; do
    found=$($CC -print-file-name=lib$name.so)
    cp -L "$found" "$folder/lib/lib$name.so"
    soname=$(objdump -p "$found" | sed -n 's/^ *SONAME *//p')
    [ -z "$soname" ] || ln -sf "lib$name.so" "$folder/lib/$soname"
done
echo "third-party: $folder has cJSON and xxHash of $(uname -m)"
