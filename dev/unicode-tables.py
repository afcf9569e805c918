#!/usr/bin/env python3
"""Writes csrc/text/unicode_tables.c: of each code point what the patterns of tokenizers ask about it.

The version is the one that Hugging Face's tokenizers 0.23.3 and tiktoken 0.14.0 have: asked about every code point,
both answer as Unicode 16.0.0 does, and so alike. Python 3.14 has its data; other versions take them from PyPI:

    pip install unicodedata2==16.0.0
    dev/unicode-tables.py
"""

import sys
from pathlib import Path

VERSION = "16.0.0"
BLOCK = 256
POINTS = 0x110000
TABLES = Path(__file__).parent.parent / "csrc/text/unicode_tables.c"

# The bits of csrc/text/unicode.h.
LETTERS = {"Lu": 1, "Ll": 2, "Lt": 4, "Lm": 8, "Lo": 16}
MARK, NUMBER, SPACE = 32, 64, 128


def database():
    """The module that knows the categories of that version."""
    import unicodedata

    if unicodedata.unidata_version == VERSION:
        return unicodedata
    try:
        import unicodedata2
    except ImportError:
        sys.exit(f"no data of Unicode {VERSION}: pip install unicodedata2=={VERSION}")
    if unicodedata2.unidata_version != VERSION:
        sys.exit(f"unicodedata2 has Unicode {unicodedata2.unidata_version}: pip install unicodedata2=={VERSION}")
    return unicodedata2


def class_of(point: int, category: str) -> int:
    """White space is the property White_Space: the separators, and six control characters."""
    if category in LETTERS:
        return LETTERS[category]
    if category[0] == "M":
        return MARK
    if category[0] == "N":
        return NUMBER
    return SPACE if category[0] == "Z" or 0x09 <= point <= 0x0D or point == 0x85 else 0


def rows(values: bytes, indent: str) -> str:
    """Numbers in lines of 120 columns."""
    lines, line = [], indent
    for value in values:
        word = f"{value},"
        if len(line) + len(word) > 120:
            lines.append(line)
            line = indent
        line += word
    return "\n".join([*lines, line.removesuffix(",")])


def main() -> None:
    data = database()
    classes = bytes(class_of(point, data.category(chr(point))) for point in range(POINTS))
    number = {}
    index = bytes(number.setdefault(classes[at : at + BLOCK], len(number)) for at in range(0, POINTS, BLOCK))
    blocks = ",\n".join(f"    {{\n{rows(block, ' ' * 8)}\n    }}" for block in number)
    TABLES.write_text(f"""\
/* Written by dev/unicode-tables.py from the categories of Unicode {VERSION}: the version that the tokenizers of Hugging
 * Face (0.23.3) and tiktoken (0.14.0) agree on for every code point. */
#include "text/unicode.h"

/* clang-format off */

const uint8_t loom_unicode_blocks[LOOM_UNICODE_POINTS / LOOM_UNICODE_BLOCK] = {{
{rows(index, "    ")}
}};

const uint8_t loom_unicode_classes[][LOOM_UNICODE_BLOCK] = {{
{blocks}
}};
""")
    print(f"{TABLES}: {len(number)} blocks")


main()
