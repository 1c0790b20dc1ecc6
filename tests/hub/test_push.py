"""`hf-elastic push`: layouts, cards, dry runs, and one line for what cannot be done."""

import json

import pytest
from hf_elastic_files import frontier_of
from hub_server import Fault
from huggingface_hub import ModelCard, constants

from hf_elastic import export_subnet
from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError
from hf_elastic.hub.cards import MARKER
from hf_elastic.hub.push import push_folder, push_model


def push(checkpoint, *options) -> int:
    return main(["push", "--model", str(checkpoint), "--repo_id", "user/model", *map(str, options)])


def refused(capsys, *arguments) -> str:
    assert main(["push", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    *progress, error = printed.err.splitlines()  # bars of uploads that went well until then
    assert error.startswith("hf-elastic: error: ")
    assert not [line for line in progress if "hf-elastic: error" in line or "Traceback" in line]
    assert "hf_right" not in printed.out + printed.err
    return error


def test_the_supernet(hub, checkpoint, capsys):
    assert push(checkpoint) == 0
    files = hub.files("user/model")
    assert {"README.md", "config.json", "model.safetensors", "modeling_elastic.py", "tokenizer.json", "metrics.json"} <= set(
        files
    )
    assert not {"training_args.bin", "checkpoint-3/optimizer.pt"} & set(files)
    assert set(json.loads(files["config.json"])["subnets"]) == {"small", "odd"}
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert "| `small` |" in files["README.md"].decode()
    printed = capsys.readouterr().out
    assert f"user/model main: {len(files)} files" in printed
    assert hub.repositories["user/model"].branches["main"].oid in printed


def test_a_model_without_a_folder(hub, model, tokenizer):
    [pushed] = push_model(model, "model", tokenizer=tokenizer)
    files = hub.files("user/model")
    assert pushed.sizes == {path: len(content) for path, content in files.items()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)


def test_a_model_without_a_tokenizer(hub, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    assert push(tmp_path / "model", "--subnets", "small") == 0
    assert "tokenizer.json" not in hub.files("user/model-small")


def test_layout_repos(hub, checkpoint):
    assert push(checkpoint, "--subnets", "small", "odd") == 0
    assert set(hub.repositories) == {"user/model", "user/model-small", "user/model-odd"}
    small, odd = hub.files("user/model-small"), hub.files("user/model-odd")
    assert json.loads(small["config.json"])["model_type"] == "bert"
    assert json.loads(small["parity.json"])["passed"]
    assert len(small["model.safetensors"]) < len(hub.files("user/model")["model.safetensors"])
    assert json.loads(odd["config.json"])["model_type"] == "elastic"
    for files in (small, odd):
        card = ModelCard(files["README.md"].decode())
        assert card.data.base_model == "user/model"
        assert "tokenizer.json" in files
    assert "[model-small](https://huggingface.co/user/model-small)" in hub.files("user/model")["README.md"].decode()


def test_layout_revisions(hub, checkpoint):
    assert push(checkpoint, "--subnets", "small", "--layout", "revisions") == 0
    assert set(hub.repositories) == {"user/model"}
    assert json.loads(hub.files("user/model")["config.json"])["model_type"] == "elastic"
    small = hub.files("user/model", "small")
    assert json.loads(small["config.json"])["model_type"] == "bert"
    assert "metrics.json" not in small  # a file of main
    assert 'from_pretrained("user/model", revision="small")' in small["README.md"].decode()


@pytest.mark.parametrize("supernet", [True, False])
def test_layout_subfolders(hub, checkpoint, supernet):
    assert push(checkpoint, "--subnets", "small", "--layout", "subfolders", "--supernet", supernet) == 0
    files = hub.files("user/model")
    assert len(hub.commits("user/model")) == 2
    assert {"README.md", "small/README.md", "small/config.json", "small/model.safetensors"} <= set(files)
    assert ("model.safetensors" in files) == supernet
    assert 'subfolder="small"' in files["README.md"].decode()


def test_exports_that_are_there_already(hub, checkpoint, model, tokenizer, tmp_path):
    export_subnet(model, "small", tmp_path / "small", tokenizer=tokenizer)
    onnx = tmp_path / "small" / "onnx"  # the files of another format; what is in them does not matter
    onnx.mkdir()
    (onnx / "config.json").write_bytes((tmp_path / "small" / "config.json").read_bytes())
    certificate = json.loads((tmp_path / "small" / "parity.json").read_text())
    (onnx / "parity.json").write_text(json.dumps({**certificate, "format": "onnx"}))
    (onnx / "model.onnx").write_bytes(b"graph")
    exports = json.dumps({"small": str(tmp_path / "small")})
    assert push(checkpoint, "--exports", exports, "--supernet", "false") == 0
    assert set(hub.repositories) == {"user/model-small"}
    files = hub.files("user/model-small")
    assert files["onnx/model.onnx"] == b"graph"
    assert files["model.safetensors"] == (tmp_path / "small" / "model.safetensors").read_bytes()
    assert "| `onnx/` |" in files["README.md"].decode()
    assert 'subfolder="onnx/"' in files["README.md"].decode()


def test_an_exported_folder_by_itself(hub, model, tokenizer, tmp_path):
    for size in ("small", "odd"):
        export_subnet(model, size, tmp_path / size, tokenizer=tokenizer)
        assert main(["push", "--model", str(tmp_path / size), "--repo_id", f"user/{size}", "--base_model", "a/b"]) == 0
        card = ModelCard(hub.files(f"user/{size}")["README.md"].decode())
        assert card.data.base_model == "a/b"
        assert card.data.pipeline_tag == "text-classification"
        assert f"{model.num_parameters_of(size) / 1000:.3g} k" in card.text


def test_a_frontier_and_a_recipe_in_the_card(hub, checkpoint, model, tmp_path):
    frontier_of(model).save(tmp_path / "frontier.json")
    (tmp_path / "train.yaml").write_text("learning_rate: 0.25\noutput_dir: runs/secret-place\n")
    options = ["--frontier", tmp_path / "frontier.json", "--recipe", tmp_path / "train.yaml", "--datasets", "glue"]
    assert push(checkpoint, *options) == 0
    files = hub.files("user/model")
    assert files["frontier.png"].startswith(b"\x89PNG")
    assert json.loads(files["frontier.json"])["facts"]["machine"]["processor"] == "Imaginary 3000"
    card = files["README.md"].decode()
    assert "1.5 [1.25, 1.75]" in card
    assert "learning_rate: 0.25" in card
    assert "secret-place" not in card
    assert "](frontier.png)" in card


def test_a_dry_run_uses_no_network(checkpoint, capsys, monkeypatch, make_hub):
    hub = make_hub()
    monkeypatch.delenv("HF_TOKEN")
    assert push(checkpoint, "--subnets", "small", "--layout", "revisions", "--dry_run") == 0
    assert hub.seen == []
    lines = capsys.readouterr().out.splitlines()
    size = (checkpoint / "model.safetensors").stat().st_size
    assert f"user/model main model.safetensors {size}" in lines
    assert any(line.startswith("user/model small config.json ") for line in lines)
    assert not any("training_args" in line for line in lines)
    listed = [line.split() for line in lines[:-1]]
    total = sum(int(parts[3]) for parts in listed)
    assert lines[-1] == f"{len(listed)} files, {total:,} bytes; nothing was uploaded"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert push(checkpoint, "--subnets", "small", "--layout", "revisions") == 0
    pushed = {(branch, path) for branch in ("main", "small") for path in hub.files("user/model", branch)}
    assert {(branch, path) for _, branch, path, _ in listed} == pushed
    assert {int(bytes_) for *_, path, bytes_ in listed if path == "README.md"} == {
        len(hub.files("user/model", branch)["README.md"]) for branch in ("main", "small")
    }


def test_private(hub, checkpoint):
    assert push(checkpoint, "--private", "true") == 0
    assert hub.repositories["user/model"].private


def test_a_name_without_an_owner(hub, checkpoint):
    assert main(["push", "--model", str(checkpoint), "--repo_id", "model"]) == 0
    assert 'from_pretrained("user/model"' in hub.files("user/model")["README.md"].decode()


def test_twice_is_once(hub, checkpoint):
    options = ["--subnets", "small", "--layout", "revisions"]
    assert push(checkpoint, *options) == 0
    before = len(hub.seen)
    assert push(checkpoint, *options) == 0
    assert not [seen.line for seen in hub.seen[before:] if not seen.line.startswith("GET")]


def test_interrupted_and_resumed(hub, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults = [Fault("POST /api/models/user/model-small/commit", 1, after=10)]
    options = ["--model", checkpoint, "--repo_id", "user/model", "--subnets", "small"]
    assert "run the same command again" in refused(capsys, *options)
    assert hub.files("user/model-small") == {}
    before = len(hub.seen)
    assert push(checkpoint, "--subnets", "small") == 0
    assert hub.files("user/model-small")
    assert not [seen for seen in hub.seen[before:] if seen.line.startswith("PUT")]
    assert len(hub.commits("user/model")) == 2


def test_overwrite(hub, checkpoint, capsys):
    hub.create("user/model", {"config.json": b"{}"})
    options = ["--model", checkpoint, "--repo_id", "user/model"]
    error = refused(capsys, *options)
    assert "user/model exists and differs: config.json; add --overwrite true" in error
    assert hub.files("user/model") == {"config.json": b"{}"}
    assert push(checkpoint, "--overwrite", "true") == 0
    assert "model.safetensors" in hub.files("user/model")


def test_a_card_that_somebody_wrote_is_kept(hub, model, tmp_path):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\ntags:\n- mine\n---\n# Mine\n")
    push_folder(folder, "user/model")
    assert hub.files("user/model")["README.md"].endswith(b"# Mine\n")
    (folder / "README.md").write_text(f"---\ntags: []\n---\n{MARKER}\n")
    push_folder(folder, "user/other")
    assert b"`small`" in hub.files("user/other")["README.md"]


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--subnets", "tiny"], "unknown subnet 'tiny'; known: "),
        (["--subnets", "largest"], "'largest' cannot be pushed as one of repos"),
        (["--layout", "zip"], "layout: 'zip' is unknown; known: repos, revisions, subfolders"),
        (["--formats", "gguf"], "formats: 'gguf' is unknown"),
        (["--formats", "onnx", "--subnets", "small"], "add safetensors"),
        (["--formats", "safetensors", "onnx-int8-static", "--subnets", "small"], "give its folder to --exports"),
        (["--supernet", "false"], "nothing to push"),
        (["--exports", '{"small": "/nowhere"}'], "/nowhere holds no model"),
        (["--exports", "[1]"], "exports: '[1]' is not a mapping"),
        (["--frontier", "/nowhere.json"], "cannot read the frontier /nowhere.json"),
        (["--results", "/nowhere.json"], "cannot read the results /nowhere.json"),
        (["--recipe", "/nowhere.yaml"], "there is no file '/nowhere.yaml'"),
        (["--base_model", "./runs/base"], "./runs/base"),
        (["--sequence_length", "0"], "sequence_length must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input(hub, checkpoint, capsys, options, says):
    assert says in refused(capsys, "--model", checkpoint, "--repo_id", "user/model", *options)
    assert not [seen for seen in hub.seen if not seen.line.startswith("GET")]


@pytest.mark.one_lane
def test_bad_folders(hub, checkpoint, capsys, tmp_path, model):
    assert "there is no folder" in refused(capsys, "--model", "nowhere", "--repo_id", "user/model")
    assert "user//model" in refused(capsys, "--model", checkpoint, "--repo_id", "user//model")
    assert "holds no model" in refused(capsys, "--model", tmp_path, "--repo_id", "user/model")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(capsys, "--model", tmp_path, "--repo_id", "user/model")
    export_subnet(model, "small", tmp_path / "small")
    says = refused(capsys, "--model", tmp_path / "small", "--repo_id", "user/model", "--subnets", "odd")
    assert "is one size and has no other" in says
    wrong = json.dumps({"odd": str(tmp_path / "small")})
    says = refused(capsys, "--model", checkpoint, "--repo_id", "user/model", "--exports", wrong)
    assert f"exports: {tmp_path / 'small'} is not odd: it has {model.num_parameters_of('small'):,} parameters" in says


def test_no_token(hub, checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no token for the Hub" in refused(capsys, "--model", checkpoint, "--repo_id", "user/model")


@pytest.mark.one_lane
def test_the_token_is_no_option(hub, checkpoint, capsys):
    with pytest.raises(SystemExit) as stopped:
        push(checkpoint, "--token", "hf_right")
    assert stopped.value.code == 2
    assert "hf_right" not in capsys.readouterr().err


def test_a_wrong_token_is_not_repeated(hub, checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")  # the server's answer repeats it
    hub.faults = [Fault("GET /api/models", 9, 400)]
    error = refused(capsys, "--model", checkpoint, "--repo_id", "user/model")
    assert "told to fail, Bearer ***" in error
    assert "hf_wrong" not in error


def test_a_frozen_model_has_no_sizes(hub, model, tmp_path):
    frozen = model.extract("odd")
    with pytest.raises(UserError, match="is one size and has no other"):
        push_model(frozen, "user/model", subnets=["small"])
    [pushed] = push_model(frozen, "user/odd")
    assert (pushed.repo_id, pushed.revision) == ("user/odd", "main")
    assert "model.safetensors" in hub.files("user/odd")
    frozen.save_pretrained(tmp_path / "odd")
    [again] = push_folder(tmp_path / "odd", "user/odd")
    assert again == pushed
