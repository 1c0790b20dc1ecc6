"""The data that `hf-elastic export` reads: rows to score on, and texts to calibrate with."""

from __future__ import annotations

from ..core.errors import UserError
from ..export.scoring import HeldOut
from .data import located, prepare_for

LONGEST = 128  # tokens of a text that heads are compared on


def read_held_out(args, model, tokenizer) -> HeldOut:
    """The test split of the data set, the validation split where it has none.

    Raises:
        UserError: as for `prepare`.
    """
    data = prepare_for(model, tokenizer, args)
    split = "test" if "test" in data.splits else "validation"
    rows = data.splits[split]
    if args.max_eval_rows is not None:
        rows = rows.select(range(min(args.max_eval_rows, len(rows))))
    return HeldOut.from_rows(model, rows, data.collator, f"{args.dataset}, {split}")


def merge_heads(args, model, subnet, tokenizer):
    """The size with fewer heads in the layers that have alike ones, on the texts of the calibration, else on embedded ones.

    Raises:
        UserError: as for `merge_alike_heads`.
    """
    from ..core.space import HEADS
    from ..data.calibration import calibration_batches
    from ..search.heads import merge_alike_heads
    from ..utils.lengths import longest_sequence

    texts = read_calibration(args) if args.calibration or args.dataset else None
    batches = calibration_batches(tokenizer, texts, max_length=min(LONGEST, longest_sequence(model.base)))
    merged = merge_alike_heads(model, subnet, batches, args.alike_heads)
    print(f"heads: {merged[HEADS]} in each layer, of {model.subnet(subnet)[HEADS]}")
    return merged


def read_calibration(args) -> list:
    """Texts, or pairs of texts, of `calibration`; of the training rows of `dataset` where there is no other.

    Raises:
        FileNotFoundError: there is no such data set.
        UserError: it lacks the text columns; names those that it has.
    """
    from ..data.loading import load_text_dataset

    own = args.calibration is not None
    rows = load_text_dataset(
        located(args.calibration or args.dataset, args.data_dir), config=None if own else args.dataset_config
    )
    train = rows["train"].shuffle(seed=0)
    columns = _text_columns(train, args.text_columns, "calibration" if own else "dataset")
    chosen = train.select(range(min(args.calibration_rows, len(train))))
    texts = [chosen[column][:] for column in columns]
    return list(texts[0]) if len(texts) == 1 else [tuple(pair) for pair in zip(*texts)]


def _text_columns(rows, given: list[str] | None, option: str) -> list[str]:
    """Labels are of no interest here, so the columns are looked up as in `columns_of`, without them."""
    from ..data.loading import TEXT_PAIRS, TEXT_SINGLES

    candidates = [tuple(given)] if given else [*TEXT_PAIRS, *TEXT_SINGLES]
    present = rows.column_names
    for names in candidates:
        names = (names,) if isinstance(names, str) else tuple(names)
        if all(name in present for name in names):
            wrong = [name for name in names if rows.features[name].dtype not in ("string", "large_string")]
            if wrong:
                raise UserError(f"{option}: the column {wrong[0]!r} holds {rows.features[wrong[0]].dtype}, no text")
            return list(names)
    wanted = " and ".join(given) if given else "text, sentence, or sentence1 and sentence2 (or give text_columns)"
    raise UserError(f"{option}: no text to calibrate with: it has the columns {', '.join(present)}; needed: {wanted}")
