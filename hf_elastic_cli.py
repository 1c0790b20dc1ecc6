"""`hf-elastic`: what it can say at once, before PyTorch and transformers are imported, which takes seconds.

That is usage, version, unknown commands, what is wrong with a recipe, and the help of a command. The options of a command are
the fields of its dataclasses, and they are read off the source here, which is not run.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

HELP = {"-h", "--help"}
# What Trainer's own `--debug` takes; without one of them `--debug` is ours.
TRAINER_DEBUG = ("underflow_overflow", "tpu_metrics_debug")
RESUME = "The same command goes on where it was."
# The tag of truth values in YAML.
_TRUTH = "tag:yaml.org,2002:bool"
# transformers imports its names when they are used; where it has those that our options come from.
SOURCES = {"transformers": "transformers.training_args"}


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        summary: for the usage.
        config: `module:class` in hf_elastic of the options that it shares with Python; those of its own are in its file, and
            there may be `DEFAULTS` that differ from those of the dataclasses.
        resume: what to do after an interruption.
        note: for the help page.
        first: the option whose value may come first without its name, unless it is a recipe.
    """

    summary: str
    config: str = ""
    resume: str = ""
    note: str = ""
    first: str = ""


COMMANDS = {
    "quickstart": Command("convert, train, search and export a real model, offline, in minutes"),
    "convert": Command("make a checkpoint elastic", "cli.convert:ConvertConfig"),
    "train": Command(
        "train the sizes of an elastic model together",
        "training.arguments:ElasticTrainingArguments",
        resume="Once there is a checkpoint (--save_steps), the same command with --resume_from_checkpoint true goes on.",
    ),
    "measure": Command("measure latency and peak memory of sizes on this machine", "measure.config:MeasureConfig"),
    "search": Command("find the best sizes on this machine", "search.config:SearchConfig", RESUME),
    "evaluate": Command(
        "score sizes on zero-shot tasks, next to parameters and latency", "evaluation.config:EvaluationConfig", RESUME
    ),
    "export": Command("write a size as a standard checkpoint, ONNX or another format", "export.config:ExportConfig"),
    "elm": Command(
        "run the stages of a recipe: a supernet, its training, a search, the winner",
        resume=RESUME,
        note="Stages that are done are not repeated, and the one that was interrupted goes on.",
    ),
    "simulate": Command("what a server would do with a load: policies that choose the size, and each size alone"),
    "push": Command(
        "upload an elastic checkpoint and sizes of it to the Hugging Face Hub",
        "hub.config:PushConfig",
        RESUME,
        "Each gets a model card. The token is that of HF_TOKEN or of `hf auth login`. What has arrived is not sent again.",
    ),
    "retrieve index": Command(
        "encode a collection of documents and write an index that knows its model",
        "retrieval.index.config:IndexConfig",
        RESUME,
        "Under `accelerate launch -m hf_elastic.cli.main retrieve index` every process encodes a part.",
    ),
    "retrieve query": Command("search an index"),
    "retrieve align": Command(
        "teach smaller sizes to answer queries from the index of the full one, from unlabelled texts",
        "retrieval.align_config:AlignConfig",
        RESUME,
    ),
    "retrieve evaluate": Command("measure the quality of sizes on judged queries, with a test of the differences"),
    "retrieve search": Command("find the best sizes of two stages, and number of candidates, for a latency on this machine"),
    "serve": Command(
        "answer requests over HTTP, from smaller sizes when many wait",
        "serving.config:SchedulerConfig",
        note="`hf-elastic serve MODEL` is short for --model MODEL. SIGTERM and Ctrl-C end it when what was accepted is answered.",
        first="model",
    ),
}


@dataclass(frozen=True)
class Option:
    """A field of a dataclass.

    Attributes:
        name: of the field.
        type: as it is written.
        module: where it is declared.
        default: the expression of its default, of what makes its default, or None.
        text: the expression of its help.
        is_factory: whether `default` makes the default.
    """

    name: str
    type: str
    module: str
    default: ast.expr | None
    text: ast.expr | None
    is_factory: bool = False

    @property
    def value(self) -> object:
        """Its default, MISSING where it is required; None where only a run of transformers knows it."""
        if self.default is None:
            return MISSING
        value = evaluate(self.module, self.default)
        return value() if self.is_factory and value is not None else value

    @property
    def help(self) -> str:
        """What its dataclass says about it."""
        return "" if self.text is None else evaluate(self.module, self.text) or ""

    def lines(self, default: object, width: int) -> list[str]:
        """Its part of a help page."""
        help, note = self.help, ""
        if default is MISSING:
            note = " (required)"
        elif default not in (None, "", [], {}) and "default" not in help.lower():
            text = str(default).lower() if isinstance(default, bool) else default
            note = f" (default: {' '.join(map(str, text)) if isinstance(text, list) else text})"
        kind = self.type.replace("Optional[", "").partition(" | ")[0].rstrip("]")
        takes = {"bool": "true|false", "int": "NUMBER", "float": "NUMBER"}.get(kind, "TEXT")
        takes = "TEXT [TEXT ...]" if kind.startswith("list") else takes
        return [
            f"  --{self.name} {takes}",
            *(f"          {line}" for line in textwrap.wrap(" ".join(help.split()) + note, width - 10)),
        ]


