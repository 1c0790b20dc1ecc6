"""From the command line to the Hub and back, in processes of their own that know the Hub by HF_ENDPOINT only."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_server import Fault, HubServer
from tiny import batch

from hf_elastic.graphs.exporters import ON_TRANSFORMERS_5

ROOT = Path(__file__).parents[2]

READ_BACK = """
import json, re, sys
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.modules["hf_elastic"] = None  # as if it were not installed
inputs = {"input_ids": torch.tensor(json.loads(sys.argv[1]))}
logits = {}

@torch.no_grad()
def run(name, model):
    logits[name] = model(**inputs).logits.tolist()

run("revision", AutoModelForSequenceClassification.from_pretrained("user/branches", revision="small"))
run("repository", AutoModelForSequenceClassification.from_pretrained("user/model-small"))
run("subfolder", AutoModelForSequenceClassification.from_pretrained("user/folders", subfolder="small"))
run("remote code", AutoModelForSequenceClassification.from_pretrained("user/branches", trust_remote_code=True, subnet="small"))
del sys.modules["hf_elastic"]
import hf_elastic

run("subnet", AutoModelForSequenceClassification.from_pretrained("user/branches", subnet="small"))
run("subnet of a revision", AutoModelForSequenceClassification.from_pretrained("user/branches", revision="main", subnet="odd"))
run("elastic size", AutoModelForSequenceClassification.from_pretrained("user/branches", revision="odd"))
run("full", AutoModelForSequenceClassification.from_pretrained("user/branches"))
tokens = AutoTokenizer.from_pretrained("user/branches", revision="small")("word1 word7")["input_ids"]
try:
    AutoModelForSequenceClassification.from_pretrained("user/branches", subnet="tiny")
except ValueError as error:
    unknown = str(error)
if len(sys.argv) > 2:  # with Optimum: what the card says
    card = open(hf_hub_download("user/model-small", "README.md")).read()
    for code in re.findall("```python\\n(.*?)```", card, re.DOTALL):
        names, mask = {}, torch.ones_like(inputs["input_ids"])
        full = {**inputs, "attention_mask": mask, "token_type_ids": 0 * mask}
        if "optimum" in code:
            exec(code, names)
            folder = re.search('subfolder="(.*?)/?"', code)[1]
            logits[folder] = names["model"](**full).logits.tolist()
        if "tensorrt" in code:  # onnxruntime without it warns, and takes the CPU
            exec(code, names)
            feed = {one.name: full[one.name].numpy() for one in names["model"].get_inputs()}
            logits["tensorrt"] = names["model"].run(None, feed)[0].tolist()
print(json.dumps({"logits": logits, "tokens": tokens, "unknown": unknown}))
"""

# optimum-intel reads them, where it is installed.
OPENVINO = ["openvino", "openvino-int8"] if not ON_TRANSFORMERS_5 and importlib.util.find_spec("optimum.intel") else []
PUSH = """
import sys
from hf_elastic.cli.main import main

for repo_id, *options in (
    ["user/killed"],
    ["user/branches", "--subnets", "small", "odd", "--layout", "revisions"],
    ["user/model", "--subnets", "small", "odd", "--layout", "repos"],
    ["user/folders", "--subnets", "small", "odd", "--layout", "subfolders"],
):
    if repo_id == "user/model":
        options += ["--formats", "safetensors", *sys.argv[2:]]
    assert main(["push", "--model", sys.argv[1], "--repo_id", repo_id, *options]) == 0, repo_id
"""


def environment_of(hub: HubServer, home: Path) -> dict[str, str]:
    """Of a process that takes this Hub for the only one, and has seen nothing of it yet."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return {**inherited, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(environment, *arguments) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "hf_right" not in done.stdout + done.stderr
    return done.stdout


def kill_while_uploading(hub: HubServer, environment, checkpoint) -> None:
    """Start a push that cannot get a file through, and kill it there."""
    hub.faults = [Fault("PUT /storage", 99, after=100_000)]
    command = [sys.executable, "-m", "hf_elastic.cli.main", "push", "--model", str(checkpoint), "--repo_id", "user/killed"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not hub.lines("PUT /storage"):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_there_and_back(checkpoint, model, tokenizer, tmp_path):
    with HubServer(tmp_path / "storage") as hub:
        environment = environment_of(hub, tmp_path / "home")
        writer = {**environment, "HF_TOKEN": "hf_right"}
        kill_while_uploading(hub, writer, checkpoint)
        assert hub.files("user/killed") == {}
        hub.faults = [Fault("PUT /storage", 1, after=1000)]  # which no user notices
        graphs = [] if ON_TRANSFORMERS_5 else ["onnx", "onnx-int8", *OPENVINO, "tensorrt"]  # Optimum reads them back
        run(writer, "-c", PUSH, checkpoint, *graphs)
        assert all(fault.times == 0 for fault in hub.faults)
        assert hub.files("user/killed")["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
        assert not (tmp_path / "home" / "token").exists()
        found = json.loads(run(environment, "-c", READ_BACK, json.dumps(batch()["input_ids"].tolist()), *graphs).splitlines()[-1])
    assert (tmp_path / "home" / "hub" / "models--user--branches").is_dir()
    small = ("revision", "repository", "subfolder", "remote code", "subnet")
    sizes = dict.fromkeys(small, "small") | {"subnet of a revision": "odd", "elastic size": "odd", "full": None}
    if graphs:
        sizes["onnx"] = "small"
        assert set(graphs) <= set(found["logits"])
        for name, limit in {"onnx-int8": 0.1, "tensorrt": 0.01, **dict.fromkeys(OPENVINO, 0.1)}.items():
            difference = (torch.tensor(found["logits"][name]) - torch.tensor(found["logits"]["onnx"])).abs().max()
            assert 0 < difference < limit, name  # not the same graph
    for name, size in sizes.items():
        with torch.no_grad():
            expected = model.view(size)(input_ids=batch()["input_ids"]).logits
        torch.testing.assert_close(torch.tensor(found["logits"][name]), expected, rtol=0, atol=1e-5, msg=name)
    assert found["tokens"] == tokenizer("word1 word7")["input_ids"]
    assert found["unknown"].startswith("unknown subnet 'tiny'; known: ")
