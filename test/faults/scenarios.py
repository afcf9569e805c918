"""What faults.py does beside one run: commands that reach the program's other call sites, and the sites that none reaches.

A row is (name, words, how). The words follow the program's name in a shell; `run` is a run that has stopped in the middle,
`other` is what these may begin, `../text.txt` text, `../tokens.bin` a shard. How it goes:

    first     a fault that there is anyway, so that what is done about it is reached: "FUNCTION FILE:C_FUNCTION ERRNO[:N]"; or
              several, with commas, or as shim.c takes them; FUNCTION#K: only the Kth of the lines of that C function that call it
    setup     shell commands before it; undo: after it
    env       variables; wrapped: a command in front of the program
    emulated  the program with the emulated GPU
    tty       stdout is a terminal
    rank      of ranks, the one to which something happens
    chatty    stderr has other lines too
    ends      other statuses that are right
    tcp       two ranks that find each other instead
    outs      the runs that are gone on with, where the words do not tell
    goes_on   flags of --resume; None: nothing is gone on with, or bits depend on what was measured
"""

SHAPE = "--n-layer 1 --n-head 1 --n-embd 16 --block-size 16 --batch 2 --threads 1"
TRAIN = f"train --data ../text.txt --out other {SHAPE} --lr 1e-3 --memory 64MiB"
SHORT = "--steps 3 --val-every 2 --val-tokens 32"
RESUME = "train --resume --out run"
BENCH = "bench --op add --size small --seconds 0.001 --threads 1 --flush 1MiB"
SAVED = f"$GPTLOOM {BENCH} --json saved.json > saved.txt"
TOKENS = f"$GPTLOOM train --data ../tokens.bin --out other {SHAPE} --vocab-size 64 --steps 1 --val-fraction 0 -q"
TOKENIZER = "$GPTLOOM tokenizer train --vocab-size 300 --out t.json ../text.txt > /dev/null"
RANKS_OF_BYTES = """python3 -c "import base64
for i in range(256): print(base64.b64encode(bytes([i])).decode(), i)" > ranks"""
WAITING = "train --data ../text.txt --out other -q --device cuda --comm nccl --comm-timeout 1 --micro-batch 1 " + SHAPE
ALONE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "{port}", "LOOM_EMULATION_GPUS": "2",
         "LOOM_NCCL": "{build}/test/libnccl_standin.so"}
HERE = {**ALONE, "MASTER_ADDR": "127.0.0.1"}
RANKS = f"{TRAIN} {SHORT} --ranks 2 --micro-batch 1 --deterministic-reduce"
LEFT = "mkdir -p /dev/shm/gptloom-ranks-faults"

OWED = f"$GPTLOOM {TRAIN} --steps 3 --val-every 3 --val-tokens 32 -q; sed -i 's/, \"val_loss\": [^,}}]*//' other/metrics.jsonl"

EXCHANGE = "renameat2 csrc/checkpoint/directory.c:loom_exchange_directories"

