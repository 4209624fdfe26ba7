"""What the documents say must be so."""

import ast
import json
import re
import subprocess
from pathlib import Path
from statistics import fmean, median

import pytest
import yaml

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
        if not name.startswith(("scu/base/", "bench/results/", "tests/traces/"))
        and Path(name).name != "__init__.py"
    }
    assert sorted(listed) == sorted(own - {".gitignore"})


def test_no_placeholder_is_left():
    assert "@@" not in README


def test_the_figures_of_the_demo_are_those_of_the_recorded_sweep():
    results = json.loads((ROOT / "bench/results/demo_sweep.json").read_text(encoding="utf-8"))
    last = {run["name"]: run["held_out_bpt_last"] for run in results["runs"]}
    fixed = [bpt for name, bpt in last.items() if name.startswith("fixed")]
    demo = yaml.safe_load((ROOT / "configs/demo.yaml").read_text(encoding="utf-8"))
    assert f"ends at {last['fixed-0']:.2f} bits per token" in README
    assert f"fixed lambdas ends at {min(fixed):.2f}" in README
    adapter = f"{last['s-' + format(demo['scu']['target_s'], 'g')]:.4f}"
    assert re.search(rf"bits per token . +[\d.]+ . +{adapter} ", README)


def test_the_figures_of_stopping_are_those_of_the_recorded_runs():
    results = json.loads((ROOT / "bench/results/stopping.json").read_text(encoding="utf-8"))
    rows, controls = results["positive"], results["controls"]
    ended = [r for r in rows if r["stopped"] and r["stopped"]["reason"] == "equilibrium"]
    saved = median(r["saved"] for r in ended)
    regret = fmean(r["regret"] for r in ended)
    words = " ".join(README.split())
    assert f"of {len(rows)} runs {len(ended)} ended themselves" in words
    assert f"{saved:.0%} of their steps saved".replace("%", " %") in words
    assert f"{100 * regret:.2f} % above the best checkpoint in hindsight" in words
    false = sum(row["equilibrium"] for row in controls)
    assert f"of {len(controls)} runs with something wrong {false or 'none'} was called" in words


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
