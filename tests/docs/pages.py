"""What the written pages name: files, modules, links, commands and code."""

import ast
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

from hf_elastic_cli import COMMANDS

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/hf-elastic/hf_elastic"
RAW = "https://raw.githubusercontent.com/hf-elastic/hf_elastic/main/"
PREFIXES = (f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/", RAW)
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("README.md")],
    key=lambda path: path.relative_to(ROOT),
)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SCRIPTS = sorted((ROOT / "recipes").rglob("*.py"))

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
DOTTED = re.compile(r"(?<![\w./-])hf_elastic(?:\.\w+)+")
FILE = re.compile(r"(?<![\w./-])(?:hf_elastic|tests|recipes|docs|model_cards)/[\w./-]*\w")
PLACEHOLDER = re.compile(r"[A-Z]{3,}")  # recipes/lts/BACKBONE/train.yaml; README is none


def label(path: Path) -> str:
    """For the names of tests."""
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of some languages."""
    return [body for language, body in FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", text)


def dotted_names(text: str) -> set[str]:
    """Modules and what is in them, such as `hf_elastic.data.minilm`; a file such as `hf_elastic.egg` is none of ours."""
    return set(DOTTED.findall(text))


def files(text: str) -> set[str]:
    """Paths of the repository, without those that have a placeholder or are written by a run."""
    found = {path for path in FILE.findall(text) if not PLACEHOLDER.search(path.replace("README", ""))}
    return {path for path in found if not re.search(re.escape(path) + r"[*{]", text)}


def imported(block: str) -> list[str]:
    """What a Python block imports from the package, as dotted names."""
    found = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom) and not node.level]
    ours = [node for node in found if node.module.partition(".")[0] == "hf_elastic"]
    return [f"{node.module}.{alias.name}" for node in ours for alias in node.names]


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the package, or something that one holds."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            rest = parts[count:]
            return not rest or (len(rest) == 1 and rest[0] in top_level(file)) or _has(".".join(parts[:count]), rest)
    return False


@cache
def top_level(file: Path) -> set[str]:
    """Names that a module defines or imports, read without running it: half of them need packages that may be missing."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
            if "__all__" in names and isinstance(node.value, ast.List):  # names that are imported when they are first used
                names |= {item.value for item in node.value.elts if isinstance(item, ast.Constant)}
    return names


def _has(module: str, attributes: list[str]) -> bool:
    found = importlib.import_module(module)
    for name in attributes:
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def links(page: Path) -> set[str]:
    """Targets of a page's links that are within the repository: relative ones, and absolute ones of ours."""
    targets = set(LINK.findall(prose(page.read_text(encoding="utf-8"))))
    outside = re.compile(r"(https?|mailto):")
    return {target for target in targets if target.startswith(PREFIXES) or not outside.match(target)}


def resolve(page: Path, target: str) -> tuple[Path, str]:
    """The file and the anchor that a link of a page leads to."""
    path, _, anchor = target.partition("#")
    for prefix in PREFIXES:
        if path.startswith(prefix):
            return ROOT / path.removeprefix(prefix), anchor
    return (page.parent / path if path else page).resolve(), anchor


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def commands(text: str) -> list[tuple[str, set[str]]]:
    """Calls of `hf-elastic` in a text: the command and its options."""
    lines = [line.lstrip("# ") for line in re.sub(r"\\\n\s*(#\s*)?", " ", text).splitlines()]
    lines += [code.replace("\n", " ") for code in re.findall(r"`(hf-elastic [^`]+)`", prose(text))]
    found = []
    for place, line in enumerate(lines):
        if line.startswith("hf-elastic "):
            words = _words(lines[place:])
            options = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
            if len(words) > 1 and words[1].islower():
                two = " ".join(words[1:3])
                found.append((two if two in COMMANDS else words[1], options))
    return found


def _words(lines: list[str]) -> list[str]:
    """The words of a command that starts with the first line: a quoted mapping may go on in the next ones."""
    for count in range(1, len(lines) + 1):
        try:
            return shlex.split(" ".join(lines[:count]), comments=True)
        except ValueError:
            continue
    raise ValueError(f"a quote is not closed: {lines[0]}")
