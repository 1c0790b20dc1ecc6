"""`hf-elastic search`: find the best sizes on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.files import check_output
from .common import parse
from .data import DataArguments, load_elastic, load_tokenizer, prepare_for


@dataclass
class SearchArguments(DataArguments):
    """What to search, and by which objectives."""

    output_dir: str = field(
        default="search", metadata={"help": "Folder for frontier.json, its pictures, report.html and the trials."}
    )
    objectives: list[str] = field(
        default_factory=lambda: ["accuracy", "latency"],
        metadata={
            "help": "accuracy, loss, perplexity, latency, peak_memory, parameters, flops, or a proxy that needs no data: "
            "decoder_parameters, attention_times_ffn, layer_capacity, capacity. The first one is the quality."
        },
    )
    constraints: list[str] = field(
        default_factory=list, metadata={"help": "Hard limits such as 'latency_ms<=10' or 'parameters<=20e6'."}
    )
    portability: str = field(default="any", metadata={"help": "any, or standard: only sizes that load without hf_elastic."})
    n_trials: int = field(default=64, metadata={"help": "Sizes to evaluate at most (count)."})
    population_size: int = field(default=16, metadata={"help": "Sizes per generation (count)."})
    algorithm: str | None = field(
        default=None,
        metadata={
            "help": "surrogate, nsga2, nsga3, tpe, random, exhaustive; default: exhaustive if n_trials allow it, else surrogate."
        },
    )
    storage: str | None = field(
        default=None,
        metadata={
            "help": "Where trials are kept and shared: a folder, a .db file or postgresql://...; default: OUTPUT_DIR/trials."
        },
    )
    study_name: str = field(default="search", metadata={"help": "Name of the study in the storage."})
    stale_after: int = field(
        default=60,
        metadata={"help": "After so long without a sign of it, the sizes of a process are evaluated by others (seconds)."},
    )
    split: str = field(default="validation", metadata={"help": "Split that the quality is measured on."})
    max_examples: int | None = field(default=None, metadata={"help": "Use only the first examples of the split (count)."})
    batch_size: int = field(default=32, metadata={"help": "Examples per batch of the quality measurement (count)."})
    latency_batch_size: int | None = field(
        default=None, metadata={"help": "Examples per timed forward (count); default: the profile's, else 1."}
    )
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Length of a timed forward (tokens); default: the profile's, else the median of the data."},
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
    force: bool = field(default=False, metadata={"help": "Take a profile of another machine; its costs stay predicted."})
    measure_at_most: int | None = field(
        default=None, metadata={"help": "With a profile: most sizes of the predicted frontier to measure (count); default: all."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the search."})
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that holds something else."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, search nothing."})


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([SearchArguments], argv, "search")
    run(args)
    return 0


def run(args: SearchArguments):
    """Search, and write `frontier.json`, `frontier.png`, `frontier.svg` and `report.html`; an interrupted search goes on.

    Returns:
        The `Frontier`.
    """
    from rich.console import Console

    from ..search import search_subnets
    from ..search.objectives import OBJECTIVES, Constraint
    from ..search.search import ALGORITHMS

    for name in args.objectives:
        if name not in OBJECTIVES:
            raise UserError(f"objectives: {name!r} is unknown; known: {', '.join(OBJECTIVES)}")
    for text in args.constraints:
        Constraint.parse(text)
    if args.algorithm not in (None, *ALGORITHMS):
        raise UserError(f"algorithm {args.algorithm!r} is unknown; allowed: {', '.join(ALGORITHMS)}")
    trials = check_output(args.output_dir, overwrite=True) / "trials"
    if not trials.exists():  # a folder with trials is an earlier, perhaps interrupted, run of this search
        check_output(args.output_dir, overwrite=args.overwrite)
    if args.dry_run:
        return None
    model = load_elastic(args.model)
    rows, collator = _rows(model, args)
    frontier = search_subnets(
        model,
        args.objectives,
        rows,
        constraints=args.constraints,
        portability=args.portability,
        n_trials=args.n_trials,
        population_size=args.population_size,
        algorithm=args.algorithm,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        latency_batch_size=args.latency_batch_size,
        data_collator=collator,
        threads=args.threads,
        runtime=args.runtime,
        phase=args.phase,
        latency_profile=args.latency_profile,
        force=args.force,
        measure_at_most=args.measure_at_most,
        seed=args.seed,
        storage=args.storage or trials,
        study_name=args.study_name,
        stale_after=args.stale_after,
    )
    folder = trials.parent
    frontier.save(folder / "frontier.json")
    if len(args.objectives) > 1:
        frontier.plot(folder / "frontier.png")
        frontier.plot(folder / "frontier.svg")
    frontier.report(folder / "report.html", f"Sizes of {args.model}")
    Console().print(frontier.table())
    for warning in frontier.facts.get("warnings", ()):
        print(f"warning: {warning}")
    return frontier


def _rows(model, args: SearchArguments):
    """The rows that quality is measured on and their collator; None, None where nothing is measured on data."""
    from ..search.objectives import QUALITY, Constraint

    if not {*args.objectives, *(Constraint.parse(text).name for text in args.constraints)} & set(QUALITY):
        return None, None
    data = prepare_for(model, load_tokenizer(args.model), args)
    if args.split not in data.splits:
        raise UserError(f"split: {args.split!r} is not in the data; it has: {', '.join(data.splits)}")
    rows = data.splits[args.split]
    if args.max_examples is not None:
        rows = rows.select(range(min(args.max_examples, len(rows))))
    return rows, data.collator
