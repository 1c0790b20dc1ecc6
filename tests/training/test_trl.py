"""trl's trainers train what is selected: they call the model without its head, and its head by itself."""

import pytest
import torch
from datasets import Dataset
from tiny import config_of
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_elastic import ElasticForCausalLM
from hf_elastic.core.portable import IS_OLD

if IS_OLD:
    pytest.skip("one version of trl is enough", allow_module_level=True)
trl = pytest.importorskip("trl", reason="trl is not installed")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow

SIZES = {"full": (None, {"0", "1", "2", "3"}), "two layers": ({"num_hidden_layers": 2}, {"0", "1"})}
TEXTS = [f"w{i} w3 w5 w7 w{2 * i}" for i in range(8)]


def tokenizer():
    """Words `w0` to `w94`."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words = {**special, **{f"w{i}": 4 + i for i in range(95)}}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def elastic(subnet):
    """A decoder of four layers with a size selected."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config_of("llama", pad_token_id=0))
    space = {"num_hidden_layers": [2, 4], "hidden_size": [16, 32]}
    model = ElasticForCausalLM.from_base(base, space=space, importance="none")
    model.select(subnet)
    return model


def settings(tmp_path):
    return {
        "output_dir": str(tmp_path), "max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "report_to": [],
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


def trained_layers(trainer, model):
    """Layers with weights that training moved."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.train()
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved
    return {name.split(".")[2] for name in moved if ".layers." in name}


@pytest.mark.parametrize("loss_type", ["nll", "chunked_nll"])
@pytest.mark.parametrize("size", SIZES)
def test_sft(size, loss_type, tmp_path):
    subnet, layers = SIZES[size]
    model = elastic(subnet)
    arguments = trl.SFTConfig(loss_type=loss_type, **settings(tmp_path))
    data = Dataset.from_list([{"text": text} for text in TEXTS])
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer())
    assert trained_layers(trainer, model) == layers


@pytest.mark.parametrize("size", SIZES)
def test_dpo(size, tmp_path):
    subnet, layers = SIZES[size]
    model = elastic(subnet)
    data = Dataset.from_list([{"prompt": f"w{i} w3", "chosen": " w5 w7", "rejected": " w8"} for i in range(8)])
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=elastic(subnet),
        args=trl.DPOConfig(**settings(tmp_path)),
        train_dataset=data,
        processing_class=tokenizer(),
    )
    assert trained_layers(trainer, model) == layers


@pytest.mark.parametrize("loss_type", ["nll", "chunked_nll"])
def test_a_narrow_size_loses_as_its_extract_does(loss_type, tmp_path):
    """The head that trl multiplies with by itself is the narrow one."""
    narrow = {"num_hidden_layers": 2, "hidden_size": 16}
    losses = []
    for model in (elastic(narrow), elastic(narrow).extract(narrow)):
        arguments = trl.SFTConfig(loss_type=loss_type, **settings(tmp_path))
        data = Dataset.from_list([{"text": text} for text in TEXTS])
        trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer())
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
