#!/bin/sh
# Gets the text of a first run, and says on stdout which it took.
#
#     dev/get-text.sh OUTFILE
#
# 1. DATA=PATH, a file or directory: that is used as it is, where it is, and OUTFILE is not written.
# 2. Else Shakespeare's plays in one file of 1.1 MB ("tinyshakespeare"), from DATA_URL or a default place. It is checked
#    against DATA_SHA256, which is known for the default place, and must be there within DATA_TIMEOUT seconds (10). An
#    OUTFILE that is already what the sum says is kept.
# 3. Else, with no network: the C headers under /usr/include, sorted by path, the first 4 MB: real text that every
#    machine which builds this has.
set -eu

default_url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
default_sha256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
header_bytes=4000000

if [ $# != 1 ]; then
    echo "usage: dev/get-text.sh OUTFILE" >&2
    exit 2
fi
out=$1
url=${DATA_URL:-$default_url}
timeout=${DATA_TIMEOUT:-10}
if [ "$url" = "$default_url" ]; then sha256=${DATA_SHA256:-$default_sha256}; else sha256=${DATA_SHA256:-}; fi

fail() {
    printf 'get-text: %s\n' "$*" >&2
    exit 2
}

size_of() {
    wc -c <"$1" | tr -d ' '
}

sum_of() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1" | cut -d ' ' -f 1
    else
        python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"
    fi
}

if [ -n "${DATA:-}" ]; then
    [ -e "$DATA" ] || fail "DATA=$DATA: there is no such file or directory"
    [ -r "$DATA" ] || fail "DATA=$DATA: cannot be read"
    echo "text: $DATA, as DATA says"
    exit 0
fi

mkdir -p "$(dirname "$out")" || fail "the directory of $out cannot be made"
if [ -n "$sha256" ] && [ -f "$out" ] && [ "$(sum_of "$out")" = "$sha256" ]; then
    echo "text: $url, as fetched before ($(size_of "$out") bytes, SHA-256 checked)"
    exit 0
fi

new=$out.part
trap 'rm -f "$new" "$new.log"' EXIT
trap 'exit 130' INT TERM

# Fetches the URL into $new within the time limit; what the tool complains of goes to $new.log.
fetch() {
    if command -v curl >/dev/null 2>&1; then
        timeout "$timeout" curl -fsSL -o "$new" "$url"
    elif command -v wget >/dev/null 2>&1; then
        timeout "$timeout" wget -nv -t 1 -O "$new" "$url"
    else
        timeout "$timeout" python3 -c '
import sys, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1]) as answer, open(sys.argv[2], "wb") as file:
        while block := answer.read(1 << 16):
            file.write(block)
except (OSError, ValueError) as error:
    sys.exit(str(error))' "$url" "$new"
    fi 2>"$new.log"
}

status=0
fetch || status=$?
if [ "$status" = 124 ]; then
    reason="it was not there within $timeout seconds"
elif [ "$status" != 0 ]; then
    reason=$(tail -n 1 "$new.log")
    reason=${reason:-the download failed with status $status}
elif [ ! -s "$new" ]; then
    reason="it is empty"
elif [ -z "$sha256" ]; then
    mv -f "$new" "$out"
    echo "text: $url ($(size_of "$out") bytes, not checked: DATA_SHA256 is not set)"
    exit 0
else
    sum=$(sum_of "$new")
    if [ "$sum" = "$sha256" ]; then
        mv -f "$new" "$out"
        echo "text: $url ($(size_of "$out") bytes, SHA-256 checked)"
        exit 0
    fi
    reason="its SHA-256 is $sum, not $sha256"
fi
echo "text: $url could not be used: $reason"

# head closes the pipe early; what sort or cat say about it is no news.
{ find /usr/include -type f -name '*.h' -print0 | LC_ALL=C sort -z | xargs -0 cat; } 2>/dev/null |
    head -c "$header_bytes" >"$new" || fail "$out cannot be written"
[ -s "$new" ] || fail "no network, and no C headers under /usr/include: name a text with DATA=PATH"
mv -f "$new" "$out"
echo "text: instead the C headers under /usr/include, by path, the first $(size_of "$out") bytes"
