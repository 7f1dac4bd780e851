"""Imports point one way: every package imports only packages below it, and no modules import one another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "psann_jax"

# From the top to the bottom; see docs/architecture.md. Packages of one row must not import one another in a circle.
ROWS = (
    ("cli", "api"),
    ("experiments", "selftest", "bench", "serve"),
    ("plots", "runs", "convert"),
    ("tasks",),
    ("train", "sample", "data"),
    ("models",),
    ("nn",),
    ("ops",),
    ("config", "engines"),
    ("utils",),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
# Modules outside the packages, which import the top row: the commands and the public names.
ENTRY_POINTS = {"psann_jax", "psann_jax.main", "psann_jax.__main__"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(nodes):
    """Modules of this package that import statements name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name in MODULES}


def arrows(only_at_import_time):
    """Module -> modules that it imports."""
    graph = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        graph[name] = imported(tree.body if only_at_import_time else ast.walk(tree)) - {name}
    return graph


def package(module):
    return module.split(".")[1] if "." in module else module


def package_arrows():
    pairs = {(package(a), package(b)) for a, targets in arrows(False).items() if a not in ENTRY_POINTS for b in targets}
    return {(a, b) for a, b in pairs if a != b}


def circle(graph):
    """Names that import one another in a circle, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        path.append(name)
        for target in sorted(graph.get(name, ())):
            found = visit(target)
            if found:
                return found
        done.add(path.pop())
        return None

    for name in sorted(graph):
        found = visit(name)
        if found:
            return found
    return None


def test_every_module_is_in_a_package_of_the_rule():
    assert {package(name) for name in MODULES if name not in ENTRY_POINTS} == set(RANK)


def test_no_package_imports_one_above_it():
    wrong = sorted((a, b) for a, b in package_arrows() if b not in RANK or RANK[a] > RANK[b])
    assert not wrong, f"imports against the rule: {wrong}"


def test_no_packages_import_one_another():
    graph = {}
    for a, b in package_arrows():
        graph.setdefault(a, set()).add(b)
    assert circle(graph) is None


def test_no_modules_import_one_another():
    assert circle(arrows(only_at_import_time=True)) is None


@pytest.mark.parametrize(
    ("graph", "expected"),
    [({"a": {"b"}, "b": {"c"}, "c": set()}, None), ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c"])],
)
def test_a_circle_is_found(graph, expected):
    assert circle(graph) == expected


def test_the_trainer_imports_no_measurements():
    """Not even through others."""
    graph, reached, todo = arrows(False), set(), ["psann_jax.train.loop", "psann_jax.runs.training"]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += graph[name]
    assert not {name for name in reached if package(name) in ("bench", "experiments", "selftest")}


def test_no_file_is_too_long():
    python = [path for folder in ("psann_jax", "tests", "configs") for path in (ROOT / folder).rglob("*.py")]
    assert not {str(path): n for path in python if (n := len(path.read_text().splitlines())) > 400}
