#!/usr/bin/env python3
"""Compares gptloom's tokenizer with Hugging Face's tokenizers and with tiktoken, token for token.

For each pattern of pre-tokenization there are two vocabularies: GPT-2's merges where they are given
(--merges), else ranks that Hugging Face's trainer makes here, of the C headers and of random text.
The same vocabulary is written as tokenizer.json, which gptloom and tokenizers read, and as tiktoken's
ranks, which gptloom and tiktoken read. Then all encode the same texts: real text, random code points,
fragments that are hard for a pattern, and bytes that are no UTF-8 (which must come back from decoding;
tiktoken encodes them too). Printed are bytes, tokens and differences; the exit status is 1 if there
are any.
"""

import argparse
import base64
import ctypes
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CL100K = (r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
          r"""|\s*[\r\n]+|\s+(?!\S)|\s+""")
O200K = "|".join([
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""])
TIKTOKEN_CL100K = (r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
                   r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""")
PATTERNS = {"gpt2": GPT2, "cl100k": CL100K, "o200k": O200K, "llama3": CL100K}
TIKTOKEN_PATTERNS = PATTERNS | {"cl100k": TIKTOKEN_CL100K}  # tokenizers' engine reads these quantifiers in another way

HARD = ["'s", "'S", "'re", "'Ve", "'LL", "'ſ", "'", "''", " '", "  ", "   ", "\n", "\r\n", " \n", "\n ", "\t", " \t ",
        "\u00a0", "\u3000", "\u0085", "\u2028", "\u180e", "\u200b", "\ufeff", "\u200d", "a", "A", "ab", "Ab", "aB", "ABC",
        "ǅ", "ʰ", "ª", "م", "中文", "한국어", "ไทย", "हिन्दी", "é", "e\u0301", "\u0301", "1", "12", "1234567", "٣", "½", "Ⅷ", "²",
        "!", "!!", "?!\n", "/", "//", "!/", "()", "{};\n", "😀", "👩‍👩‍👧", "\x00", "\x7f", "\x1c", "\x1f", "\U0001e4d0", "\U0002ebf0",
        "<|endoftext|>", "don't", "DON'T", "I'm'", "x'", "_", "__init__", "-->"]


class Ours:
    """gptloom's tokenizer, compiled as a shared library."""

    def __init__(self, folder):
        library = Path(folder) / "text.so"
        sources = sorted((ROOT / "csrc/text").glob("*.c"))
        sources += [ROOT / "csrc/base" / f"{name}.c" for name in ("json", "file", "error", "check", "printable", "say")]
        subprocess.run(["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-shared", "-I", ROOT / "include", "-I",
                        ROOT / "csrc", *sources, "-o", library, "-lxxhash", "-lcjson"], check=True)
        self.lib = ctypes.CDLL(str(library))
        for name in ("loom_tokenizer_open", "loom_encode", "loom_piece_counts_add", "loom_bpe_train", "loom_tokenizer_write_json"):
            getattr(self.lib, name).restype = ctypes.c_bool
        self.lib.loom_encoder_open.restype = ctypes.c_void_p
        self.lib.loom_encode_room.restype = ctypes.c_size_t
        self.lib.loom_piece_counts_open.restype = ctypes.c_void_p
        self.error = ctypes.create_string_buffer(1024)

    def open(self, path, pattern=None):
        tokenizer = ctypes.c_void_p()
        if not self.lib.loom_tokenizer_open(ctypes.byref(tokenizer), str(path).encode(),
                                            pattern.encode() if pattern else None, self.error):
            sys.exit(self.error.value.decode())
        encoder = ctypes.c_void_p(self.lib.loom_encoder_open(tokenizer, 0, self.error))

        def encode(data):
            room = self.lib.loom_encode_room(tokenizer, ctypes.c_size_t(len(data)))
            ids = (ctypes.c_int32 * room)()
            count = ctypes.c_size_t()
            if not self.lib.loom_encode(encoder, data, ctypes.c_size_t(len(data)), ids, ctypes.byref(count), self.error):
                sys.exit(self.error.value.decode())
            return ids[:count.value]

        return encode

    def train(self, text, vocab_size, path):
        """A tokenizer.json trained on text, split as GPT-2 does."""

        class Training(ctypes.Structure):
            _fields_ = [("vocab_size", ctypes.c_int32), ("min_frequency", ctypes.c_int64),
                        ("progress", ctypes.c_void_p), ("user", ctypes.c_void_p)]

        counts = ctypes.c_void_p(self.lib.loom_piece_counts_open(0))
        tokenizer = ctypes.c_void_p()
        training = Training(vocab_size, 0, None, None)
        if not (self.lib.loom_piece_counts_add(counts, text, ctypes.c_size_t(len(text)))
                and self.lib.loom_bpe_train(ctypes.byref(tokenizer), counts, ctypes.byref(training), self.error)
                and self.lib.loom_tokenizer_write_json(tokenizer, str(path).encode(), self.error)):
            sys.exit(self.error.value.decode())
        self.lib.loom_piece_counts_close(counts)
        self.lib.loom_tokenizer_close(tokenizer)


def train(pattern, merges, texts, size=3000):
    """A tokenizer of Hugging Face: GPT-2's merges, or trained with `size` tokens."""
    if merges:
        lines = [line for line in Path(merges).read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
        pairs = [tuple(line.split(" ")) for line in lines]
        order = [c for c in range(256) if 33 <= c <= 126 or 161 <= c <= 172 or c >= 174]
        characters = [chr(c) for c in order] + [chr(256 + i) for i in range(256 - len(order))]
        vocabulary = {token: i for i, token in enumerate(characters + ["".join(pair) for pair in pairs])}
        model = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    else:
        model = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if pattern == "gpt2":
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    if not merges:
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                      show_progress=False)
        model.train_from_iterator(texts, trainer)
    return model


def ranks_of(model):
    """Bytes to id, as tiktoken has them."""
    order = [c for c in range(256) if 33 <= c <= 126 or 161 <= c <= 172 or c >= 174]
    others = [c for c in range(256) if c not in order]
    byte_of = {chr(c): c for c in order} | {chr(256 + i): c for i, c in enumerate(others)}
    return {bytes(byte_of[c] for c in token): i for token, i in model.get_vocab().items()}


def compare_training(ours, folder, text, size=8000):
    """Trains on the same text with tokenizers, and compares vocabularies and merges."""
    text += "".join(samples(300000, text, 5))
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|endoftext|>"], show_progress=False)
    model.train_from_iterator([text], trainer)
    theirs = json.loads(model.to_str())["model"]
    ours.train(text.encode(), size, Path(folder) / "trained.json")
    written = json.loads((Path(folder) / "trained.json").read_text())["model"]
    reread = Tokenizer.from_file(str(Path(folder) / "trained.json"))
    wrong = (written["vocab"] != theirs["vocab"]) + (written["merges"] != [list(pair) for pair in theirs["merges"]])
    wrong += reread.encode(text[:100000]).ids != model.encode(text[:100000]).ids
    print(f"training {len(text.encode()):12,} bytes {len(theirs['vocab']):,} tokens, {len(theirs['merges']):,} merges; "
          f"differences: {wrong}", flush=True)
    return wrong


def real_text(limit):
    files = sorted(Path("/usr/include").rglob("*.h"))
    text = ""
    for file in files:
        text += file.read_text(encoding="utf-8", errors="replace")
        if len(text) > limit:
            return text[:limit]
    return text


def samples(total, text, seed):
    """Texts of some 10 KB, of all kinds in turn."""
    draw = random.Random(seed)
    done = 0
    while done < total:
        for kind in range(4):
            if kind == 0:
                at = draw.randrange(max(1, len(text) - 10000))
                sample = text[at:at + 10000]
            elif kind == 1:
                sample = "".join(draw.choice(HARD) for _ in range(4000))
            elif kind == 2:
                top = draw.choice([0x80, 0x250, 0x3000, 0x10000, 0x110000])
                sample = "".join(chr(c) for c in (draw.randrange(top) for _ in range(4000)) if not 0xD800 <= c < 0xE000)
            else:
                sample = draw.choice(HARD) * draw.randrange(1, 3000)
            done += len(sample.encode())
            yield sample


def write_ranks(path, mergeable):
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n"
                            for token, i in sorted(mergeable.items(), key=lambda x: x[1])))


