"""Where an elastic model may differ from its stock twin in the common tests: the one list, with the reasons."""

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Expected:
    """Cases in which an elastic model may fail, or skip, a common test that its stock twin passes.

    Attributes:
        test: pattern of the test's name.
        reason: why this is meant, or is no matter of ours.
        cases: patterns of `family-state-head`.
    """

    test: str
    reason: str
    cases: tuple[str, ...] = ("*",)

    def covers(self, case: str, test: str) -> bool:
        """Whether a test of a case is meant."""
        return fnmatchcase(test, self.test) and any(fnmatchcase(case, pattern) for pattern in self.cases)


EXPECTED = (
    Expected(
        "test_correct_missing_keys",
        "the test loads a stock checkpoint into the class under test: from_base makes it elastic, from_pretrained says so",
    ),
    Expected(
        "test_enable_input_require_grads_with_gradient_checkpointing",
        "embeddings of a cut width are slices: their gradient is at the full ones, where the test does not look, and it skips",
        ("*-hidden-*",),
    ),
    Expected(
        "test_causal_lm_loss_honors_shift_labels",
        "it looks for labels in the class's signature, and skips: only an instance has the signature of its architecture",
    ),
    Expected(
        "test_tied_head_has_a_tp_plan_entry",
        "the head of a cut width is a slice, and no module of the full model, in which the test looks for its name",
        ("*-hidden-*",),
    ),
    Expected(
        "test_create_and_test_config_*",
        "files say global_attn_every_n_layers for transformers 4.57 beside layer_types, and transformers 5 keeps what it reads",
        ("modernbert-config",),
    ),
    Expected(
        "test_can_init_all_missing_weights",
        "made from its config alone, a frozen model is cut from a full one: other draws of the same distribution",
        ("*-frozen-*",),
    ),
    Expected(
        "test_model_rope_scaling_from_config_1_dynamic",
        "the test wants a difference above 1e-5, and at these sizes of a model dynamic scaling makes one of 1e-5 to 2e-5",
        ("modernbert-small-*", "modernbert-frozen-*", "modernbert-auto-*"),
    ),
)
