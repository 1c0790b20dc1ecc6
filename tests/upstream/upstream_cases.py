"""Elastic models in every state, and their stock twins, as test cases of transformers' own common tests."""

import functools
import unittest
import warnings
from dataclasses import dataclass
from unittest import mock

import torch
import transformers
import upstream_source
from tiny import VOCAB, config_of
from transformers.models.auto import modeling_auto

from hf_elastic import ElasticConfig
from hf_elastic.core.modeling_elastic import ELASTIC_CLASSES, ElasticPreTrainedModel

FAMILIES = ("bert", "modernbert", "llama", "qwen3", "gpt2")
CAUSAL = "ElasticForCausalLM"
BATCH, LENGTH = 5, 7


@dataclass(frozen=True)
class State:
    """A way to be an elastic model of 2 layers: what is chosen of how many layers, and how.

    Attributes:
        layers: of the full model.
        selected: the size that runs; a view of the full weights.
        frozen: the size that the weights are cut to.
        through_auto: the model is made and loaded by the Auto class.
    """

    layers: int = 2
    selected: dict | None = None
    frozen: dict | None = None
    through_auto: bool = False


SMALL = {"num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2}
# The common tests look at the heads of the first layer.
MIXED = {"layers": [0, 2], "intermediate_size": [16, 33], "num_attention_heads": [2, 4]}
STATES = {
    "full": State(),
    "small": State(layers=3, selected=SMALL),
    "frozen": State(layers=3, frozen=MIXED),
    "hidden": State(selected={"hidden_size": 24}),
    "auto": State(layers=3, selected=SMALL, through_auto=True),
}
LISTS = {
    "ElasticModel": "MODEL_MAPPING_NAMES",
    "ElasticForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "ElasticForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "ElasticForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "ElasticForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "ElasticForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "ElasticForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
}


def heads_of(family: str) -> list[type[ElasticPreTrainedModel]]:
    """The heads that the stock family has; a BERT that decodes is another BERT."""
    known = type(config_of(family))
    return [c for c in ELASTIC_CLASSES if known in c.base_auto_class._model_mapping and (family, c.__name__) != ("bert", CAUSAL)]


class Tester:
    """What the common tests ask a model tester for: a fresh config, inputs, and the sizes that outputs must have."""

    is_training = True
    batch_size = BATCH
    seq_length = encoder_seq_length = key_length = LENGTH
    num_choices = 4
    num_hidden_layers = 2

    def __init__(self, family: str, state: State, *, stock: bool):
        self.family, self.state, self.stock = family, state, stock
        sizes = state.frozen or state.selected or {}
        heads = sizes.get("num_attention_heads", 4)
        self.num_attention_heads = heads[0] if isinstance(heads, list) else heads
        self.hidden_size = sizes.get("hidden_size", 32)

    def get_config(self):
        """A fresh one, since tests change it."""
        if not self.stock:
            base = config_of(self.family, **_fields(self.family, {"num_hidden_layers": self.state.layers}))
            return ElasticConfig(base, subnet=self._sizes(self.state.selected), frozen=self._sizes(self.state.frozen))
        sizes = {"num_hidden_layers": 2, **(self._sizes(self.state.selected) or {})}
        if self.family in ("bert", "gpt2", "modernbert"):  # a stock config has heads of hidden size / heads only
            sizes.pop("num_attention_heads", None)
        return config_of(self.family, **_fields(self.family, sizes))

    def _sizes(self, sizes: dict | None) -> dict | None:
        if sizes and "num_attention_heads" in sizes and self.family in ("llama", "qwen3"):
            heads = sizes["num_attention_heads"]
            groups = [n // 2 for n in heads] if isinstance(heads, list) else heads // 2
            return {**sizes, "num_key_value_heads": groups}
        return None if sizes is None else dict(sizes)

    def prepare_config_and_inputs_for_common(self):
        """The config, and a batch without padding."""
        ids = torch.randint(5, VOCAB, (BATCH, LENGTH))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.family == "bert":
            inputs["token_type_ids"] = torch.zeros_like(ids)
        return self.get_config(), inputs


def _fields(family: str, sizes: dict) -> dict:
    """Sizes under the names of the stock config."""
    names = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "intermediate_size": "n_inner"}
    names = {**names, "hidden_size": "n_embd"} if family == "gpt2" else {}
    return {names.get(key, key): value for key, value in sizes.items()}


class ThroughAuto(type):
    """A stand-in for a model class that is called, and loads, by its Auto class."""

    def __call__(cls, config, **kwargs):
        return cls.auto_class.from_config(config, **kwargs)

    def __getattr__(cls, name):
        return getattr(cls.model_class, name)


def through_auto(auto_class: type, model_class: type) -> type:
    """`model_class` as somebody sees it who uses `auto_class` only."""

    def from_pretrained(pretrained_model_name_or_path, *args, **kwargs):
        by = model_class if pretrained_model_name_or_path is None else auto_class
        return by.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    members = {"model_class": model_class, "auto_class": auto_class, "from_pretrained": staticmethod(from_pretrained)}
    return ThroughAuto(model_class.__name__, (), members)


@functools.cache
def case_class(
    family: str, state_name: str, elastic_class: type[ElasticPreTrainedModel], *, stock: bool
) -> type[unittest.TestCase]:
    """The common tests for one head in one state, or for its stock twin."""
    common = upstream_source.load()
    state = STATES[state_name]
    model_class = elastic_class.stock_class(config_of(family)) if stock else elastic_class
    if state.through_auto:
        model_class = through_auto(elastic_class.base_auto_class, model_class)
    mixins = [common.ModelTesterMixin]
    if elastic_class.__name__ == CAUSAL:
        mixins += [common.GenerationTesterMixin, common.training.TrainingTesterMixin]
    members = {
        "model_tester": Tester(family, state, stock=stock),
        "all_model_classes": (model_class,),
        "test_can_init_all_missing_weights_before_2023": True,  # stock models pass; without it the older ones are skipped
        # Weights outside the selected size are not used, and get no gradient: the flag is there for experts of the same kind.
        "test_all_params_have_gradient": stock or state.selected is None,
    }
    return type(f"{family}_{state_name}_{elastic_class.__name__}", (*mixins, unittest.TestCase), members)


@functools.cache
def config_class(family: str, *, stock: bool) -> type[unittest.TestCase]:
    """The common tests of configs, for the elastic config of a family or for the stock one."""
    tester = upstream_source.load().configuration.ConfigTester
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    kind, given = type(config_of(family)), _fields(family, sizes)
    if not stock:
        # Files have more of a base config than what differs from its defaults, and the tests want what they gave.
        base = ElasticConfig(kind(**given)).to_diff_dict()["base_config"]
        kind, given = ElasticConfig, {"base_config": base, "subnets": {"small": {"num_hidden_layers": 2}}}

    def as_test(name: str):
        return lambda self: getattr(tester(self, config_class=kind, **given), name)()

    names = [name for name in dir(tester) if name.startswith(("create_and_test_", "check_"))]
    return type(f"{family}_config", (unittest.TestCase,), {f"test_{name}": as_test(name) for name in names})


def methods(case: type[unittest.TestCase]) -> list[str]:
    """Names of all its common tests."""
    return unittest.defaultTestLoader.getTestCaseNames(case)


@dataclass(frozen=True)
class Outcome:
    """Whether a test "passed", was "skipped" or "failed", and why."""

    kind: str
    text: str = ""


def run(case: type[unittest.TestCase], method: str) -> Outcome:
    """Run one common test in this process."""
    torch.manual_seed(0)
    transformers.logging.set_verbosity_warning()  # some tests look for a warning
    result = unittest.TestResult()
    lists = {name: {**vars(modeling_auto)[name], "elastic": head} for head, name in LISTS.items()}
    common = upstream_source.load()
    # The common tests look up by the name of a class which inputs it takes, and some wait for a deprecation.
    with mock.patch.multiple(common, **lists), warnings.catch_warnings():
        warnings.simplefilter("always")
        case(method).run(result)
    wrong = [*result.failures, *result.errors]
    if wrong:
        return Outcome("failed", "\n".join(text for _, text in wrong))
    if result.skipped:
        return Outcome("skipped", result.skipped[0][1])
    return Outcome("passed")
