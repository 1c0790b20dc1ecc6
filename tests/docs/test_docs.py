"""What the docs, the README and the recipes name is there: modules, files, links, options; and their code compiles."""

import importlib
import re
import subprocess
import sys

import pages
import pytest

pytestmark = pytest.mark.one_lane
PAGE = pytest.mark.parametrize("page", pages.PAGES, ids=pages.label)
PYPROJECT = (pages.ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [*pages.PAGES, *pages.RECIPES, *pages.SCRIPTS], ids=pages.label)
def test_modules_exist(page):
    names = pages.dotted_names(page.read_text(encoding="utf-8"))
    assert [name for name in sorted(names) if not pages.exists(name)] == []


@pytest.mark.parametrize("page", [*pages.PAGES, *pages.RECIPES], ids=pages.label)
def test_files_exist(page):
    named = pages.files(page.read_text(encoding="utf-8"))
    assert [name for name in sorted(named) if not (pages.ROOT / name).exists()] == []


@PAGE
def test_links_lead_somewhere(page):
    for target in sorted(pages.links(page)):
        file, anchor = pages.resolve(page, target)
        assert file.exists(), target
        assert not anchor or anchor in pages.anchors(file), target


@PAGE
def test_python_compiles(page):
    """And what it imports from the package is there."""
    for block in pages.blocks(page.read_text(encoding="utf-8"), "python"):
        compile(block, str(page), "exec")
        assert [name for name in pages.imported(block) if not pages.exists(name)] == []


@pytest.fixture(scope="module")
def options_of():
    """command -> its options, as its `--help` prints them."""
    module, function = re.search(r'^hf-elastic = "([\w.]+):(\w+)"', PYPROJECT, re.MULTILINE).groups()
    main = getattr(importlib.import_module(module), function)
    found = {}

    def options(command: str, capsys) -> set[str]:
        if command not in found:
            try:
                status = main([*command.split(), "--help"])
            except SystemExit as done:
                status = done.code
            assert not status, f"hf-elastic {command} is no command"
            found[command] = set(re.findall(r"--\w+", capsys.readouterr().out))
        return found[command]

    return options


@pytest.mark.parametrize("page", [*pages.PAGES, *pages.RECIPES], ids=pages.label)
def test_options_exist(page, options_of, capsys):
    for command, named in pages.commands(page.read_text(encoding="utf-8")):
        assert named - {"--help"} <= options_of(command, capsys), command


def test_readme():
    """It fits on a page, and its badges say what pyproject.toml says."""
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert not [target for target in pages.LINK.findall(text) if not target.startswith("https://")], "PyPI has no relative links"
    low, high = re.search(r'requires-python = ">=([\d.]+),<3\.(\d+)"', PYPROJECT).groups()
    assert f"Python {low} to 3.{int(high) - 1}" in text
    low, high = re.search(r'"transformers>=([\d.]+),<(\d+)"', PYPROJECT).groups()
    assert f"transformers {low} to {int(high) - 1}.x" in text
    assert re.search(r'^license = "Apache-2.0"', PYPROJECT, re.MULTILINE) and "licence: Apache-2.0" in text


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """Strictly, and a page asks nobody else for anything."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=pages.ROOT, check=True)
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > 25
    for page in built:
        tags = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert [tag for tag in tags if re.search("(?:src|href)=[\"']?https?:", tag) and "canonical" not in tag] == [], page.name
