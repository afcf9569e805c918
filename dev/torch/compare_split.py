"""Holds csrc/text against Hugging Face's tokenizers and tiktoken: the class of every code point, then the pieces of
random and adversarial text. Needs gcc, and `pip install tokenizers tiktoken`."""

import argparse
import ctypes
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import tiktoken
from tokenizers import Regex, pre_tokenizers

PROJECT = Path(__file__).parent.parent.parent
EXPORTS = r"""
#include "text/split.h"
#include "text/unicode.h"
size_t split_all(loom_split_pattern pattern, const uint8_t *text, size_t n, uint64_t *ends) {
    size_t pieces = 0;
    for (size_t at = 0; at < n;) ends[pieces++] = at = loom_split_next(pattern, text, n, at);
    return pieces;
}
unsigned class_of(uint32_t point) {
    return loom_unicode_class(point);
}
"""
# The bits of csrc/text/unicode.h.
CLASSES = {r"\p{Lu}": 1, r"\p{Ll}": 2, r"\p{Lt}": 4, r"\p{Lm}": 8, r"\p{Lo}": 16, r"\p{L}": 31}
CLASSES |= {r"\p{M}": 32, r"\p{N}": 64, r"\s": 128}

WHITE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"
# Name, regular expression, and which peers it was published for.
PATTERNS = [
    ("gpt2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "both"),
    ("r50k", r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", "tiktoken"),
    (
        "cl100k",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
        r"\s+(?!\S)|\s",
        "tiktoken",
    ),
    ("llama3", rf"{SUFFIX}|{BEFORE}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{WHITE}", "both"),
    ("qwen2", rf"{SUFFIX}|{BEFORE}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{WHITE}", "both"),
    (
        "o200k",
        rf"{BEFORE}{UPPER}*{LOWER}+{SUFFIX}?|{BEFORE}{UPPER}+{LOWER}*{SUFFIX}?|\p{{N}}{{1,3}}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{WHITE}",
        "both",
    ),
]
POINTS = [point for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
BYTES = [bytes([byte]) for byte in range(256)]


class Splitter:
    """csrc/text, compiled for this script."""

    def __init__(self, folder: str):
        library, exports = Path(folder) / "libsplit.so", Path(folder) / "exports.c"
        exports.write_text(EXPORTS)
        sources = [exports, *sorted((PROJECT / "csrc/text").glob("*.c"))]
        flags = ["-std=c11", "-O2", "-shared", "-fPIC", f"-I{PROJECT / 'csrc'}"]
        subprocess.run(["gcc", *flags, "-o", library, *sources], check=True)
        self.library = ctypes.CDLL(str(library))
        self.library.split_all.restype = ctypes.c_size_t

    def find(self, regex: str) -> int:
        pattern = ctypes.c_int(-1)
        self.library.loom_split_pattern_find.restype = ctypes.c_bool
        if not self.library.loom_split_pattern_find(regex.encode(), ctypes.byref(pattern)):
            sys.exit(f"loom_split_pattern_find does not know {regex}")
        return pattern.value

    def pieces(self, pattern: int, text: bytes) -> list:
        ends = (ctypes.c_uint64 * len(text))()
        n = self.library.split_all(pattern, text, ctypes.c_size_t(len(text)), ends)
        return [text[begin:end] for begin, end in zip([0, *ends[: n - 1]], ends[:n])]


def encoding(regex: str, tokens: list) -> tiktoken.Encoding:
    return tiktoken.Encoding("", pat_str=regex, mergeable_ranks={t: i for i, t in enumerate(tokens)}, special_tokens={})


def compare_classes(splitter: Splitter) -> int:
    """In how many code points and classes a peer differs from the tables."""
    differing = 0
    ours = [splitter.library.class_of(point) for point in POINTS]
    for regex, bits in CLASSES.items():
        expected = {point for point, found in zip(POINTS, ours) if found & bits}
        of_tiktoken, of_tokenizers = set(), set(POINTS)
        split, encode = pre_tokenizers.Split(Regex(regex), "removed"), encoding(regex, BYTES).encode_ordinary
        for at in range(0, len(POINTS), 4096):
            part = POINTS[at : at + 4096]
            text = "".join(map(chr, part))
            of_tiktoken |= {ord(c) for c in bytes(encode(text)).decode()}
            for _, (begin, end) in split.pre_tokenize_str(text):
                of_tokenizers -= set(part[begin:end])
        for name, found in (("tiktoken", of_tiktoken), ("tokenizers", of_tokenizers)):
            wrong = sorted(found ^ expected)
            print(f"{regex:8} {name:10} {len(found):7} code points, {len(wrong)} differ {[hex(p) for p in wrong[:8]]}")
            differing += len(wrong)
    return differing


def tokenizers_differs(regex: str, text: str, pieces: list) -> bool:
    found = pre_tokenizers.Split(Regex(regex), "isolated").pre_tokenize_str(text)
    return [text[begin:end].encode() for _, (begin, end) in found] != pieces


def tiktoken_differs(regex: str, text: str, pieces: list, rng: random.Random) -> bool:
    """tiktoken shows tokens and not pieces. With our pieces for tokens it finds exactly these, unless a piece of its
    own is several of ours. That shows with tokens of two bytes that go across the ends of our pieces, in several orders
    of merging: tiktoken must find what it finds in each of our pieces by itself."""
    tokens = [*BYTES, *sorted({piece for piece in pieces if len(piece) > 1})]
    rank = {token: i for i, token in enumerate(tokens)}
    if encoding(regex, tokens).encode_ordinary(text) != [rank[piece] for piece in pieces]:
        return True
    pairs = sorted({a[-1:] + b[:1] for a, b in zip(pieces, pieces[1:])})
    for _ in range(4):
        rng.shuffle(pairs)
        pairwise = encoding(regex, [*BYTES, *pairs])
        alone = {piece: pairwise._encode_single_piece(piece) for piece in set(pieces)}
        if pairwise.encode_ordinary(text) != [token for piece in pieces for token in alone[piece]]:
            return True
    return False


PARTS = ["'", "'s", "'S", "'ll", "'Ll", "'v", "'ve", "'RE", "'\u017f", "\u017f", "\u212a", "s", "t", "e", "l", "a", "b"]
PARTS += ["word", "B", "UPPER", "\u00e9", "\u00c9", "\u01c5", "\u02b0", "\u00aa", "\u65e5", "\u0301", "\u0903", "1"]
PARTS += ["234", "\u0663", "\u00bd", " ", "  ", "\n", "\r", "\r\n", "\t", "\u00a0", "\u0085", "\u2028", "\u3000", "/"]
PARTS += ["!", "-", "\u200b", "\ufeff", "\x1c", "\x00", "\u180e", "\u20ac", "\U0001f600", "\U0001e4d0", "\U0002ebf0"]


def random_text(rng: random.Random, length: int) -> str:
    """Mixtures, a few kinds of parts alone, long runs, and any code points."""
    text = []
    while length > 0:
        kind, n = rng.randrange(4), rng.randrange(1, 40)
        if kind == 0:
            part = "".join(rng.choices(PARTS, k=n))
        elif kind == 1:
            part = "".join(rng.choices(rng.sample(PARTS, 3), k=n))
        elif kind == 2:
            part = rng.choice(PARTS) * rng.choice((n, n * 20))
        else:
            part = "".join(chr(rng.choice(POINTS)) + rng.choice(PARTS) for _ in range(n))
        text.append(part)
        length -= len(part.encode())
    return "".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=2_000_000, help="of text, for each pattern")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        splitter = Splitter(folder)
        differing = compare_classes(splitter)
        for name, regex, peers in PATTERNS:
            rng, pattern = random.Random(options.seed), splitter.find(regex)
            texts = size = n_pieces = 0
            wrong = {"tiktoken": 0, **({"tokenizers": 0} if peers == "both" else {})}
            while size < options.bytes:
                text = random_text(rng, rng.choice((20, 200, 2000, 20000)))
                pieces = splitter.pieces(pattern, text.encode())
                texts, size, n_pieces = texts + 1, size + len(text.encode()), n_pieces + len(pieces)
                wrong["tiktoken"] += tiktoken_differs(regex, text, pieces, rng)
                if peers == "both":
                    wrong["tokenizers"] += tokenizers_differs(regex, text, pieces)
            differing += sum(wrong.values())
            found = ", ".join(f"{peer} {n} differ" for peer, n in wrong.items())
            print(f"{name:8} {texts} texts, {size} bytes, {n_pieces} pieces: {found}", flush=True)
    sys.exit(differing > 0)


main()
