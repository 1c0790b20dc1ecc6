"""Every recipe, run as its first line says: the command understands it, whatever it would do then."""

import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "launch")


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_recipe_is_understood(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = path.read_text().splitlines()[0].partition("   (")[0]
    before, recipe, options = line.partition(f" {path}")
    sharp, program, *words = shlex.split(before)
    assert (sharp, program, recipe.strip()) == ("#", "hf-elastic", str(path))
    module = import_module(f"hf_elastic.cli.{'_'.join(words)}")
    runs = []
    monkeypatch.setattr(module, "run", lambda *arguments: runs.append(arguments) or [])
    module.main([str(path), *shlex.split(options)])
    assert len(runs) == 1
