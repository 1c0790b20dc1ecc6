"""An elastic model behaves as a Hugging Face user expects: Auto classes, pipelines, Trainer, copies, dtypes, threads."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from datasets import Dataset
from tiny import CONFIGS, VOCAB, batch, config_of, randomize
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hf_elastic
from hf_elastic import (
    ElasticConfig,
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForMultipleChoice,
    ElasticForQuestionAnswering,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticModel,
)

TOLERANCE = 1e-5
SPACE = {"num_hidden_layers": [2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]}
SMALL = {"num_hidden_layers": 2, "intermediate_size": 16}
SUBNETS = {"small": SMALL}
PER_LAYER = {"layers": [0, 2], "num_attention_heads": [2, 4], "intermediate_size": [16, 33]}
HEADS = [
    (ElasticModel, AutoModel),
    (ElasticForMaskedLM, AutoModelForMaskedLM),
    (ElasticForCausalLM, AutoModelForCausalLM),
    (ElasticForSequenceClassification, AutoModelForSequenceClassification),
    (ElasticForTokenClassification, AutoModelForTokenClassification),
    (ElasticForQuestionAnswering, AutoModelForQuestionAnswering),
    (ElasticForMultipleChoice, AutoModelForMultipleChoice),
]


def classifier(model_type="bert", **changes):
    torch.manual_seed(0)
    config = config_of(model_type, **{"num_labels": 3, **changes})
    base = randomize(AutoModelForSequenceClassification.from_config(config))
    return ElasticForSequenceClassification.from_base(base, space=SPACE, subnets=SUBNETS, importance="none")


def masked_lm():
    base = randomize(AutoModelForMaskedLM.from_config(config_of("bert")))
    return ElasticForMaskedLM.from_base(base, space=SPACE, subnets=SUBNETS)


def causal_lm(model_type="gpt2", **changes):
    base = randomize(AutoModelForCausalLM.from_config(config_of(model_type, **changes)))
    space = {key: SPACE[key] for key in ("num_hidden_layers", "intermediate_size")}
    return ElasticForCausalLM.from_base(base, space=space, subnets=SUBNETS, importance="none")


def inputs_of(elastic_class):
    inputs = batch()
    if elastic_class is ElasticForMultipleChoice:
        inputs = {key: torch.stack([value, value.flip(0)], 1) for key, value in inputs.items()}
    return inputs


def labels_of(elastic_class, inputs):
    if elastic_class is ElasticModel:
        return {}
    if elastic_class in (ElasticForMaskedLM, ElasticForCausalLM):
        return {"labels": inputs["input_ids"]}
    if elastic_class is ElasticForQuestionAnswering:
        return {"start_positions": torch.tensor([0, 1, 2]), "end_positions": torch.tensor([1, 2, 3])}
    return {"labels": inputs["input_ids"] % 2 if elastic_class is ElasticForTokenClassification else torch.tensor([0, 1, 0])}


def assert_same(ours, theirs, tolerance=TOLERANCE):
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[key], value, atol=tolerance, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


def train_step(model, **inputs):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


# --- making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("elastic_class", "auto_class"), HEADS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ["folder", "model"])
def test_from_base(elastic_class, auto_class, kind, tmp_path):
    changes = {"is_decoder": True} if elastic_class is ElasticForCausalLM else {}
    base = randomize(auto_class.from_config(config_of("bert", **changes)))
    source = base
    if kind == "folder":
        base.save_pretrained(tmp_path)
        source = str(tmp_path)
    model = elastic_class.from_base(source, space=SPACE, subnets=SUBNETS)
    inputs = inputs_of(elastic_class)
    assert not model.training
    with torch.no_grad():
        assert_same(model(**inputs), base(**inputs))
        model.select("small")
        assert_same(model(**inputs), model.extract("small")(**inputs))
    labels = labels_of(elastic_class, inputs)
    if labels:
        assert train_step(model, **inputs, **labels).isfinite()


def test_from_base_passes_keywords_on(tmp_path):
    AutoModelForMaskedLM.from_config(config_of("bert")).save_pretrained(tmp_path)
    model = ElasticForSequenceClassification.from_base(str(tmp_path), num_labels=5, dtype=torch.bfloat16)
    assert model.num_labels == model.config.num_labels == 5
    assert model.dtype == torch.bfloat16
    assert model(**batch()).logits.shape == (3, 5)


@pytest.mark.parametrize(
    ("auto_class", "elastic_class"),
    [(AutoModelForCausalLM, ElasticForCausalLM), (AutoModelForSequenceClassification, ElasticForSequenceClassification)],
)
def test_from_config(auto_class, elastic_class):
    model = auto_class.from_config(ElasticConfig(base_config=config_of("gpt2"), space=SPACE, subnets=SUBNETS))
    assert type(model) is elastic_class
    assert model.base.config.n_embd == 32
    inputs = batch()
    for subnet in (None, "small"):
        model.select(subnet)
        labels = labels_of(elastic_class, inputs)
        assert train_step(model, **inputs, **labels) > train_step(model, **inputs, **labels)


def test_from_config_initialises_as_the_stock_class():
    torch.manual_seed(3)
    stock = AutoModelForCausalLM.from_config(config_of("gpt2"))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(ElasticConfig(base_config=config_of("gpt2")))
    for name, parameter in stock.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


# --- saving and loading ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_from_pretrained_selects_a_subnet(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    expected = model.view("small")(**batch()).logits
    for subnet in ("small", SMALL):
        small = AutoModelForSequenceClassification.from_pretrained(tmp_path, subnet=subnet)
        assert isinstance(small, ElasticForSequenceClassification)
        assert small.config.subnet == subnet
        assert torch.equal(small(**batch()).logits, expected)
    full = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert full.config.subnet is None
    assert torch.equal(full(**batch()).logits, model(**batch()).logits)
    small.save_pretrained(tmp_path / "selected")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "selected")
    assert torch.equal(again(**batch()).logits, expected)


@torch.no_grad()
def test_another_head_and_number_of_labels(tmp_path):
    model = masked_lm()
    model.save_pretrained(tmp_path)
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert isinstance(again, ElasticForSequenceClassification)
    assert again.num_labels == again.config.num_labels == again.config.base_config.num_labels == 5
    assert again(**batch()).logits.shape == again.view("small")(**batch()).logits.shape == (3, 5)
    assert {"classifier.weight", "classifier.bias"} <= set(info["missing_keys"])
    assert all(key.startswith("cls.") for key in info["unexpected_keys"])
    backbone = [name for name, _ in model.named_parameters() if name.startswith("bert.")]
    assert backbone
    for name in backbone:
        assert torch.equal(again.get_parameter(name), model.get_parameter(name)), name
    assert again.classifier.weight.isfinite().all()
    again.save_pretrained(tmp_path / "classifier")
    reloaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(reloaded(**batch()).logits, again(**batch()).logits)


@torch.no_grad()
def test_headless_checkpoint_into_a_head_and_back(tmp_path):
    base = randomize(AutoModel.from_config(config_of("bert")))
    ElasticModel.from_base(base, space=SPACE).save_pretrained(tmp_path / "backbone")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "backbone", num_labels=4)
    assert torch.equal(
        again.bert.encoder.layer[1].output.dense.weight,
        ElasticModel.from_pretrained(tmp_path / "backbone").encoder.layer[1].output.dense.weight,
    )
    again.save_pretrained(tmp_path / "head")
    headless = AutoModel.from_pretrained(tmp_path / "head")
    assert torch.equal(headless.encoder.layer[1].output.dense.weight, again.bert.encoder.layer[1].output.dense.weight)


def test_dtype(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {p.dtype for p in half.view("small").parameters()} == {torch.bfloat16}
    assert half(**batch()).logits.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half", dtype="auto")
    assert again.dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "gpt_neox", "llama"])
@torch.no_grad()
def test_cast_views_equal_extract(model_type):
    model = classifier(model_type)
    model.view("small")
    model.to(torch.bfloat16)
    for subnet in ("small", "largest"):
        view = model.view(subnet)
        assert {p.dtype for p in view.parameters()} == {torch.bfloat16}
        inputs = {"input_ids": batch()["input_ids"][:1]}
        torch.testing.assert_close(view(**inputs).logits, model.extract(subnet)(**inputs).logits, atol=1e-2, rtol=0)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@torch.no_grad()
def test_copies_are_independent(model_type, way):
    model = classifier(model_type)
    model.select("small")
    expected = model(**batch()).logits
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(**batch()).logits, expected)
    assert twin.base.config is not model.base.config
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(**batch()).logits, expected)
    assert twin(**batch()).logits.abs().max() == 0
    with torch.enable_grad():
        train_step(twin, **batch(), labels=torch.tensor([0, 1, 2]))
    assert torch.equal(model(**batch()).logits, expected)


# Runs in an interpreter where this package cannot be imported.
REMOTE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_elastic":
            raise ImportError("hf_elastic is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(1)
results = {}
for name, arguments in json.loads(sys.argv[2]).items():
    folder = f"{sys.argv[1]}/{name.partition('-')[0]}"
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **arguments)
    with torch.no_grad():
        results[name] = model(**torch.load(f"{sys.argv[1]}/inputs.pt")).logits.tolist()
    model.save_pretrained(f"{sys.argv[1]}/again-{name}")
    results[name + "-class"] = type(model).__module__
print(json.dumps(results))
"""


