"""How much there is to understand, file by file, and what is not laid out as agreed.

    python tests/house.py

Tokens are Python's own, without comments, docstrings and layout, so that no formatting lowers them.
Exit status 1 if something is over its ceiling (docs/house.md).
"""

import ast
import glob
import io
import os
import sys
import tokenize

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CORE = {"neuroframes.py": 3500, "data.py": 3700, "train.py": 2800, "sample.py": 3200}
FOLDERS = {
    "beyond": 12_000,
    "people": 4_200,
    "recordings": 9_000,
    "spaces": 7_000,
    "evidence": 4_500,
    "tools": 10_000,
}
CHAPTER, COLUMNS, FUNCTION, SETTINGS, WORDS = 1800, 100, 60, 80, 1000
LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
SIMPLE = (ast.Name, ast.Attribute, ast.Constant)


def read(path):
    with open(os.path.join(HERE, path), encoding="utf-8") as f:
        return f.read()


def docstring_lines(tree):
    """The lines that docstrings cover."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node) is not None:
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def count_tokens(source, documented):
    """An f-string counts as one token, which from Python 3.12 on comes in pieces."""
    starts = getattr(tokenize, "FSTRING_START", None)
    ends = getattr(tokenize, "FSTRING_END", None)
    count = depth = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT or token.start[0] in documented:
            continue
        depth -= token.type == ends
        count += depth == 0 and token.type != ends
        depth += token.type == starts
    return count


def is_packed(node):
    """Two thoughts in one statement: see docs/house.md."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
        values = node.value.elts if isinstance(node.value, ast.Tuple) else []
        return sum(not isinstance(value, SIMPLE) for value in values) >= 2
    if isinstance(node, ast.IfExp):
        return isinstance(node.body, ast.IfExp) or isinstance(node.orelse, ast.IfExp)
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Lambda)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple)


def is_settings(function):
    """A flat list of settings: most of its statements add a flag."""
    calls = [s for s in function.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    return len(calls) > len(function.body) / 2


def measure(path):
    """{"tokens", "lines", "explain": share of lines that are words, "longest", "wrong": [...]}."""
    source = read(path)
    tree = ast.parse(source)
    lines = source.splitlines()
    documented = docstring_lines(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    most = {f.name: SETTINGS if is_settings(f) else FUNCTION for f in functions}
    packed = [node.lineno for node in ast.walk(tree) if is_packed(node)]
    wide = [i for i, line in enumerate(lines, 1) if len(line) > COLUMNS]
    wrong = [f"{path}:{line}: two thoughts in one statement" for line in packed]
    wrong += [f"{path}:{line}: over {COLUMNS} columns" for line in wide]
    wrong += [f"{path}: {name} has {n} lines" for name, n in lengths.items() if n > most[name]]
    words = documented | {i for i, line in enumerate(lines, 1) if "# " in line}
    return {
        "tokens": count_tokens(source, documented),
        "lines": len(lines),
        "explain": len(words) / max(1, len(lines)),
        "longest": max(lengths.items(), key=lambda item: item[1], default=("", 0)),
        "wrong": wrong,
    }


def product():
    """The files that readers and users meet, without tests and benchmarks."""
    folders = [sorted(glob.glob(f"{folder}/*.py", root_dir=HERE)) for folder in FOLDERS]
    return [*CORE, *sum(folders, [])]


def over():
    """What is over its ceiling or not laid out as agreed, a line each."""
    found = {path: measure(path) for path in product()}
    lines = [line for m in found.values() for line in m["wrong"]]
    for path, m in found.items():
        most = CORE.get(path, CHAPTER if path.startswith("beyond/") else None)
        if most and m["tokens"] > most:
            lines.append(f"{path}: {m['tokens']:,} tokens, at most {most:,}")
        if path in CORE and "# noqa" in read(path):
            lines.append(f"{path}: has a noqa")
    for folder, most in FOLDERS.items():
        total = sum(m["tokens"] for path, m in found.items() if path.startswith(folder + "/"))
        if total > most:
            lines.append(f"{folder}/: {total:,} tokens, at most {most:,}")
    words = len(read("README.md").split())
    if words > WORDS:
        lines.append(f"README.md: {words:,} words, at most {WORDS:,}")
    return lines


def main():
    print(f"{'':32}{'tokens':>8}{'lines':>7}{'explain':>9}  longest function")
    total = {}
    for path in product():
        m = measure(path)
        name, length = m["longest"]
        print(f"{path:32}{m['tokens']:8,}{m['lines']:7}{m['explain']:9.0%}  {name} {length}")
        place = path.split("/")[0] + "/" if "/" in path else "the core"
        total[place] = total.get(place, 0) + m["tokens"]
    print(", ".join(f"{place} {tokens:,}" for place, tokens in total.items()))
    print(f"README.md {len(read('README.md').split()):,} words")
    lines = over()
    print("\n".join(["not as agreed:", *lines]) if lines else "all as agreed")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
