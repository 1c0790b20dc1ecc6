"""Architectures of our own load with `trust_remote_code` where hf_elastic is missing."""

import json
import os
import subprocess
import sys

import pytest
import torch
from elm_tiny import UNEQUAL, causal_lm, config_of, masked_lm, tokens
from tiny import randomize
from transfo_xl_tiny import config_of as transfo_xl_config
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_elastic import ElasticForMaskedLM
from hf_elastic.models.code import code_of

# Named here, because the code that runs has no hf_elastic.
REMOTE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_elastic":
            raise ImportError("hf_elastic is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
import transformers

folder, auto = sys.argv[1:]
torch.set_num_threads(1)
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    outputs = model(input_ids=torch.load(f"{folder}/inputs.pt"))
model.save_pretrained(f"{folder}/again")
found = {"module": type(model).__module__, "logits": outputs.logits.tolist()}
if model.can_generate():
    found["new"] = model.generate(torch.load(f"{folder}/inputs.pt"), max_new_tokens=4, do_sample=False).tolist()
print(json.dumps(found))
"""


def transfo_xl():
    torch.manual_seed(0)
    return randomize(AutoModelForCausalLM.from_config(transfo_xl_config()))


def classifier():
    torch.manual_seed(0)
    return randomize(AutoModelForSequenceClassification.from_config(config_of(num_labels=3)))


def cut_out():
    space = {"num_hidden_layers": [2, 3], "num_attention_heads": [2, 4], "block_type": ["bert", "mobilebert"]}
    model = ElasticForMaskedLM.from_base(masked_lm(block_type=[["bert", "mobilebert"]]), space, importance="none")
    return model.extract({"num_hidden_layers": 2, "block_type": "mobilebert"})


CASES = {
    "masked": (AutoModelForMaskedLM, lambda: masked_lm(**UNEQUAL)),
    "causal": (AutoModelForCausalLM, causal_lm),
    "classifier": (AutoModelForSequenceClassification, classifier),
    "cut out": (AutoModelForMaskedLM, cut_out),
    "transfo_xl": (AutoModelForCausalLM, transfo_xl),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_where_this_package_is_missing(case, tmp_path):
    auto, make = CASES[case]
    model = make().eval()
    inputs = tokens() % model.config.vocab_size
    model.save_pretrained(tmp_path)
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", REMOTE, str(tmp_path), auto.__name__]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["module"].startswith("transformers_modules")
    torch.testing.assert_close(torch.tensor(found["logits"]), model(input_ids=inputs).logits, atol=1e-5, rtol=0)
    assert found.get("new") == (model.generate(inputs, max_new_tokens=4, do_sample=False).tolist() if "new" in found else None)
    # Both what is saved here and what remote code saves are ours again where the package is.
    for folder in (tmp_path, tmp_path / "again"):
        again = auto.from_pretrained(folder).eval()
        assert type(again) is type(model)
        torch.testing.assert_close(again(input_ids=inputs).logits, model(input_ids=inputs).logits, atol=1e-5, rtol=0)


def test_a_config_alone_carries_the_code_too(tmp_path):
    config_of().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "configuration_elm.py", "classifiers.py", "bert.py"}
    assert "from ." in (tmp_path / "layers.py").read_text() and "from .." not in (tmp_path / "layers.py").read_text()
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(config_of())


def test_modules_of_one_name_are_refused():
    with pytest.raises(ValueError, match="layers: there is another module of this last name"):
        code_of(["hf_elastic.models.transfo_xl.modeling_transfo_xl", "hf_elastic.models.elm.modeling_elm"])
