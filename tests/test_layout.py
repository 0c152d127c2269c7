"""The house rules that a machine can hold: imports go one way, scripts start light, the repository stays small."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package -> packages of ours that it may import, itself aside; scripts may import every package
MAY_IMPORT = {
    "splatting": set(),
    "motion": set(),
    "cluster": set(),
    "cli": {"data"},
    "data": {"motion", "cluster"},
    "models": {"splatting", "motion"},
    "metrics": {"models", "splatting", "motion"},
    "animation": {"models", "splatting", "data", "motion", "cluster"},
    "training": {"metrics", "models", "splatting", "data", "motion", "cluster"},
    "benchmarks": {"animation", "models", "splatting", "data", "motion", "cluster"},
    "evaluation": {"training", "animation", "metrics", "models", "splatting", "data", "motion", "cluster"},
}
FLAGS_MODULE = "flags.py"  # of a package: adds to a command line, so that it may import cli
CLI_MAY_IMPORT = {"data.files", "data.cpus"}
# Imports that make --help slow.
HEAVY = {"torch", "torchvision", "numpy", "scipy", "cv2", "diffusers", "accelerate", "numba", "av", "matplotlib"}
CUPY_HOME = "splatting/cuda.py"
MOST_LINES = {"script": 200, "module": 400, "function": 60, "kernel": 250, "test": 500}
# The aim is 20,000 lines; from here the tree may grow by features alone.
MOST_PRODUCT_LINES, MOST_TRAINING_LINES, LARGEST_FRACTION = 25_240, 2_999, 0.3
MOST_BYTES = 3_000_000
MOST_CHECKPOINT_BYTES = 32_000_000


def package_files(root: Path) -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in (root / package).rglob("*.py"))


def scripts(root: Path) -> list[Path]:
    return sorted(root.glob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, path: Path, root: Path) -> list[str]:
    """Return the full names of the modules that an import statement names; [] for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if not node.level:
            return [node.module or ""]
        here = module_name(path, root).split(".")
        package = here if path.name == "__init__.py" else here[:-1]
        above = package[: len(package) - node.level + 1]
        # `from .. import x` in a package leaves nothing above: x itself is what is imported.
        names = [node.module] if node.module else [alias.name for alias in node.names]
        return [".".join([*above, name]) for name in names]
    # importlib.import_module("x"), __import__("x")
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported: not bodies of functions, not TYPE_CHECKING blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if is_type_checking(node):
            yield from (inner for other in node.orelse for inner in ast.walk(other))
            continue
        yield node
        yield from at_import_time(node)


# ------------------------------------------------------------------------------------------ the rules


def wrong_directions(root: Path) -> list[str]:
    """List imports of ours that go the wrong way, at any depth, TYPE_CHECKING included."""
    script_names = {path.stem for path in scripts(root)}
    found = []
    for path in [*package_files(root), *scripts(root)]:
        package = path.relative_to(root).parts[0] if path.parent != root else None
        allowed = set(MAY_IMPORT) if package is None else MAY_IMPORT[package] | {package}
        if path.name == FLAGS_MODULE:
            allowed |= {"cli"}
        for node in ast.walk(parse(path)):
            for name in imported(node, path, root):
                top = name.split(".")[0]
                wrong = (top in MAY_IMPORT and top not in allowed) or top in script_names or top == "tests"
                if wrong or (package == "cli" and top == "data" and name not in CLI_MAY_IMPORT):
                    found.append(f"{path.relative_to(root)}:{node.lineno} imports {name}")
    return found


def stray_cupy(root: Path) -> list[str]:
    """List imports of cupy anywhere but inside a function of splatting/cuda.py."""
    found = []
    for path in [*package_files(root), *scripts(root), *sorted((root / "tests").glob("*.py"))]:
        tree = parse(path)
        at_home = path.relative_to(root).as_posix() == CUPY_HOME
        for node in at_import_time(tree) if at_home else ast.walk(tree):
            if any(name.split(".")[0] == "cupy" for name in imported(node, path, root)):
                found.append(f"{path.relative_to(root)}:{node.lineno} imports cupy")
    return found


def heavy_starts(root: Path) -> list[str]:
    """List heavy imports that `SCRIPT --help` would wait for: those of scripts and of what they import at the top."""
    found, seen = [], set()
    waiting = list(scripts(root))
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in at_import_time(parse(path)):
            for name in imported(node, path, root):
                parts = name.split(".")
                if parts[0] in HEAVY:
                    found.append(f"{path.relative_to(root)}:{node.lineno} imports {name} at the top")
                if parts[0] not in MAY_IMPORT:
                    continue
                inner = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
                for tail in [parts, *([*parts, extra] for extra in inner)]:
                    for length in range(1, len(tail) + 1):
                        module = root.joinpath(*tail[:length])
                        files = (module.with_suffix(".py"), module / "__init__.py")
                        waiting += [file for file in files if file.is_file()]
    return sorted(found)


