"""The code of an architecture as transformers takes it with `trust_remote_code`: files side by side that import one another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec, resolve_name
from pathlib import Path

from ..utils.files import write_atomically

RELATIVE = re.compile(r"^([ \t]*from[ \t]+)(\.+[\w.]*)([ \t]+import\b)", re.MULTILINE)


def write_code(folder: Path, package: str, classes: Iterable[str]) -> None:
    """Write the modules of some classes, and all of hf_elastic that they import, into a folder.

    Args:
        folder: there already.
        package: where the modules are.
        classes: `module.Class`, as Auto classes look for theirs.
    """
    roots = dict.fromkeys(f"{package}.{name.partition('.')[0]}" for name in classes)
    for name, text in code_of(roots).items():
        write_atomically(folder / name, text)


def code_of(roots: Iterable[str]) -> dict[str, str]:
    """File name -> text of modules and of all that they import relatively. A package becomes a file of its name, and brings along
    all of its modules, since what is imported by its name at run time is found nowhere.

    Raises:
        ValueError: two modules have the same last name.
    """
    roots = list(roots)
    files: dict[str, str] = {}
    waiting, seen = list(roots), set(roots)
    while waiting:
        module = waiting.pop()
        text, imported = _beside(module)
        if (name := _last(module)) in files:
            raise ValueError(f"{module}: there is another module of this last name")
        files[name] = text
        new = [one for one in dict.fromkeys(imported) if one not in seen]
        waiting += new
        seen.update(new)
    for root in map(_last, roots):  # transformers 4.57 copies what the first file imports, and not what that imports
        lines = "".join(f"    from .{name} import *\n" for name in sorted(files) if name != root)
        files[root] += f"\n\nif False:  # transformers copies the files that are named here\n{lines}"
    return {f"{name}.py": text for name, text in files.items()}


def _beside(module: str) -> tuple[str, list[str]]:
    """The text of a module among files side by side, and the modules that it imports."""
    path = Path(find_spec(module).origin)
    is_package = path.name == "__init__.py"
    around = module if is_package else module.rpartition(".")[0]
    imported = [f"{module}.{one.stem}" for one in sorted(path.parent.glob("*.py")) if one != path] if is_package else []

    def flat(match: re.Match) -> str:
        imported.append(resolve_name(match[2], around))
        return f"{match[1]}.{_last(imported[-1])}{match[3]}"

    return RELATIVE.sub(flat, path.read_text(encoding="utf-8")), imported


def _last(module: str) -> str:
    return module.rpartition(".")[2]
