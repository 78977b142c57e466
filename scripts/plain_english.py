"""Check docstrings and comments for words that hide what is meant.

    python scripts/plain_english.py

Data are not "told", code is not "mended", and "whoever" and "nobody" are the caller, the user or no user:
CONTRIBUTING.md has the words to use instead. Docstrings of commands are texts for users and not checked.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = re.compile(
    r"\b(told|tells|mend(?:s|ed|ing)?|whoever|nobody|somebody|everybody|goes on|anew|asked for|as it is)\b",
    re.IGNORECASE,
)
#: Code and names of things, which are quoted.
QUOTED = re.compile(r"(?<!\w)'[^']*'|`[^`]*`|\"[^\"]*\"")
#: Folder whose docstrings are help texts.
COMMANDS = "medsam_app/cli/"
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def texts(path: str, code: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring and comment."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, _Documented) and not path.startswith(COMMANDS) and ast.get_docstring(node):
            yield node.body[0].lineno, ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def main() -> int:
    """Print each place with such a word; return 1 if there is one."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    status = 0
    for name in sorted(set(names)):
        if name == Path(__file__).relative_to(ROOT).as_posix() or not (ROOT / name).is_file():
            continue
        for line, text in texts(name, (ROOT / name).read_text(encoding="utf-8")):
            for word in WORDS.findall(QUOTED.sub("", text)):
                print(f"{name}:{line}: '{word}'")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