@torch.no_grad()
def test_trust_remote_code_without_this_package(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path / "supernet")
    model.extract(PER_LAYER).save_pretrained(tmp_path / "frozen")
    torch.save(batch(), tmp_path / "inputs.pt")
    runs = {"supernet-full": {}, "supernet-small": {"subnet": "small"}, "supernet-other": {"subnet": PER_LAYER}, "frozen": {}}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", REMOTE, str(tmp_path), json.dumps(runs)]
    run = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    results = json.loads(run.stdout.splitlines()[-1])
    expected = {"supernet-full": None, "supernet-small": "small", "supernet-other": PER_LAYER, "frozen": PER_LAYER}
    for name, subnet in expected.items():
        assert results[f"{name}-class"].startswith("transformers_modules")
        logits = model.view(subnet)(**batch()).logits
        torch.testing.assert_close(torch.tensor(results[name]), logits, atol=TOLERANCE, rtol=0)
        # What the copied code saves is as complete as what it was loaded from.
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"again-{name}")
        assert isinstance(again, ElasticForSequenceClassification)
        torch.testing.assert_close(again(**batch()).logits, logits, atol=TOLERANCE, rtol=0)


def test_generation_config_is_one_for_all_sizes(tmp_path):
    base = randomize(AutoModelForCausalLM.from_config(config_of("llama")))
    base.generation_config.repetition_penalty = 1.7
    model = ElasticForCausalLM.from_base(base, space={"num_hidden_layers": [2, 4]}, subnets={"small": {"num_hidden_layers": 2}})
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, again):
        for one in (each, each.view("small"), each.extract("small"), each.extract({"layers": [0, 2]})):
            assert one.generation_config.eos_token_id == 2
            assert one.generation_config.repetition_penalty == 1.7
    again.generation_config = copy.deepcopy(again.generation_config)
    again.generation_config.eos_token_id = 7
    assert again.view("small").generation_config.eos_token_id == again.base.generation_config.eos_token_id == 7


