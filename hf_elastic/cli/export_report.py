"""What `hf-elastic export` prints of the files that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..export import FORMATS

WIDTH = 110  # of the table in a file (columns)


def report(records: Mapping[str, Mapping], output_dir: Path, layout: str) -> None:
    """A line for each format; with held-out rows a table of size, accuracy and, where it was timed, latency."""
    for name, record in records.items():
        where = FORMATS[name].place(output_dir, layout)
        difference, agreement = record["max_abs_difference"], record["argmax_agreement"]
        print(f"{name}: {where}, largest difference {difference:.2g}, same decision {agreement:.1%}")
        for kept in record.get("quantization", {}).get("kept_in_float", []):
            print(f"{name}: kept in float: {kept['node']} ({kept['weight']})")
    scored = {name: record for name, record in records.items() if "held_out" in record}
    if scored:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console.width = WIDTH
        console.print(table_of(scored))
        for name, record in scored.items():
            for doubt in record.get("latency", {}).get("warnings", ()):
                print(f"warning: {name}: {doubt}")


def table_of(records: Mapping[str, Mapping]):
    """Formats that were scored, under the full model and the size that they came from; all are compared with the full one."""
    from rich.table import Table

    held_out = next(iter(records.values()))["held_out"]
    metrics = list(held_out["view"])
    title = f"{held_out['rows']:,} rows of {held_out['name']}"
    timed = next((record for record in records.values() if "latency" in record), {})
    if timed:
        title += f"; latency: one sequence of {timed['latency']['sequence_length']} tokens, 95% interval"
    table = Table("format", "MB", *metrics, "points lost", "latency", "as fast", title=title, title_justify="left")
    rows = [("full size, torch", "full", timed, ""), ("this size, torch", "view", timed, "")]
    rows += [(name, "file", record, f"{record['size_mb']:.1f}") for name, record in records.items()]
    for name, which, record, megabytes in rows:
        scores = record.get("held_out", held_out)[which]
        values = [_metric(metric, scores[metric]) for metric in metrics]
        lost = f"{100 * (held_out['full']['accuracy'] - scores['accuracy']):+.2f}" if "accuracy" in scores else ""
        table.add_row(name, megabytes, *values, lost, _times(record, which), _speed(record, which))
    return table


def _speed(record: Mapping, which: str) -> str:
    latency = record.get("latency")
    return f"{latency['full_ms'] / latency[f'{which}_ms']:.1f}x" if latency else ""


def _metric(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "perplexity" else f"{value:.2%}" if name == "accuracy" else f"{value:.3f}"


def _times(record: Mapping, which: str) -> str:
    if "latency" not in record:
        return ""
    low, high = record["latency"][f"{which}_interval_ms"]
    return f"{record['latency'][f'{which}_ms']:.2f} ms [{low:.2f}, {high:.2f}]"


def report_vocabulary(report: Mapping) -> None:
    """A line of what pruning the vocabulary saved."""
    print(
        f"vocabulary: {report['vocabulary_before']:,} -> {report['vocabulary_after']:,} tokens, "
        f"{report['parameters_saved']:,} parameters ({report['megabytes_saved']:.1f} MB) less; "
        f"{report['corpus_tokens_unchanged']:.0%} of "
        f"{report['corpus_tokens']:,} corpus tokens unchanged, largest difference of outputs {report['max_abs_difference']:.2g}"
    )