SCENARIOS = [
    # The command line
    ("help", "--help", {}),
    ("help of train", "train --help", {}),
    ("help of bench", "bench --help", {}),
    ("version", "--version", {}),
    ("wrong flag", "train --nonsense", {}),
    ("long message", "plot " + "x" * 5000, {}),
    ("config that is no file", "train --config run --out other", {}),
    ("config", "train --config run/config.ini --out other --steps 1 -q", {"goes_on": None}),
    ("help that nobody reads", "train --help", {"wrapped": "trap '' PIPE; exec > >(true); sleep 0.2;"}),
    ("stdout is full", f"{TRAIN} {SHORT} > /dev/full", {}),
    ("nobody reads", f"{TRAIN} {SHORT}", {"wrapped": "exec > >(true); sleep 0.2;"}),
    ("no /dev/null", "info run", {"first": "open train/output.c:open_nowhere EACCES"}),
    # Output
    ("plot to stdout", "plot run --out -", {}),
    ("plot to stderr", "plot run --out /dev/stderr", {"chatty": True}),
    ("plot to a device", "plot run --out /dev/null", {}),
    ("plot that is not written", "plot run", {"first": "rename csrc/base/file.c:replace EIO"}),
    ("plan as JSON", "plan nano --no-measure --json -", {}),
    ("plan of two GPUs", "plan nano --on h100 --ranks 2 --zero 1 --dtype bf16", {}),
    ("plan that does not fit", "plan gpt2-xl --no-measure --memory 64MiB", {}),
    ("plan of sets", "plan nano --on h100 --batch 256 --micro-batch 64 --memory 1600MiB", {}),
    ("plan that measures", f"plan {SHAPE}", {}),
    ("info of a name", "info nano --dtype bf16 --master-weights off", {}),
    ("graph", "graph run --policy norm --out graph.svg", {}),
    ("graph of a name", "graph gpt1 --n-layer 2 --format dot", {}),
    # Ops
    ("bench", BENCH, {}),
    ("bench against", f"{BENCH} --against saved.json --json new.json", {"setup": SAVED}),
    ("bench against others", f"{BENCH} --against saved.json",
     {"setup": f"$GPTLOOM {BENCH} --op gelu --json saved.json > saved.txt"}),
    ("bench to stderr", f"{BENCH} --json -", {"chatty": True}),
    ("bench against another device", f"{BENCH} --against saved.json",
     {"setup": SAVED + "; sed -i 's/\"description\": \"/&X/; s/\"device\": \"/&X/' saved.json", "chatty": True}),
    ("bench emulated", f"{BENCH} --device cuda", {"emulated": True}),
    ("devices emulated", "devices", {"emulated": True}),
    ("parity by differences", "parity --op gelu --grad --threads 1", {}),
    ("parity of what is not supported", "parity --op matmul_forward --dtype fp16 --device cuda --threads 1", {"emulated": True}),
    # Data
    ("files in directories", f"{TRAIN} {SHORT} --data data",
     {"setup": "mkdir -p data/more; cp -r run data/run; cp ../text.txt data/more/a.txt; cp ../text.txt data/b.txt"}),
    ("files by a pattern", f"{TRAIN} {SHORT} --data '../t*xt.txt' --val-data ../text.txt", {}),
    ("a link to nothing", f"{TRAIN} {SHORT} --data data", {"setup": "mkdir data; ln -s nothing data/a.txt"}),
    ("a file that is none any more", f"{TRAIN} {SHORT}", {"first": "fstat csrc/data/input.c:open_regular EIO"}),
    ("a few files open", f"{TRAIN} {SHORT} --data data --val-fraction 0 --val-every 0",
     {"setup": "mkdir data; for i in 1 2 3 4; do yes abcdefgh | head -c 20000000 > data/$i.txt; done",
      "wrapped": "ulimit -n 30;", "goes_on": None}),
    ("resume from elsewhere", "train --resume --out ../run -q", {"setup": "mkdir sub", "wrapped": "cd sub;", "outs": ["run"]}),
    ("resume of a pattern from elsewhere", "train --resume --out ../other -q",
     {"setup": f"mkdir sub; $GPTLOOM {TRAIN} {SHORT} --data '../t*xt.txt' --stop-after 1 -q", "wrapped": "cd sub;",
      "outs": ["other"]}),
    ("tokens", "sample --from other --prompt '1 2' --tokens 3 --threads 1", {"setup": TOKENS}),
    ("a long prompt", "sample --from run --prompt " + "y" * 40 + " --tokens 2 --threads 1", {"chatty": True}),
    # Training
    ("bf16 aloud", f"{TRAIN} {SHORT} --dtype bf16 ", {}),
    ("bf16 without master weights", f"{TRAIN} {SHORT} --dtype bf16 --master-weights off --micro-batch 1 --zero 1 --val-every 0", {}),
    ("fp16 aloud", f"{TRAIN} {SHORT} --dtype fp16", {}),
    ("products by the library", f"{TRAIN} {SHORT}", {"env": {"LOOM_PRODUCTS": "library"}, "goes_on": None}),
    ("no validation", f"{TRAIN} --steps 2 --val-fraction 0", {}),
    ("check-finite", f"{TRAIN} {SHORT} --check-finite", {}),
    ("terminal", f"{TRAIN} --steps 6 --val-every 2 --val-tokens 32 --sample-every 2 --sample-tokens 2", {"tty": True}),
    ("resume aloud", RESUME + " --lr 2e-3", {"goes_on": "--lr 2e-3"}),
    ("recomputes", f"{TRAIN} {SHORT} --n-layer 6 --n-embd 64 --batch 16 --memory 8MiB", {"goes_on": None}),
    ("diverges", f"{TRAIN} --steps 4 --dtype fp16 --val-every 0 --lr 100 --min-lr 100 --warmup 0 --clip 0", {}),
    ("spikes", f"{TRAIN} --steps 200 --skip-spikes 0.5 --lr 0.03 --val-every 0", {}),
    ("interrupted", f"{TRAIN} {SHORT}", {"first": "fprintf csrc/engine/run.c:write_metrics SIGINT"}),
    ("interrupted at a terminal", f"{TRAIN} {SHORT}", {"first": "fprintf csrc/engine/run.c:write_metrics SIGINT", "tty": True}),
    ("to be continued", f"{TRAIN} {SHORT}", {"first": "fprintf csrc/engine/run.c:write_metrics SIGUSR1"}),
    ("validation is owed", "train --resume --out run -q",
     {"setup": "sed -i 's/, \"val_loss\": [^,}]*//' run/metrics.jsonl"}),
    ("a step is saved again", "train --resume --out other -q", {"setup": OWED}),
    ("a step is saved again by renaming", "train --resume --out other -q",
     {"setup": OWED, "first": EXCHANGE + " EINVAL"}),
    *((f"a step cannot be saved again {n}", "train --resume --out other -q", {"setup": OWED, "first": f"{EXCHANGE} EINVAL,rename:EIO:{n}"})
      for n in (9, 10)),
    ("killed when a step was saved again", "train --resume --out other -q",
     {"setup": OWED + "; mv other/checkpoints/step-00000003 other/checkpoints/.tmp-replaced-step-00000003"}),
    ("metrics out of order", "train --resume --out run -q",
     {"setup": "sed '1s/\"step\": 1/\"step\": 9/' run/metrics.jsonl > m; cat m run/metrics.jsonl > n; mv n run/metrics.jsonl"}),
    ("samples of later steps", "train --resume --out run -q", {"setup": "printf -- '--- step 9 ---\\nx\\n' >> run/samples.txt"}),
    ("resume over litter", "train --resume --out run -q",
     {"setup": "LD_PRELOAD=$PRELOAD LOOM_FAULT=files:kill:60 $GPTLOOM train --resume --out run -q; true"}),
    ("resume over litter aloud", "train --resume --out run",
     {"setup": "LD_PRELOAD=$PRELOAD LOOM_FAULT=files:kill:60 $GPTLOOM train --resume --out run -q; true"}),
    ("latest is a file", "train --resume --out run -q",
     {"setup": "cd run/checkpoints; to=`readlink latest`; rm latest; echo $to > latest"}),
    ("a damaged checkpoint", "info run", {"setup": "truncate -s -9 run/checkpoints/latest/model.safetensors"}),
    ("in use", "train --resume --out run -q", {"setup": "touch run/lock", "wrapped": "flock run/lock"}),
    ("of another user", "train --resume --out run -q", {"setup": "chown 65534 run", "undo": "chown 0 run", "root": True}),
    # What is done about a first fault
    ("no stream", "train --resume --out run -q", {"first": "fdopen csrc/base/file.c:open_stream ENOMEM"}),
    ("no room for a checkpoint", f"{TRAIN} {SHORT}", {"first": "write csrc/base/file.c:write_all ENOSPC:9"}),
    ("latest cannot be moved", f"{TRAIN} {SHORT}", {"first": "rename csrc/checkpoint/directory.c:move_latest EIO"}),
    ("no renaming of files", f"{TRAIN} {SHORT}", {"first": "rename#1 csrc/base/file.c:loom_try_directory EIO"}),
    ("no renaming of directories", f"{TRAIN} {SHORT}", {"first": "rename#2 csrc/base/file.c:loom_try_directory EIO"}),
    ("no room for a lock", f"{TRAIN} {SHORT}", {"first": "pwrite csrc/base/lock.c:write_holder ENOSPC"}),
    ("no thread for a lock", f"{TRAIN} {SHORT}", {"first": "pthread_create csrc/base/lock.c:start_thread EAGAIN"}),
    ("a lock is deleted", f"{TRAIN} {SHORT}",
     {"first": "pthread_cond_timedwait csrc/base/lock.c:keep ETIMEDOUT,stat csrc/base/lock.c:beat gone"}),
    # The emulated GPU
    ("offload", f"{TRAIN} {SHORT} --device cuda --n-layer 3 --offload activations --recompute block --cuda-graph off --tf32",
     {"emulated": True, "goes_on": None}),
    ("graphs", f"{TRAIN} {SHORT} --device cuda --cuda-graph on", {"emulated": True, "goes_on": None}),
    ("plan emulated", f"plan {SHAPE} --on cuda", {"emulated": True}),
    ("tuning", f"{TRAIN} {SHORT} -q --device cuda --tuning run/tuning.txt", {"emulated": True, "goes_on": None}),
    ("cuDNN", f"{TRAIN} {SHORT} --device cuda --attention cudnn --dtype bf16", {"emulated": True}),
    # Tokenizers
    ("training a tokenizer", "tokenizer train --vocab-size 300 --out t.json ../text.txt", {}),
    ("training one of long texts", "tokenizer train --vocab-size 300 --out t.json spaces.txt",
     {"setup": "head -c 17000000 /dev/zero | tr '\\0' ' ' > spaces.txt"}),
    ("tokens", "tokenizer encode -t t.json --special encode ../text.txt", {"setup": TOKENIZER}),
    ("tokens shown", "tokenizer show -t t.json ../text.txt", {"setup": TOKENIZER}),
    ("text of tokens", "tokenizer decode -t t.json ids", {"setup": TOKENIZER + "; echo 1 2 3 > ids"}),
    ("training one of many pieces", "tokenizer train --vocab-size 300 --out t.json numbers", {"setup": "seq 5000 > numbers"}),
    ("tokens behind spaces", "tokenizer encode -t t.json ../text.txt",
     {"setup": TOKENIZER + "; sed -i 's/\"add_prefix_space\":false/\"add_prefix_space\":true/' t.json"}),
    ("bytes shown", "tokenizer show -t t.json bytes", {"setup": TOKENIZER + "; printf '\\001\\377' > bytes"}),
    ("tokens of merges", "tokenizer encode -t merges.txt < ../text.txt", {"setup": "printf 'h e\\nhe l\\n' > merges.txt"}),
    ("tokens of ranks", "tokenizer encode -t ranks --pattern o200k ../text.txt", {"setup": RANKS_OF_BYTES}),
    ("tokens of long pieces", "tokenizer encode -t merges.txt as.txt",
     {"setup": "printf 'a a\\naa aa\\n' > merges.txt; head -c 500 /dev/zero | tr '\\0' a > as.txt"}),
    # Ranks
    ("ranks aloud", RANKS, {"rank": "none", "ranks": True, "goes_on": "--ranks 2"}),
    ("a rank of them", RANKS, {"rank": "0", "ranks": True, "goes_on": "--ranks 2"}),
    ("ranks without mpirun", RANKS, {"rank": "none", "wrapped": "PATH=/nothing", "ends": [126]}),
    ("ranks without a pipe", RANKS, {"rank": "none", "first": "pipe2 train/launch.c:start EMFILE:2"}),
    ("ranks are interrupted", RANKS, {"rank": "none", "ranks": True, "goes_on": "--ranks 2",
                                      "first": "write train/launch.c:pass_on SIGINT"}),
    ("ranks are ended", RANKS, {"rank": "none", "ranks": True, "goes_on": "--ranks 2",
                                "first": "write train/launch.c:pass_on SIGINT:1+"}),
    ("ranks that are not heard", RANKS + " -q", {"rank": "none", "ranks": True, "goes_on": "--ranks 2",
                                                 "first": "poll train/launch.c:listen_for ENOMEM:1+"}),
    ("ranks over litter", RANKS + " -q", {"rank": "none", "ranks": True, "goes_on": "--ranks 2", "setup": LEFT}),
    ("ranks over litter in use", RANKS + " -q", {"rank": "none", "ranks": True, "goes_on": "--ranks 2", "setup": LEFT,
                                                 "first": "flock train/launch.c:lock_place EINTR"}),
    ("a rank fails", RANKS + " -q", {"rank": "0", "ranks": True, "goes_on": "--ranks 2",
                                     "first": "fprintf csrc/engine/run.c:write_metrics EIO"}),
    ("nobody comes", WAITING, {"emulated": True, "rank": "0", "env": HERE}),
    ("nobody comes to a file", WAITING, {"emulated": True, "rank": "0", "env": {**HERE, "LOOM_NCCL_ID": "id"}}),
    ("an old number at a file", WAITING, {"emulated": True, "rank": "0", "env": {**HERE, "LOOM_NCCL_ID": "id"},
                                          "setup": "printf 12345678 > id.1"}),
    ("ranks by a file", "", {"emulated": True, "tcp": True, "rank": "0", "chatty": True, "env": {"LOOM_NCCL_ID": "id"}}),
    ("a connection without memory", "", {"emulated": True, "tcp": True, "rank": "0", "chatty": True,
                                         "first": "calloc csrc/comm/rendezvous_tcp.c:take_connections ENOMEM"}),
    ("no connection at first", "", {"emulated": True, "tcp": True, "rank": "1", "chatty": True,
                                    "first": "connect csrc/comm/rendezvous_tcp.c:connect_to ECONNREFUSED"}),
    ("nobody waits at a file", WAITING, {"emulated": True, "rank": "1",
                                         "env": {**HERE, "LOOM_NCCL_ID": "id", "RANK": "1", "LOCAL_RANK": "1"}}),
    ("nobody comes from elsewhere", WAITING, {"emulated": True, "rank": "0", "env": {**ALONE, "MASTER_ADDR": "192.0.2.1"}}),
    ("the port is taken", WAITING, {"emulated": True, "rank": "0", "env": HERE,
                                    "first": "bind csrc/comm/rendezvous_tcp.c:listen_at EADDRINUSE"}),
]

