"""What the documents say must be so."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from scu.config_file import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_file_tree_names_every_file_once():
    tree = README.split("## Files", 1)[1]
    listed = re.findall(r"^ *([\w./-]+\.\w+|Makefile|LICENSE|\.ci/run) {2,}\S", tree, re.MULTILINE)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    own = {
        name
        for name in tracked
        if not name.startswith(("scu/base/", "bench/results/")) and Path(name).name != "__init__.py"
    }
    assert sorted(listed) == sorted(own - {".gitignore"})


def test_python_blocks_parse_and_import_what_exists():
    assert blocks("python")
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scu"):
                module = __import__(node.module, fromlist=["x"])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_yaml_blocks_load(tmp_path):
    assert blocks("yaml")
    for block in blocks("yaml"):
        path = tmp_path / "run.yaml"
        path.write_text(block)
        load(path)


@pytest.mark.parametrize("name", ["README.md", "docs/ARCHITECTURE.md", "docs/LOG.md"])
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
