#!/bin/sh
# The first run: gets a text, trains a small GPT on it byte by byte, and shows what it has learned. `make run` calls
# this after building; dev/get-text.sh says how DATA=PATH and others choose the text. BUILD is the build's folder.
set -eu

case ${DATA:-} in
'' | /*) ;;
*) export DATA="$PWD/$DATA" ;;
esac
cd "$(dirname "$0")/.."
gptloom=${BUILD:-build}/gptloom
text=${BUILD:-build}/first-run/text.txt

if [ ! -x "$gptloom" ]; then
    echo "first-run: $gptloom is not built yet: run make" >&2
    exit 2
fi
dev/get-text.sh "$text"
data=${DATA:-$text}

# A directory of its own for every time, so that nothing is lost and runs can be compared.
run=runs/first n=1
while [ -e "$run" ]; do
    n=$((n + 1))
    run=runs/first-$n
done

# 0.8 million parameters, 1.2 million bytes seen: under two minutes on two slow cores.
"$gptloom" train --data "$data" --out "$run" \
    --n-layer 4 --n-head 4 --n-embd 128 --block-size 64 --batch 12 --steps 1500 \
    --lr 1e-3 --min-lr 1e-4 --warmup 100 --beta2 0.99 --weight-decay 0.1 --clip 0 \
    --val-fraction 0.1 --val-every 500 --sample-every 0

# last KEY: its last value in the run's metrics, to a thousandth.
last() {
    sed -n "s/.*\"$1\": *\\([-+.0-9e]*\\).*/\\1/p" "$run/metrics.jsonl" | LC_ALL=C awk 'END { printf "%.3f", $1 }'
}

# The text's own first line is a prompt that fits any text; token shards begin with end-of-text instead.
prompt=
case $data in
*.bin) ;;
*) [ ! -f "$data" ] || prompt=$(head -c 400 "$data" | tr -cd '\n -~' | sed '/[A-Za-z]/!d' | head -n 1 | cut -c 1-60) ;;
esac

printf '\nLoss at the end: %s nats per token in training, %s on the last tenth, which it has never seen.\n' \
    "$(last loss)" "$(last val_loss)"
printf '\nA sample, prompt first:\n\n'
if [ -n "$prompt" ]; then
    "$gptloom" sample --from "$run" --tokens 400 --prompt "$prompt
"
else
    "$gptloom" sample --from "$run" --tokens 400
fi
printf '\n\nThe loss curve:  '
"$gptloom" plot "$run"
cat <<END
The checkpoint:  $run/checkpoints/latest

What to try next:
    $gptloom sample --from $run --prompt 'Once ' --tokens 200 --temperature 0.6 --seed 1
    $gptloom train --resume --out $run --steps 4000
    $gptloom train --data $data --out runs/larger --model mini --n-layer 6 --n-embd 192 --block-size 128 \\
        --batch 32 --steps 3000 --lr 1e-3
    $gptloom plot $run runs/larger
    $gptloom info gpt2
    $gptloom --help
END
