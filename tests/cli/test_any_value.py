"""Any value for any option, in a recipe or on the command line, is taken or refused in one line."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hf_elastic_cli
from hf_elastic.cli.main import main
from hf_elastic.utils.options import read_mapping

pytestmark = pytest.mark.one_lane
COMMANDS = {
    "convert": {"model": "nowhere/stock", "output_dir": "out"},
    "train": {"model": "nowhere/elastic", "output_dir": "out", "use_cpu": True},
    "measure": {"model": "nowhere/elastic", "output": "out.json"},
    "search": {"model": "nowhere/elastic", "output_dir": "out"},
    "evaluate": {"model": "nowhere/elastic", "output_dir": "out", "tasks": ["arc_easy"]},
    "export": {"model": "nowhere/elastic", "output_dir": "out"},
    "push": {"model": "nowhere/elastic", "repo_id": "me/model"},
}
# Trainer's options change the state of the process (seeds, devices, loggers); they are transformers' own to check.
OPTIONS = {
    command: sorted(
        name
        for group in hf_elastic_cli.groups(command)
        for name, one in group.options.items()
        if "transformers" not in one.module
    )
    for command in COMMANDS
}
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20) | st.sampled_from(
    ["no", "null", "~", "-", "--model", "{", "[]", "{}", "1e-3", "2026-02-30", "../out", "nan", "0x10", "true"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.dates()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)


@pytest.mark.parametrize("command", COMMANDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_in_a_recipe(command, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    option, value = data.draw(st.sampled_from(OPTIONS[command])), data.draw(VALUES)
    recipe = {**COMMANDS[command], option: value, "dry_run": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    check([command, "recipe.yaml"], tmp_path, capsys)


@pytest.mark.parametrize("command", COMMANDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_on_the_command_line(command, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--{option}={value}" for option, value in COMMANDS[command].items() if isinstance(value, str)]
    arguments += [
        f"--{data.draw(st.sampled_from(OPTIONS[command]))}",
        *data.draw(st.lists(TEXTS, max_size=3)),
        "--dry_run",
        "true",
    ]
    check([command, *arguments], tmp_path, capsys)


def check(arguments, folder, capsys) -> None:
    """Status 0 or 2, one line of error at most, nothing written."""
    before = sorted(path.name for path in folder.iterdir())
    try:
        status = main(arguments)
    except SystemExit as stop:  # of the parser
        status = stop.code
    said = capsys.readouterr().err.strip()
    assert status in (0, 2), said
    assert (status == 0) == (not said) and len(said.splitlines()) <= 1, said
    assert sorted(path.name for path in folder.iterdir()) == before


def test_mappings_mean_the_same_in_a_recipe_and_on_the_command_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text('limits: {accuracy: 1e-1, name: no}\ntexts: ["", no, null, 1]\n')
    recipe = hf_elastic_cli.read_yaml(str(tmp_path / "recipe.yaml"), as_text=True)
    assert read_mapping("limits", recipe["limits"]) == read_mapping("limits", "{accuracy: 1e-1, name: no}") == {
        "accuracy": 0.1, "name": "no"
    }  # fmt: skip
    assert recipe["texts"] == ["", "no", "null", "1"]
