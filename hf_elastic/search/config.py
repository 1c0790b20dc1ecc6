"""What `search_subnets`, `hf-elastic search` and its recipes are told."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.options import check_integers

PORTABILITY = ("any", "standard")
DEFAULT_LENGTH = 128


@dataclass
class SearchConfig:
    """What to optimise, how to look for it, and what is timed.

    In Python `objectives` may also have `Objective`s of one's own, and `latency_profile` may be a `DeviceProfile`.

    Raises:
        ValueError: a value that is not allowed.
        ImportError: the runtime is not installed.
    """

    objectives: list[str] = field(
        default_factory=lambda: ["accuracy", "latency"],
        metadata={
            "help": "accuracy, loss, perplexity, f1, matthews_correlation, pearson, spearmanr, mse (what the head has), latency, "
            "peak_memory, parameters, flops, output_change (by what a size skips or drops, on text without labels), "
            "or a proxy: of the shapes alone (decoder_parameters, attention_times_ffn, layer_capacity, capacity), of the weights "
            "(synflow), or of the weights on one batch (snip, grad_norm, head_importance, head_confidence, synaptic_saliency, "
            "synaptic_diversity, v_pca, w_pca). "
            "The first one is the quality."
        },
    )
    constraints: list[str] = field(
        default_factory=list, metadata={"help": "Hard limits such as 'latency_ms<=10' or 'parameters<=20e6'."}
    )
    portability: str = field(default="any", metadata={"help": "any, or standard: only sizes that load without hf_elastic."})
    n_trials: int = field(
        default=64, metadata={"help": "Sizes to evaluate at most, those found in the storage included (count)."}
    )
    population_size: int = field(
        default=16, metadata={"help": "Sizes per generation, whose latencies are measured side by side (count)."}
    )
    algorithm: str | None = field(
        default=None,
        metadata={
            "help": "surrogate, evolution, nsga2, nsga3, tpe, random, exhaustive; default: exhaustive if n_trials allow it, "
            "else surrogate."
        },
    )
    storage: str | None = field(
        default=None,
        metadata={
            "help": "Where trials are kept and shared: a folder, a .db file or postgresql://USER@HOST/DATABASE; default: "
            "OUTPUT_DIR/trials, in Python nowhere."
        },
    )
    study_name: str = field(default="search", metadata={"help": "Name of the study in the storage."})
    stale_after: int = field(
        default=60,
        metadata={"help": "After so long without a sign of it, the sizes of a process are evaluated by others (seconds)."},
    )
    batch_size: int = field(default=32, metadata={"help": "Examples per batch of the quality measurement (count)."})
    latency_batch_size: int | None = field(
        default=None, metadata={"help": "Examples per timed forward (count); default: the profile's, else 1."}
    )
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Length of a timed forward (tokens); default: the profile's, else the median of the data, else 128."},
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads of a timed forward; default: the profile's, else torch's."}
    )
    runtime: str | None = field(
        default=None,
        metadata={"help": "What is timed with: torch, torch.compile, onnxruntime, openvino; default: the profile's, else torch."},
    )
    phase: str | None = field(
        default=None,
        metadata={"help": "What is timed: forward; for causal models also prefill, token; default: the profile's, else forward."},
    )
    latency_profile: str | None = field(
        default=None,
        metadata={"help": "A profile by hf-elastic measure, to predict costs from; the frontier is measured all the same."},
    )
    force: bool = field(
        default=False,
        metadata={"help": "Take a profile of another machine, version or number of threads; its costs stay predicted."},
    )
    measure_at_most: int | None = field(
        default=None, metadata={"help": "With a profile: most sizes of the predicted frontier to measure (count); default: all."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the search, of the timed input and of a random collator."})

    def __post_init__(self):
        self.goals, self.limits  # noqa: B018 - reading them checks them
        if self.portability not in PORTABILITY:
            raise UserError(f"portability {self.portability!r} is unknown; allowed: {', '.join(PORTABILITY)}")
        if self.algorithm is not None:
            from .algorithms.table import ALGORITHMS  # Optuna takes long to import

            if self.algorithm not in ALGORITHMS:
                raise UserError(f"algorithm {self.algorithm!r} is unknown; allowed: {', '.join(ALGORITHMS)}")
        check_integers(1, n_trials=self.n_trials, batch_size=self.batch_size)
        shape = {"latency_batch_size": self.latency_batch_size, "sequence_length": self.sequence_length, "threads": self.threads}
        check_integers(1, or_none=True, **shape)
        check_integers(2, population_size=self.population_size, stale_after=self.stale_after)
        check_integers(0, seed=self.seed)
        check_integers(0, or_none=True, measure_at_most=self.measure_at_most)
        self.workload(DEFAULT_LENGTH)

    @property
    def goals(self):
        """The objectives, a list of `Objective`."""
        from .objectives import read_objectives  # it needs the models, and --help does not

        return read_objectives(self.objectives)

    @property
    def limits(self):
        """The constraints, a list of `Constraint`."""
        from .objectives import read_constraints

        return read_constraints(self.constraints)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the values that every size must have."""
        return tuple(dict.fromkeys([one.name for one in (*self.goals, *self.limits)]))

    def workload(self, median_length: int):
        """What is timed, a `Workload`; as long as the data where no length is given."""
        from ..measure.workload import Workload

        given = {"batch_size": self.latency_batch_size, "runtime": self.runtime, "phase": self.phase}
        given = {name: value for name, value in given.items() if value is not None}
        return Workload(sequence_length=self.sequence_length or median_length, threads=self.threads, seed=self.seed, **given)

    def check_known(self) -> None:
        """Raise UserError for a value that only a `compute_quality` of the caller's could compute."""
        from .objectives import OBJECTIVES

        known = {one.name: one for one in OBJECTIVES.values()}
        for one in self.goals:
            if known.get(one.name) != one:
                raise UserError(f"objective {one.name!r} is not known to the search; give compute_quality, which computes it")
        for one in self.limits:
            if one.name not in known:
                raise UserError(f"constraint '{one}': unknown value {one.name!r}; known: {', '.join(known)}")

    def check_profiled(self, profiled) -> None:
        """Raise UserError if an option that is given is not as in the `Workload` of the profile."""
        asked = {
            "latency_batch_size": (self.latency_batch_size, profiled.batch_size),
            "sequence_length": (self.sequence_length, profiled.sequence_length),
            "threads": (self.threads, profiled.threads),
            "runtime": (self.runtime, profiled.runtime),
            "phase": (self.phase, profiled.phase),
        }
        for option, (value, measured) in asked.items():
            if value is not None and value != measured:
                raise UserError(
                    f"{option}: {value!r} is asked for, and the profile was measured with {measured!r}; "
                    "leave the option out, or measure another profile"
                )