@dataclass(frozen=True)
class Group:
    """The options that one dataclass declares itself; those that it overrides are left out of the one it inherits from."""

    title: str
    options: dict[str, Option]


@lru_cache
def _names(module: str) -> dict[str, ast.AST | tuple[str, str]]:
    """What a module's source defines at its top level: an expression, a class, or where a name is imported from."""
    package, *rest = module.split(".")
    found = find_spec(package)
    if found is None or found.origin is None:
        raise KeyError(f"{package} is not installed")
    path = Path(found.origin).parent.joinpath(*rest)
    is_package = path.is_dir()
    source = path / "__init__.py" if is_package else path.with_name(f"{path.name}.py")
    names: dict[str, ast.AST | tuple[str, str]] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names |= {alias.asname or alias.name: (SOURCES.get(origin, origin), alias.name) for alias in node.names}
    return names


def _find(module: str, name: str) -> tuple[str, ast.AST]:
    """The module that defines a name which `module` has, and the definition.

    Raises:
        KeyError: it is not found at the top level of any.
    """
    found = _names(module)[name]
    return _find(*found) if isinstance(found, tuple) else (module, found)


@lru_cache
def value_of(module: str, name: str) -> object:
    """The value of a constant; of a class something that makes objects with its class attributes; None of a function."""
    module, node = _find(module, name)
    if isinstance(node, ast.FunctionDef):
        return None
    if not isinstance(node, ast.ClassDef):
        return evaluate(module, node)
    attributes: dict[str, object] = {}
    for base in reversed(_bases(module, node)):
        attributes |= vars(value_of(*base)())
    for statement in node.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and isinstance(getattr(statement, "value", None), ast.Constant):
            attributes[target.id] = statement.value.value
    return lambda *args, **kwargs: SimpleNamespace(**attributes)


def evaluate(module: str, node: ast.expr) -> object:
    """The value of an expression of constants in a module's source; None where it takes more than them."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} & _names(module).keys()
    try:
        scope = {name: value_of(module, name) for name in names}
        return eval(compile(ast.Expression(node), f"<{module}>", "eval"), scope)
    except Exception:  # whatever the expression raises
        return None


def _bases(module: str, node: ast.ClassDef) -> list[tuple[str, str]]:
    """Module and name of the bases of a class that are classes of ours or of transformers' options."""
    found = {base.id: _names(module).get(base.id) for base in node.bases if isinstance(base, ast.Name)}
    foreign = [name for name, one in found.items() if one is None or (isinstance(one, tuple) and one[0] == "abc")]
    return [(module, name) for name in found if name not in foreign]


@lru_cache
def groups_of(module: str, name: str) -> tuple[Group, ...]:
    """The options of a dataclass: its own, then those that it inherits."""
    module, node = _find(module, name)
    options = {option.name: option for option in _options(module, node)}
    title = (ast.get_docstring(node) or node.name).splitlines()[0]
    inherited = [group for base in _bases(module, node) for group in groups_of(*base)]
    rest = [Group(one.title, {key: option for key, option in one.options.items() if key not in options}) for one in inherited]
    return (Group("Of transformers' Trainer:" if module.startswith("transformers") else title, options), *rest)


def _options(module: str, node: ast.ClassDef) -> Iterator[Option]:
    for statement in node.body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        kind, value = ast.unparse(statement.annotation).strip("'\""), statement.value
        is_field = isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "dataclasses.field")
        given = {keyword.arg: keyword.value for keyword in value.keywords} if is_field else {"default": value}
        if kind.startswith("ClassVar") or ("init" in given and not ast.literal_eval(given["init"])):
            continue
        default = given.get("default", given.get("default_factory"))
        metadata = given.get("metadata")
        texts = dict(zip(map(ast.literal_eval, metadata.keys), metadata.values)) if isinstance(metadata, ast.Dict) else {}
        yield Option(statement.target.id, kind, module, default, texts.get("help"), "default_factory" in given)


def module_of(command: str) -> str:
    """The module of a command in `hf_elastic.cli`; the words of its name are joined by `_`."""
    return command.replace(" ", "_")


def groups(command: str) -> list[Group]:
    """The options of a command, dataclass by dataclass."""
    own = f"cli.{module_of(command)}:{command.title().replace(' ', '')}Arguments"
    places = [own, *filter(None, [COMMANDS[command].config])]
    return [group for place in places for group in groups_of(*f"hf_elastic.{place}".split(":")) if group.options]


