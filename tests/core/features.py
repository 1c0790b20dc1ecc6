"""What users do with models, as checks: each takes a model (elastic, with a size selected, or frozen) and a twin that has to
behave alike, a stock model of that size or a view of one. `docs/features.md` has a row for each."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from tiny import batch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, vector_to_parameters

from hf_elastic.core.errors import UserError

TOLERANCE = 1e-5
IDS = {key: value[:2] for key, value in batch().items()}


def layer_of(model, position=0):
    """A layer of the full stock model inside, whatever is selected."""
    base = getattr(model, "base", model)
    return next(module for module in base.modules() if isinstance(module, nn.ModuleList))[position]


def run(model, **inputs):
    return model(**{**IDS, **inputs})


def logits(model, *, grad=False, **inputs):
    with torch.set_grad_enabled(grad):
        return run(model, **inputs).logits.detach()


def assert_alike(model, twin, tolerance=TOLERANCE):
    """Both ways of running: without gradients and with them."""
    for grad in (False, True):
        torch.testing.assert_close(logits(model, grad=grad), logits(twin, grad=grad), atol=tolerance, rtol=0)


def settings_on_config(model, twin):
    for one in (model, twin):
        assert run(one).hidden_states is None
        one.config.output_hidden_states = True
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ours, theirs = run(model).hidden_states, run(twin).hidden_states
        assert len(ours) == len(theirs)
    model.config.output_hidden_states = False
    assert run(model).hidden_states is None


def attention_implementation(model, twin):
    run(model)
    for one in (model, twin):
        one.set_attn_implementation("eager")
    assert model.config._attn_implementation == twin.config._attn_implementation
    assert len(run(model, output_attentions=True).attentions) == len(run(twin, output_attentions=True).attentions)
    model.config._attn_implementation = "sdpa"
    assert_alike(model, twin)


def labels_and_padding(model, twin):
    run(model)
    for one in (model, twin):
        one.config.pad_token_id, one.config.id2label = 7, {0: "no", 1: "yes", 2: "perhaps"}
    assert_alike(model, twin)
    assert model.config.id2label == twin.config.id2label


def hooks(model, twin):
    """Put on and taken off after the first run, on a layer and on the model."""
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            run(model)
            calls = []
            handles = [one.register_forward_hook(lambda *_, calls=calls: calls.append(1)) for one in (layer_of(model), model)]
            run(model)
            assert len(calls) == 2
            for handle in handles:
                handle.remove()
            run(model)
            assert len(calls) == 2


def drop_nothing(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob"):
            if name in vars(module):
                setattr(module, name, 0.0)


def dropout_rates(model, twin):
    model.train()
    run(model)
    drop_nothing(model)
    assert torch.equal(run(model).logits, run(model).logits)


def submodules_in_evaluation(model, twin):
    model.train()
    run(model)
    model.eval()
    layer_of(model).train()
    assert layer_of(model).training
    for module in layer_of(model).modules():
        module.eval()
    assert_alike(model, twin)


def replaced_weights(model, twin):
    """`p.data = ...`, a new Parameter, another dtype of a part, and a whole vector."""
    model.get_input_embeddings()
    before = logits(model)
    for change in (_data, _parameter, _in_place, _vector):
        change(model)
        after = logits(model)
        assert not torch.equal(before, after), change.__name__
        torch.testing.assert_close(after, logits(copy.deepcopy(model)), atol=0, rtol=0)  # a copy knows nothing yet
        torch.testing.assert_close(after, logits(model, grad=True), atol=TOLERANCE, rtol=0)
        before = after


def _data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def _parameter(model):
    linear = next(module for module in layer_of(model).modules() if isinstance(module, nn.Linear))
    linear.weight = nn.Parameter(linear.weight.detach() * 2)


def _in_place(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def _vector(model):
    vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()) * 1.1, model.parameters())


def contiguous_weights(model, twin):
    """As torch's and safetensors' tools want them, in training and in evaluation."""
    for training in (True, False):
        model.train(training)
        run(model)
        assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    assert len(nn.utils.parameters_to_vector(model.parameters())) == sum(p.numel() for p in model.parameters())
    assert safetensors.torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()})


def functional_call(model, twin):
    before = logits(model)
    doubled = {name: parameter * 2 for name, parameter in model.named_parameters()}
    with torch.no_grad():
        moved = torch.func.functional_call(model, doubled, (), IDS).logits
    assert not torch.equal(moved, before)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)


def pruning_masks(model, twin):
    linear = next(module for module in layer_of(model).modules() if isinstance(module, nn.Linear))
    before = logits(model)
    prune.l1_unstructured(linear, "weight", amount=0.5)
    masked = logits(model)
    assert not torch.equal(before, masked)
    torch.testing.assert_close(masked, logits(model, grad=True), atol=TOLERANCE, rtol=0)
    prune.remove(linear, "weight")
    torch.testing.assert_close(logits(model), masked, atol=TOLERANCE, rtol=0)


class Negative(nn.Module):
    """The weight with its sign changed."""

    def forward(self, weight):
        return -weight


def weight_parametrizations(model, twin):
    linear = next(module for module in layer_of(model).modules() if isinstance(module, nn.Linear))
    before = logits(model)
    parametrizations.weight_norm(linear)
    assert_close_both(model, before)
    parametrize.register_parametrization(linear, "bias" if linear.bias is not None else "weight", Negative())
    assert not torch.equal(logits(model), before)
    for name in list(linear.parametrizations):
        parametrize.remove_parametrizations(linear, name)
    run(model).logits.sum().backward()
    assert linear.weight.grad is not None


def assert_close_both(model, expected):
    for grad in (False, True):
        torch.testing.assert_close(logits(model, grad=grad), expected, atol=TOLERANCE, rtol=0)


def loss_function(model, twin):
    """Of heads that ask for it; the others go on with their own."""
    losses = []
    for one in (model, twin):
        run(one, labels=labels_for(one))
        one.loss_function = lambda *args, **kwargs: torch.tensor(7.0)
        losses.append(run(one, labels=labels_for(one)).loss)
    torch.testing.assert_close(*losses, atol=TOLERANCE, rtol=0)
    assert losses[0] == 7.0 or not model.can_generate()


def labels_for(model):
    return IDS["input_ids"] if model.can_generate() else torch.tensor([0, 1])


def input_gradients(model, twin):
    run(model)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert run(model).logits.requires_grad
    model.disable_input_require_grads()
    assert not run(model).logits.requires_grad


def gradient_checkpointing(model, twin):
    gradients = []
    model.train()
    drop_nothing(model)
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        # Two forward passes before one backward pass: the second must not take the first one's weights away.
        (run(model).logits.sum() + run(model).logits.square().sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys() and plain
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-4, rtol=1e-4)


def copies(model, twin):
    expected = logits(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(logits(again), expected, atol=0, rtol=0)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        assert torch.equal(logits(model), expected)


def compiled(model, twin):
    runner = torch.compile(model, backend="aot_eager")
    assert_alike(runner, twin)
    model.config.output_hidden_states = True
    assert run(runner).hidden_states is not None


def compiled_whole(model, twin):
    """Without a break in the graph."""
    expected = logits(twin)
    runner = torch.compile(getattr(model, "view", lambda: model)(model.config.subnet), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(runner), expected, atol=TOLERANCE, rtol=0)


def exported(model, twin):
    """`torch.export` of the model; afterwards it runs as before."""
    before = logits(model)
    with torch.no_grad():
        inputs = {**IDS, "use_cache": False} if model.can_generate() else IDS
        program = torch.export.export(model, (), inputs, strict=False)
        found = program.module()(**inputs).logits
    torch.testing.assert_close(found, logits(twin), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)


def data_parallel(model, twin):
    """Replicas as `nn.DataParallel` makes them; float64 stands for another device."""
    modules = list(model.modules())
    place = {module: index for index, module in enumerate(modules)}
    replicas = [module._replicate_for_data_parallel() for module in modules]
    for module, replica in zip(modules, replicas):
        for key, child in module._modules.items():
            replica._modules[key] = None if child is None else replicas[place[child]]
        for key, parameter in module._parameters.items():
            setattr(replica, key, None if parameter is None else parameter.detach().double())
            vars(replica).setdefault("_former_parameters", {})[key] = getattr(replica, key)
        for key, buffer in module._buffers.items():
            setattr(replica, key, buffer.double() if buffer.is_floating_point() else buffer)
    with torch.no_grad():
        output = replicas[0](**IDS).logits
    assert output.dtype == torch.float64
    torch.testing.assert_close(output.float(), logits(twin), atol=TOLERANCE, rtol=0)


def accelerate_hooks(model, twin):
    from accelerate import dispatch_model

    dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    assert_alike(model, twin)


def offloaded_to_disk(model, twin, folder):
    from accelerate import disk_offload

    disk_offload(model, folder, execution_device=torch.device("cpu"))
    torch.testing.assert_close(logits(model), logits(twin), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits(model), logits(twin), atol=TOLERANCE, rtol=0)  # weights went back in between


def positional_arguments(model, twin):
    ids, mask = IDS["input_ids"], IDS["attention_mask"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask).logits, twin(ids, mask).logits, atol=TOLERANCE, rtol=0)


def embeddings_as_inputs(model, twin):
    with torch.no_grad():
        embeds = model.get_input_embeddings()(IDS["input_ids"])
        given = model(inputs_embeds=embeds, attention_mask=IDS["attention_mask"]).logits
    torch.testing.assert_close(given, logits(model), atol=TOLERANCE, rtol=0)


def base_model(model, twin):
    """Without the head: what trl and others call."""
    with torch.no_grad():
        ours, theirs = (one.base_model(**IDS).last_hidden_state for one in (model, twin))
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def neftune(model, twin):
    """As Trainer activates it: noise on the embeddings while training."""
    try:
        from transformers.integrations.neftune import neftune_post_forward_hook
    except ImportError:  # transformers 4.57
        from transformers.trainer_utils import neftune_post_forward_hook

    run(model)
    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = 5.0
    handle = embeddings.register_forward_hook(neftune_post_forward_hook)
    model.train()
    drop_nothing(model)
    assert not torch.equal(run(model).logits, run(model).logits)
    handle.remove()
    assert torch.equal(run(model).logits, run(model).logits)


def greedy(model, **options):
    inputs = SimpleNamespace(ids=IDS["input_ids"][:1, :5])
    return model.generate(inputs.ids, max_new_tokens=5, do_sample=False, pad_token_id=0, **options).tolist()


def generation(model, twin):
    assert greedy(model) == greedy(twin)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.generation_config.eos_token_id = None
    greedy(model)
    assert len(calls) == 5


def static_cache(model, twin):
    options = {"cache_implementation": "static", "disable_compile": True}
    assert greedy(model, **options) == greedy(twin)
    assert greedy(model, prefill_chunk_size=3, **options) == greedy(twin)


def assisted_generation(model, twin):
    assert greedy(model, assistant_model=twin) == greedy(twin)
    assert greedy(twin, assistant_model=getattr(model, "view", lambda: model)()) == greedy(twin)


def cache_under_any_name(model, twin):
    ids = IDS["input_ids"][:1]
    with torch.no_grad():
        whole = model(ids).logits[:, 5:]
        past = model(ids[:, :5], use_cache=True).past_key_values
        parts = model(ids[:, 5:], past_key_values=past).logits
    torch.testing.assert_close(parts, whole, atol=TOLERANCE, rtol=0)


def adapted(model, kind, **options):
    """With an adapter of peft, whose weights are drawn alike for every model."""
    import peft

    task = "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"
    torch.manual_seed(0)
    return peft.get_peft_model(model, getattr(peft, kind)(task_type=task, **options)).eval()


def prompts_of_peft(model, twin):
    """Prompt tuning and p-tuning put embeddings before the text."""
    for kind in ("PromptTuningConfig", "PromptEncoderConfig"):
        ours, theirs = (adapted(one, kind, num_virtual_tokens=3) for one in (model, twin))
        torch.testing.assert_close(logits(ours), logits(theirs), atol=TOLERANCE, rtol=0)
        assert not torch.equal(logits(ours), logits(model))
        if model.can_generate():
            ids = IDS["input_ids"][:1, :5]
            options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "pad_token_id": 0}
            assert torch.equal(ours.generate(**options), theirs.generate(**options))


def prefixes_of_peft(model, twin):
    """Prefix tuning hands a key-value cache to every layer of one size."""
    ours = adapted(model, "PrefixTuningConfig", num_virtual_tokens=3)
    ids = IDS["input_ids"][:1, :5]
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.subnet is not None:
        for run_it in (ours, lambda **inputs: ours.generate(**inputs, max_new_tokens=2, pad_token_id=0)):
            with pytest.raises(UserError, match=r"the selected size .* extract\(\) a size first, or use add_lora"):
                run_it(**options)
        return
    theirs = adapted(twin, "PrefixTuningConfig", num_virtual_tokens=3)
    torch.testing.assert_close(ours(**options).logits, theirs(**options).logits, atol=TOLERANCE, rtol=0)
    assert not torch.equal(ours(**options).logits, model(**options).logits)
    generated = [one.generate(**options, max_new_tokens=5, pad_token_id=0) for one in (ours, theirs)]
    assert torch.equal(*generated)


def lora_of_peft(model, twin):
    """Without targets: peft finds them by the architecture."""
    plain = logits(model)
    ours, theirs = (adapted(one, "LoraConfig", init_lora_weights=False) for one in (model, twin))
    assert ours.peft_config["default"].target_modules == theirs.peft_config["default"].target_modules
    assert not torch.equal(logits(ours), plain)
    if model.config.subnet is None:  # else the twin is of another size, and draws other numbers
        torch.testing.assert_close(logits(ours), logits(theirs), atol=TOLERANCE, rtol=0)


def ia3_of_peft(model, twin):
    """Only the full size runs with it."""
    size, model.config.subnet = model.config.subnet, None
    ours = adapted(model, "IA3Config", init_ia3_weights=False)
    if size is None:
        theirs = adapted(twin, "IA3Config", init_ia3_weights=False)
        torch.testing.assert_close(logits(ours), logits(theirs), atol=TOLERANCE, rtol=0)
        return
    with pytest.raises(UserError, match=r"ia3.* cannot be cut to a size; supported: plain LoRA .* as add_lora makes them"):
        model.select(size)