def write_golden(pattern, folder, text):
    """A small vocabulary, a text, and the ids that each peer gives it: test/data/tokenizers."""
    model = train(pattern, None, [text[:300000], *samples(50000, text, 1)], 600)
    mergeable = ranks_of(model)
    encoding = tiktoken.Encoding(pattern, pat_str=TIKTOKEN_PATTERNS[pattern], mergeable_ranks=mergeable, special_tokens={})
    draw = random.Random(4)
    sample = text[5000:5600] + "".join(draw.choice(HARD) for _ in range(400)) + "".join(draw.sample(HARD, len(HARD)))
    model.save(str(folder / f"{pattern}.json"), pretty=False)
    write_ranks(folder / f"{pattern}.tiktoken", mergeable)
    (folder / "text.txt").write_bytes(sample.encode())  # the same for all
    (folder / f"{pattern}.ids").write_text(
        " ".join(map(str, model.encode(sample).ids)) + "\n"
        + " ".join(map(str, encoding.encode(sample, disallowed_special=()))) + "\n")


def compare(pattern, ours, args, folder, text):
    model = train(pattern, args.merges if pattern == "gpt2" else None, [text, *samples(200000, text, 1)])
    whole, ranks = Path(folder) / f"{pattern}.json", Path(folder) / f"{pattern}.tiktoken"
    model.save(str(whole))
    mergeable = ranks_of(model)
    write_ranks(ranks, mergeable)
    encoding = tiktoken.Encoding(pattern, pat_str=TIKTOKEN_PATTERNS[pattern], mergeable_ranks=mergeable, special_tokens={})
    by_json, by_ranks = ours.open(whole), ours.open(ranks, pattern)
    size = tokens = 0
    wrong = {"tokenizers": 0, "tiktoken": 0, "bytes": 0}
    decode = {i: token for token, i in mergeable.items()}
    draw = random.Random(2)
    for sample in samples(args.megabytes * 1e6, text, 3):
        data = sample.encode()
        mine = by_json(data)
        if mine != model.encode(sample).ids:
            wrong["tokenizers"] += 1
            (Path(folder) / f"wrong-{pattern}-tokenizers").write_bytes(data)
        if by_ranks(data) != encoding.encode(sample, disallowed_special=()):
            wrong["tiktoken"] += 1
            (Path(folder) / f"wrong-{pattern}-tiktoken").write_bytes(data)
        noise = draw.randbytes(2000) + data[draw.randrange(4):1000]
        wrong["bytes"] += b"".join(decode[i] for i in by_ranks(noise)) != noise
        size += len(data)
        tokens += len(mine)
    print(f"{pattern:8} {size:12,} bytes {tokens:12,} tokens; samples that differ: "
          + ", ".join(f"{name} {n}" for name, n in wrong.items()), flush=True)
    return sum(wrong.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=10, help="of text for each pattern (10)")
    parser.add_argument("--merges", help="GPT-2's merges.txt")
    parser.add_argument("--pattern", nargs="*", default=list(PATTERNS), choices=list(PATTERNS))
    parser.add_argument("--keep", help="a folder for the vocabularies and for samples that differ")
    parser.add_argument("--golden", type=Path, help="writes the test's vocabularies, texts and ids into this folder instead")
    args = parser.parse_args()
    print(f"tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or temporary
        text = real_text(3_000_000)
        if args.golden:
            for pattern in ("gpt2", "cl100k", "o200k"):  # cl100k's in tokenizer.json is Llama 3's
                write_golden(pattern, args.golden, text)
            return
        ours = Ours(temporary)
        wrong = compare_training(ours, folder, text)
        wrong += sum(compare(pattern, ours, args, folder, text) for pattern in args.pattern)
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
