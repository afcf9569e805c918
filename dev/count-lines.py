#!/usr/bin/env python3
"""Lines of code, without blank lines and comments, by folder: of what the program and the library are made of."""

import re
import subprocess
from collections import Counter
from pathlib import Path

FOLDERS = ("csrc", "kernels", "include", "train")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)

lines = Counter()
files = subprocess.run(["git", "ls-files", *FOLDERS], capture_output=True, text=True, check=True).stdout.split()
for path in map(Path, files):
    if path.suffix in (".c", ".h", ".cu", ".cuh"):
        code = COMMENT.sub("", path.read_text())
        lines["/".join(path.parts[:-1])] += sum(1 for line in code.split("\n") if line.strip())
for folder, count in sorted(lines.items()):
    print(f"{count:7}  {folder}")
print(f"{sum(lines.values()):7}  all")
