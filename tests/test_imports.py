"""Imports point one way only: scenarios -> clients, server -> privacy -> fedkd."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
BELOW = {
    "fedkd": set[str](),
    "privacy": {"fedkd"},
    "clients": {"privacy", "fedkd"},
    "server": {"privacy", "fedkd"},
    "scenarios": {"clients", "server", "privacy", "fedkd"},
}
NEVER = {"fedkd": {"flwr", "ray", "opacus"}}
DOOR = Path("fedkd/__init__.py")
MODULES = sorted(path for room in BELOW for path in (HOUSE / room).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import below `tree`, `import_module("x")` included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name.split(".")[0]) for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module.split(".")[0]
            case ast.Call(func=func, args=[ast.Constant(value=str(module)), *_]) if (
                "import" in ast.unparse(func)
            ):
                yield node.lineno, module.split(".")[0]


def lazy(tree: ast.AST) -> set[tuple[int, str]]:
    """The imports that do not run when the module is imported."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return {found for block in blocks for found in imported(block)}


def wrong(source: str, path: Path) -> set[tuple[int, str]]:
    """(line, package) of the imports that the module at `path` must not have."""
    tree, room = ast.parse(source), path.parts[0]
    barred = (BELOW.keys() - BELOW[room] - {room}) | NEVER.get(room, set())
    found = {(line, package) for line, package in imported(tree) if package in barred}
    if path == DOOR:
        found -= {(line, package) for line, package in lazy(tree) if package == "scenarios"}
    return found


def test_every_module_looks_down_only() -> None:
    assert len(MODULES) > 40
    found = {
        str(path): wrong(path.read_text(encoding="utf-8"), path.relative_to(HOUSE))
        for path in MODULES
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fedkd/training.py", "import flwr"),
        ("fedkd/training.py", "import numpy as np, ray.util as ray_util"),
        ("fedkd/data/x.py", "def f():\n    from opacus.accountants import RDPAccountant"),
        ("fedkd/data/x.py", "import importlib\nimportlib.import_module('flwr.app')"),
        ("fedkd/data/x.py", "__import__('ray')"),
        ("fedkd/config.py", "def f():\n    from scenarios.simulate import simulate"),
        ("fedkd/config.py", "import privacy.ledger"),
        ("fedkd/__init__.py", "from scenarios.simulate import simulate"),
        ("fedkd/__init__.py", "def f():\n    import flwr"),
        ("fedkd/__init__.py", "def f():\n    import server.app"),
        ("privacy/ledger.py", "from clients.store import MemoryStore"),
        ("privacy/ledger.py", "from scenarios import quiet"),
        ("clients/app.py", "class A:\n    def f(self):\n        import server.events"),
        ("server/app.py", "if True:\n    from clients import store"),
        ("server/app.py", "try:\n    import scenarios\nexcept ImportError:\n    pass"),
    ],
)
def test_the_check_sees_an_import_that_looks_up(path: str, source: str) -> None:
    assert len(wrong(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fedkd/__init__.py", "if TYPE_CHECKING:\n    from scenarios.simulate import simulate"),
        ("fedkd/__init__.py", "def __getattr__(name):\n    import scenarios.simulate"),
        ("fedkd/config.py", "from . import rng\nimport flwr_datasets, torch, fedkd.rng"),
        ("clients/app.py", "import flwr, privacy, fedkd, clients.steps"),
        ("scenarios/cli.py", "import ray, clients, server, privacy, fedkd"),
    ],
)
def test_the_check_lets_the_others_through(path: str, source: str) -> None:
    assert wrong(source, Path(path)) == set()


@pytest.mark.parametrize(
    ("rooms", "allowed"), [(("fedkd",), set()), (("fedkd", "privacy"), {"privacy", "opacus"})]
)
def test_nothing_heavy_comes_in(rooms: tuple[str, ...], allowed: set[str]) -> None:
    """What the source does not show: what is loaded once every module of a room is."""
    names = [
        ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.relative_to(HOUSE).parts[0] in rooms
    ]
    barred = sorted((BELOW.keys() - {"fedkd"} | NEVER["fedkd"]) - allowed)
    program = f"""
import importlib, sys
for name in {names}: importlib.import_module(name)
print(*[name for name in {barred} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
