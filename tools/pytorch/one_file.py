"""Modules that import from each other, as one module: what is copied out with a model needs no package around it."""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path


def one_file(paths: Sequence[Path]) -> str:
    """Join modules to the text of one, which has the last one's docstring.

    Args:
        paths: in an order in which each imports from those before it only, by `from .other import name`.
    """
    sources = [path.read_text() for path in paths]
    trees = [ast.parse(source) for source in sources]
    imports = [node for tree in trees for node in tree.body if _imports(node) and not getattr(node, "level", 0)]
    bodies = [_body(source, tree) for source, tree in zip(sources, trees, strict=True)]
    docstring = ast.get_source_segment(sources[-1], trees[-1].body[0]) or ""
    lines = dict.fromkeys(ast.unparse(node) for node in imports)
    groups = ["\n".join(sorted(line for line in lines if _standard(line) is standard)) for standard in (True, False)]
    return "\n\n".join([docstring, groups[0], f"{groups[1]}\n", *bodies])


def _standard(line: str) -> bool:
    return line.split()[1].partition(".")[0] in sys.stdlib_module_names


def _imports(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _body(source: str, tree: ast.Module) -> str:
    """Return what follows a module's docstring, without its imports."""
    lines = source.splitlines()
    taken = [tree.body[0], *(node for node in tree.body if _imports(node))]
    for node in reversed(taken):
        del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip("\n") + "\n"
