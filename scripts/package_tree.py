"""Tree of packages in ARCHITECTURE.md, one line per module, from the modules' docstrings.

python scripts/package_tree.py [--check]
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- tree: begin -->\n", "<!-- tree: end -->\n"


def order() -> list[str]:
    """Return the packages of medsam_app, highest layer first, as the import contract lists them."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [name.strip() for layer in layers for name in layer.replace("|", ":").split(":")]


def summary(module: Path) -> str:
    """Return the first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ").rstrip(".")


def lines(path: Path, depth: int = 0) -> Iterator[str]:
    """Yield a line for a module, or the lines of a package with everything in it.

    Raises:
        SystemExit: a module has no docstring.
    """
    module = path / "__init__.py" if path.is_dir() else path
    text = summary(module)
    if not text:
        raise SystemExit(f"{module} has no docstring; say in one line what it is for.")
    name = "  " * depth + (f"{path.name}/" if path.is_dir() else path.stem)
    yield f"{name:<26}{text}"
    if path.is_dir():
        children = [
            child
            for child in path.iterdir()
            if (child.suffix == ".py" and child.name != "__init__.py") or (child / "__init__.py").is_file()
        ]
        for child in sorted(children, key=lambda child: (child.is_dir(), child.name)):
            yield from lines(child, depth + 1)


def tree() -> str:
    """Return the tree as a code block."""
    package = ROOT / "medsam_app"
    rows: list[str] = []
    for name in order():
        path = package / name if (package / name).is_dir() else package / f"{name}.py"
        rows += lines(path)
    return "```\n" + "\n".join(rows) + "\n```\n"


def main() -> None:
    """Write the tree; with --check, exit with status 1 if it is not up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only check that the tree is up to date")
    options = parser.parse_args()
    text = PAGE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    new = text[:start] + tree() + text[end:]
    if options.check:
        if new != text:
            raise SystemExit("ARCHITECTURE.md is not up to date: run python scripts/package_tree.py")
    else:
        PAGE.write_text(new)


if __name__ == "__main__":
    main()