def defaults_of(command: str) -> dict[str, object]:
    """Defaults of a command that differ from those of its dataclasses."""
    module = f"hf_elastic.cli.{module_of(command)}"
    return value_of(module, "DEFAULTS") if "DEFAULTS" in _names(module) else {}


def usage(names: Iterable[str] = COMMANDS) -> str:
    """Commands, by default all."""
    lines = [f"  {name:<17} {COMMANDS[name].summary}" for name in names]
    after = "COMMAND --help explains its options. With --debug an error shows where it comes from."
    return "\n".join(["usage: hf-elastic COMMAND [recipe.yaml] [--key value ...]", "", *lines, "", after])


def help_of(command: str) -> str:
    """The help page of a command: required options first in their group."""
    width = min(shutil.get_terminal_size().columns, 120)
    about, changed = COMMANDS[command], defaults_of(command)
    text = f"{about.summary[0].upper()}{about.summary[1:]}. A recipe has the same keys; the command line wins. {about.note}"
    lines = [f"usage: hf-elastic {command} [recipe.yaml] [--key value ...]", "", *textwrap.wrap(text, width)]
    for group in groups(command):
        lines += ["", group.title]
        for option in sorted(group.options.values(), key=lambda option: option.default is not None):
            lines += option.lines(changed.get(option.name, option.value), width)
    return "\n".join(lines)


@lru_cache(maxsize=1)
def yaml_loader() -> type:
    """PyYAML's safe loader with the truth values and numbers of YAML 1.2: `no` is Norwegian, `1e-4` a number."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in known if tag != _TRUTH]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    # YAML 1.1 takes a number for text that has an exponent and no dot.
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile("^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))
    Loader.add_implicit_resolver(_TRUTH, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    return Loader


def read_yaml(path: str, *, as_text: bool = False) -> dict:
    """The mapping in a YAML file, read by `yaml_loader`.

    Args:
        path: the file.
        as_text: values as they would be on the command line: what stands there, lists of that, mappings and all else as JSON;
            None stays.

    Raises:
        ValueError: it is not YAML, or not a mapping, or has a key twice.
        OSError: there is no such file.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        recipe, root = (read(text, yaml_loader()) for read in (yaml.load, yaml.compose))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: no UTF-8, or a date that is none
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must be a mapping of options")
    keys = [key.value for key, _ in root.value]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{path}: {twice[0]!r} is there twice")
    nodes = dict(zip(keys, (node for _, node in root.value)))
    return {key: _text(nodes.get(key), value) for key, value in recipe.items()} if as_text else recipe


def _text(node, value: object) -> object:
    """What a value of a recipe would be on the command line."""
    if value is None:
        return None
    inner = getattr(node, "value", None)
    if isinstance(inner, str):
        return inner
    if isinstance(value, list) and isinstance(inner, list):
        return ["null" if given is None else _text(one, given) for one, given in zip(inner, value)]
    return json.dumps(value, default=str)


def _check_recipe(command: str, path: str) -> None:
    """Raise ValueError or OSError unless a recipe can be read and has only keys that the command knows."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no recipe {path!r}; give a YAML file, or options as --key value")
    known = {name for group in groups(command) for name in group.options}
    for key in read_yaml(path):
        if key not in known:
            raise ValueError(f"{path}: unknown option {key!r}; see hf-elastic {command} --help")


def fail(message: str) -> int:
    """Print a one-line error; return the exit status of bad input."""
    print(f"hf-elastic: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def show(page: str) -> None:
    """Print a page; a reader such as `head` may leave before its end."""
    try:
        print(page, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_our_debug(argv: list[str], position: int) -> bool:
    return argv[position] == "--debug" and argv[position + 1 : position + 2] not in ([value] for value in TRAINER_DEBUG)


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0 for success, 2 for bad input, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = [text for position, text in enumerate(argv) if not _is_our_debug(argv, position)]
    if not arguments or arguments[0] in HELP:
        show(usage())
        return 0
    family = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if family and (len(arguments) == 1 or arguments[1] in HELP):
        show(usage(family))
        return 0
    words = 2 if family else 1
    command, rest = " ".join(arguments[:words]), arguments[words:]
    if command == "--version":
        print(f"hf-elastic {value_of('hf_elastic', '__version__')}")
        return 0
    if command not in COMMANDS:
        return fail(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
    if HELP & set(rest):
        show(help_of(command))
        return 0
    if COMMANDS[command].first and rest and not rest[0].startswith("-") and not rest[0].endswith((".yaml", ".yml")):
        rest = [f"--{COMMANDS[command].first}={rest[0]}", *rest[1:]]
    if rest and not rest[0].startswith("-"):
        try:
            _check_recipe(command, rest[0])
        except (ValueError, OSError) as error:
            return fail(str(error))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if command in ("quickstart", "serve") and sys.platform == "linux":
        # Read when torch is loaded. Threads that wait spin by default: on a busy machine, a step then took four times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from hf_elastic.cli.main import run

    return run(command, rest, debug=len(arguments) < len(argv))