# (file, C function or "", call or ""): why no scenario reaches it here.
NOT_HERE = [
    ("csrc/base/error.c", "loom_check_failed", "", "only a bug comes here"),
    ("csrc/cuda/attention_cudnn.c", "", "", "needs cuDNN and a GPU"),
    ("csrc/cuda/cudnn_engine.c", "", "", "needs cuDNN and a GPU"),
    ("csrc/cuda/cudnn_graph.c", "", "", "needs cuDNN and a GPU"),
    ("csrc/checkpoint/directory.c", "loom_exchange_by_renames", "rename", "a step that is saved once more: test_checkpoint"),
    ("csrc/checkpoint/directory.c", "loom_exchange_directories", "", "a step that is saved once more: test_checkpoint"),
    ("csrc/comm/mpi.c", "find_stragglers", "calloc", "a rank that hangs: test_rank_failures"),
    ("csrc/cpu/matmul_rate.c", "loom_tuned_matmul_bf16_rate", "", "needs a CPU with AVX-512 or AMX for bf16"),
    ("train/command_bench.c", "open_rival", "", "takes 13 s in emulation"),
    ("train/command_bench.c", "show", "fprintf", "products and attention take 5 s"),
    ("train/command_bench.c", "time_line", "fprintf", "an op that a device refuses: none does here"),
    ("train/command_parity.c", "show", "printf", "a case that fails: none does"),
    ("train/command_train.c", "show_settings", "printf", "needs cuDNN and a GPU"),
    ("train/command_train.c", "show_start", "printf", "a GPU that is passed over as it does not work; the rest of the function is reached"),
    ("train/command_train.c", "show_end", "printf", "a validation that takes a second"),
    ("train/main.c", "begin_with_short_waits", "", "tests say how threads wait; without: test_cli"),
    ("train/output.c", "loom_output_give_up_if_blocked", "dup2", "a stderr that nobody reads: test_cli"),
    ("csrc/engine/run.c", "is_tuning_cache", "", "a run on a GPU that was killed as it began: test_cli"),
    ("train/progress.c", "print_validating", "", "a validation that takes half a minute"),
]