def without_main(root: Path) -> list[str]:
    """List scripts without `def main(argv... = None) -> int` and without the lines that run it."""
    found = []
    for path in scripts(root):
        tree = parse(path)
        mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        if not mains:
            found.append(f"{path.name}: no main")
            continue
        arguments, returns = mains[0].args, mains[0].returns
        names = [argument.arg for argument in arguments.args]
        default = [ast.unparse(value) for value in arguments.defaults]
        if names != ["argv"] or default != ["None"] or returns is None or ast.unparse(returns) != "int":
            found.append(f"{path.name}:{mains[0].lineno} main is not main(argv=None) -> int")
        guards = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
        if not guards:
            found.append(f"{path.name}: nothing runs main")
    return found


def too_long(root: Path) -> list[str]:
    """List files and functions that are too long."""
    kinds = {"script": scripts(root), "module": package_files(root), "test": sorted((root / "tests").glob("*.py"))}
    kinds["kernel"] = sorted(root.glob("splatting/kernels/*.cu"))
    found = []
    for kind, paths in kinds.items():
        for path in paths:
            count = len(path.read_text(encoding="utf-8").splitlines())
            if count > MOST_LINES[kind]:
                found.append(f"{path.relative_to(root)}: {count} lines, a {kind} has at most {MOST_LINES[kind]}")
            if kind == "kernel":
                continue
            for node in ast.walk(parse(path)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    count = node.end_lineno - node.lineno + 1
                    if count > MOST_LINES["function"]:
                        found.append(f"{path.relative_to(root)}:{node.lineno} {node.name} has {count} lines")
    return found


def takes_namespace(root: Path) -> list[str]:
    """List functions outside scripts, cli/ and flags modules that take parsed flags."""
    found = []
    for path in package_files(root):
        if path.relative_to(root).parts[0] == "cli" or path.name == FLAGS_MODULE:
            continue
        for node in ast.walk(parse(path)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                if "Namespace" in annotation or argument.arg == "args":
                    name = getattr(node, "name", "lambda")
                    found.append(f"{path.relative_to(root)}:{node.lineno} {name} takes {argument.arg}")
    return found


def newer_than_python_3_10(root: Path) -> list[str]:
    """List what modules import from typing when they run, and Python 3.10 has not."""
    newer = set("Self Never LiteralString Unpack TypeVarTuple Required NotRequired assert_never override".split())
    found = []
    for path in [*package_files(root), *scripts(root)]:
        for node in at_import_time(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "typing":
                names = newer & {alias.name for alias in node.names}
                found += [f"{path.relative_to(root)}:{node.lineno} imports {name} from typing" for name in names]
    return found


def too_large(lines: dict[str, int]) -> list[str]:
    """List limits that product files {path: lines} are beyond: in all, of the largest package, of training."""
    product = {name: count for name, count in lines.items() if Path(name).suffix in (".py", ".cu", ".js")}
    product = {name: count for name, count in product.items() if not name.startswith("tests/")}
    total, packages = sum(product.values()), Counter()
    for name, count in product.items():
        packages[name.split("/")[0] if "/" in name else "scripts"] += count
    found = [f"{total} lines of product code, at most {MOST_PRODUCT_LINES}"] * (total > MOST_PRODUCT_LINES)
    found += [
        f"{name}/: {count} of {total} lines, at most {LARGEST_FRACTION:.0%}"
        for name, count in packages.items()
        if count > LARGEST_FRACTION * total
    ]
    if packages["training"] > MOST_TRAINING_LINES:
        found.append(f"training/: {packages['training']} lines, at most {MOST_TRAINING_LINES}")
    return found


def tracked_files() -> list[str]:
    """Return what git tracks; skips the test where this is no git checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"not a git checkout ({error})")
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def unwelcome(sizes: dict[str, int]) -> list[str]:
    """List tracked files {path: bytes} that are too large or of a kind that does not belong into the repository."""
    found = []
    for name, size in sizes.items():
        top, suffix = name.split("/")[0], os.path.splitext(name)[1].lower()
        if size > MOST_BYTES and top != "checkpoints":
            found.append(f"{name}: {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f}")
        if suffix in (".mp4", ".webm", ".mov", ".avi", ".mkv") and top != "outputs":
            found.append(f"{name}: a video outside outputs/")
        if suffix in (".pkl", ".pickle", ".pth", ".pt", ".bin", ".ckpt"):
            found.append(f"{name}: weights are safetensors, without pickle")
        if os.path.basename(name) == "utils.py":
            found.append(f"{name}: things have a home of their own")
    weights = sum(size for name, size in sizes.items() if name.startswith("checkpoints/"))
    if weights > MOST_CHECKPOINT_BYTES:
        found.append(f"checkpoints/: {weights / 1e6:.1f} MB, at most {MOST_CHECKPOINT_BYTES / 1e6:.0f}")
    return found


# ------------------------------------------------------------------------------------------ they hold here


RULES = [
    wrong_directions,
    stray_cupy,
    heavy_starts,
    without_main,
    too_long,
    takes_namespace,
    newer_than_python_3_10,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_repository_keeps_the_rule(rule):
    assert package_files(ROOT) and scripts(ROOT)
    found = rule(ROOT)
    assert not found, "\n".join(found)


def test_tracked_files_are_few_small_and_of_the_right_kind():
    assert unwelcome({name: (ROOT / name).stat().st_size for name in tracked_files()}) == []


def test_the_product_and_its_packages_are_small():
    names = [name for name in tracked_files() if Path(name).suffix in (".py", ".cu", ".js")]
    assert too_large({name: len((ROOT / name).read_bytes().splitlines()) for name in names}) == []


@pytest.mark.parametrize("script", [path.stem for path in scripts(ROOT)])
def test_help_imports_nothing_heavy(script):
    code = f"import sys, {script}\nassert {script}.main(['--help']) == 0\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    assert HEAVY & set(done.stderr.split()) == set()


# ------------------------------------------------------------------------------------------ and can be broken


GOOD_MAIN = "def main(argv=None) -> int:\n    return 0\n\n\nif __name__ == '__main__':\n    main()\n"


@pytest.mark.parametrize(
    ("rule", "name", "text", "said"),
    [
        (wrong_directions, "models/a.py", "def f():\n    from data.media import x\n", "imports data.media"),
        (wrong_directions, "motion/a.py", "import models\n", "imports models"),
        (wrong_directions, "splatting/a.py", "from .. import training\n", "imports training"),
        (wrong_directions, "data/a.py", "import importlib\nimportlib.import_module('cli.parser')\n", "cli.parser"),
        (wrong_directions, "training/a.py", "from one import main\n", "imports one"),
        (wrong_directions, "training/a.py", "def f():\n    from cli.parser import UsageError\n", "imports cli.parser"),
        (wrong_directions, "cli/a.py", "from data.media import x\n", "imports data.media"),
        (wrong_directions, "two.py", "import one\n", "imports one"),
        (stray_cupy, "splatting/cuda.py", "import cupy\n", "imports cupy"),
        (stray_cupy, "splatting/cuda.py", "try:\n    import cupy as cp\nexcept ImportError:\n    cp = None\n", "cupy"),
        (stray_cupy, "splatting/functional.py", "def f():\n    import cupy\n", "imports cupy"),
        (heavy_starts, "two.py", "from training import a\n" + GOOD_MAIN, "training/a.py:1 imports torch"),
        (without_main, "two.py", GOOD_MAIN.replace("argv=None", "args"), "argv"),
        (without_main, "two.py", "print(1)\n", "no main"),
        (too_long, "two.py", "x = 1\n" * 201, "201 lines"),
        (too_long, "data/a.py", "x = 1\n" * 401, "401 lines"),
        (too_long, "data/a.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        (too_long, "splatting/kernels/a.cu", "int x;\n" * 251, "251 lines"),
        (too_long, "tests/test_a.py", "x = 1\n" * 501, "501 lines"),
        (takes_namespace, "data/a.py", "def f(x, options: argparse.Namespace): ...\n", "f takes options"),
        (takes_namespace, "training/a.py", "def f(*, args): ...\n", "f takes args"),
        (newer_than_python_3_10, "data/a.py", "from typing import Any, Self\n", "imports Self from typing"),
    ],
)
def test_a_broken_rule_is_found(tmp_path, rule, name, text, said):
    for package in MAY_IMPORT:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "splatting" / "kernels").mkdir()
    for place in ("cli", "training"):  # where flags belong
        (tmp_path / place / "flags.py").write_text("from cli.parser import x\ndef f(args: Namespace): ...\n")
    (tmp_path / "one.py").write_text(GOOD_MAIN)
    (tmp_path / "splatting" / "cuda.py").write_text("def f():\n    import cupy\n")
    (tmp_path / "training" / "a.py").write_text("import torch\n")
    assert rule(tmp_path) == []
    (tmp_path / name).write_text(text)
    found = rule(tmp_path)
    assert len(found) == 1 and said in found[0]


def test_a_large_product_is_found():
    small = {"a.py": 4_000, "data/a.py": 4_000, "models/a.py": 4_000, "web/a.js": 4_000, "splatting/k.cu": 3_000}
    assert too_large({**small, "tests/a.py": 50_000, "README.md": 50_000}) == []
    one_more = {**small, "metrics/a.py": MOST_PRODUCT_LINES - sum(small.values()) + 1}
    assert too_large(one_more) == [f"{MOST_PRODUCT_LINES + 1} lines of product code, at most {MOST_PRODUCT_LINES}"]
    assert too_large({**small, "a.py": 2_000, "training/a.py": 3_000}) == ["training/: 3000 lines, at most 2999"]
    assert too_large({"data/a.py": 31, "a.py": 29, "models/a.py": 20, "cli/a.py": 20}) == [
        "data/: 31 of 100 lines, at most 30%"
    ]


def test_an_unwelcome_file_is_found():
    assert len(unwelcome({"docs/a.mp4": 10, "data/big.png": 4_000_000, "models/utils.py": 1, "w.pt": 1})) == 4
    assert unwelcome({"checkpoints/a.safetensors": 20_000_000, "outputs/sample.mp4": 2_000_000}) == []
    assert len(unwelcome({"checkpoints/a.safetensors": 20_000_000, "checkpoints/b.safetensors": 13_000_000})) == 1