def test_extract_keeps_the_attention_implementation():
    for implementation in ("eager", "sdpa"):
        model = classifier(attn_implementation=implementation)
        for subnet in (None, SMALL, PER_LAYER):
            assert model.extract(subnet).config._attn_implementation == implementation


# --- pipelines and Trainer -------------------------------------------------------------------------------------------

WORDS = [f"w{i}" for i in range(VOCAB - 5)]


@pytest.fixture
def tokenizer(tmp_path):
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    vocabulary = {token: index for index, token in enumerate([*specials.values(), *WORDS])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), model_max_length=64, **specials)


@pytest.mark.parametrize("subnet", [None, "small"])
def test_text_classification_pipeline(subnet, tokenizer):
    model = classifier(id2label={0: "no", 1: "yes", 2: "perhaps"})
    model.select(subnet)
    scores = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(["w3 w4", "w5"])
    assert {score["label"] for score in scores[0]} == {"no", "yes", "perhaps"}
    with torch.no_grad():
        expected = model.view(subnet)(**tokenizer("w3 w4", return_tensors="pt")).logits.softmax(-1)[0]
    assert {s["label"]: s["score"] for s in scores[0]} == pytest.approx(
        {model.config.id2label[i]: value.item() for i, value in enumerate(expected)}, abs=TOLERANCE
    )


def test_fill_mask_pipeline(tokenizer):
    model = masked_lm()
    model.select("small")
    found = pipeline("fill-mask", model=model, tokenizer=tokenizer)("w3 [MASK] w5")
    with torch.no_grad():
        logits = model.view("small")(**tokenizer("w3 [MASK] w5", return_tensors="pt")).logits[0, 1]
    assert found[0]["token"] == logits.argmax().item()


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_text_generation_pipeline(model_type, tmp_path):
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "<s>", "</s>", "[UNK]", "[X]", *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", bos_token="<s>", eos_token="</s>")
    model = causal_lm(model_type)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, subnet="small")
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 5, "do_sample": False}
    texts = generator(["w3 w4 w5", "w9"], batch_size=1, return_tensors=True, **options)
    for prompt, found in zip(["w3 w4 w5", "w9"], texts):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        assert found[0]["generated_token_ids"] == model.extract("small").generate(**inputs, **options)[0].tolist()


@pytest.mark.parametrize("subnet", [None, "small"])
def test_trainer(subnet, tmp_path):
    model = classifier()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.select(subnet)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, (16, 6), generator=generator)
    columns = {"input_ids": ids.tolist(), "labels": (ids[:, 0] % 3).tolist(), "text": ["a"] * 16, "score": [0.5] * 16}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=4, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="epoch", save_total_limit=1, eval_strategy="epoch",
    )  # fmt: skip
    data = Dataset.from_dict(columns)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    untrained = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < untrained
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any(".layer.0." in name for name in changed)
    assert any(".layer.3." in name for name in changed) == (subnet is None)
    trainer.save_model(str(tmp_path / "best"))
    model.eval()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "best")
    assert again.config.subnet == subnet
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout"), 0.0
)

