"""Who may import whom (docs/ARCHITECTURE.md): checked on the source, not at run time."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "mlx", "mlx_lm"}
CORE = {"errors", "control", "metrics", "trace", "corpus"}
JUDGING = {"window", "plant", "verdicts", "monitor", "pulse", "ending"}
FILES = sorted([*ROOT.glob("scu/**/*.py"), *ROOT.glob("scu_api/**/*.py")])


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_frameworks_are_imported_in_engines_only(path):
    roots = {module.split(".")[0] for module in imported_modules(path)}
    if path.parent.name != "engines":
        assert not roots & FRAMEWORKS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_does_not_know_its_doors(path):
    if path.is_relative_to(ROOT / "scu"):
        assert not {m for m in imported_modules(path) if m.split(".")[0] == "scu_api"}


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_is_standard_library_only(name):
    for module in imported_modules(ROOT / "scu" / f"{name}.py"):
        parts = module.split(".")
        if parts[0] == "scu":
            assert parts[1] in CORE
        else:
            assert parts[0] in sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(JUDGING))
def test_verdicts_need_the_core_and_statistics_only(name):
    for module in imported_modules(ROOT / "scu" / f"{name}.py"):
        parts = module.split(".")
        if parts[0] == "scu":
            assert parts[1] in CORE | JUDGING
        else:
            assert parts[0] in sys.stdlib_module_names | {"numpy", "scipy"}