# --- gradients, memory, threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "modernbert", "llama"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(model_type, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = classifier(model_type, **NO_DROPOUT)
        model.select(PER_LAYER)
        model.train()
        runs = []
        layer = model.get_submodule(f"{model.layout.container}.0")
        leaf = next(module for module in layer.modules() if module._parameters)
        leaf.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
            if use_reentrant:
                model.enable_input_require_grads()
        model(**batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
        assert len(runs) == 1 + checkpointing  # the layer ran again in the backward pass
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


# BERT's stock class ties the bias of an untied head when it resizes, and loses it when it saves: nothing to compare with.
@pytest.mark.parametrize(
    ("model_type", "tie"), [("bert", True), ("gpt2", True), ("gpt2", False), ("llama", True), ("llama", False)]
)
@torch.no_grad()
def test_resize_token_embeddings(model_type, tie, tmp_path):
    if model_type == "bert":
        base = randomize(AutoModelForMaskedLM.from_config(config_of("bert", tie_word_embeddings=tie)))
        model = ElasticForMaskedLM.from_base(base, space=SPACE, subnets=SUBNETS, importance="none")
    else:
        model = causal_lm(model_type, tie_word_embeddings=tie)
    before = model.view("small")(**batch()).logits
    model.resize_token_embeddings(VOCAB + 7)
    assert model.config.vocab_size == model.base.config.vocab_size == VOCAB + 7
    assert model.get_input_embeddings().weight.shape[0] == VOCAB + 7
    for subnet in (None, "small", {"num_hidden_layers": 2}):
        view = model.view(subnet)
        assert view(**batch()).logits.shape[-1] == VOCAB + 7
        assert model.num_parameters_of(subnet) == sum(p.numel() for p in view.parameters())
        assert_same(view(**batch()), model.extract(subnet)(**batch()))
    torch.testing.assert_close(model.view("small")(**batch()).logits[..., :VOCAB], before, atol=TOLERANCE, rtol=0)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.num_parameters_of(None) == model.num_parameters_of(None)
    assert torch.equal(again.view("small")(**batch()).logits, model.view("small")(**batch()).logits)
    with torch.enable_grad():
        again.select("small")
        train_step(again, **batch(), labels=batch()["input_ids"])


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "modernbert", "llama"])
def test_threads(model_type):
    model = classifier(model_type)
    subnets = ["small", "largest", {"num_hidden_layers": 3, "num_attention_heads": 2}, {"layers": [1, 3], "intermediate_size": 7}]
    inputs = [batch(seed=seed) for seed in range(4)]
    with torch.no_grad():
        expected = [[model.extract(subnet)(**each).logits for each in inputs] for subnet in subnets]
        reference = [[classifier(model_type).view(subnet)(**each).logits for each in inputs] for subnet in subnets]
    errors = []

    def work(index):
        # Every thread has its own size most of the time, and makes and uses the others' too.
        try:
            with torch.no_grad():
                for turn in range(40):
                    which = index if turn % 4 else (index + turn // 4) % 4
                    logits = model.view(subnets[which])(**inputs[turn % 4]).logits
                    assert torch.equal(logits, reference[which][turn % 4]), (index, turn)
                    torch.testing.assert_close(logits, expected[which][turn % 4], atol=TOLERANCE, rtol=0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "modernbert", "gpt_neox", "phi3"])
@pytest.mark.parametrize("change", ["optimizer", "load_state_dict"])
def test_views_see_new_weights(model_type, change):
    model = classifier(model_type)
    subnet = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    view = model.view(subnet)
    with torch.no_grad():
        before = view(**batch()).logits.clone()
    model.select(subnet)
    if change == "optimizer":
        train_step(model, **batch(), labels=torch.tensor([0, 1, 2]))
        model.eval()
    else:
        model.load_state_dict({name: tensor + 0.1 for name, tensor in model.state_dict().items()})
    with torch.no_grad():
        expected = copy.deepcopy(model).extract(subnet)(**batch()).logits  # a copy has no views yet
        assert (expected - before).abs().max() > 1e-4
        torch.testing.assert_close(model.view(subnet)(**batch()).logits, expected, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(model(**batch()).logits, expected, atol=TOLERANCE, rtol=0)


def test_every_backbone_is_known():
    assert set(CONFIGS) == set(hf_elastic.spec.SPECS)
