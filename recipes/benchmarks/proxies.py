"""Every quality proxy in closed form, and every recorded one, against how well the models were in the end.

    python recipes/benchmarks/proxies.py --data-dir DATA_DIR

DATA_DIR has nas/lts_archai (GPT-2 and Transformer-XL, perplexity) and nas/training_free_nas (encoders, GLUE). Spearman's and
Kendall's rank correlation are over all models of a table. Concordance is the share of pairs that a proxy orders as training does,
among the pairs whose decoder parameters differ by at most 10% of the larger; a tie of the proxy counts as half.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from proxies_fit import FITTED_ON, fit_constants, fitted_within
from proxies_tables import Table as Recorded
from proxies_tables import read_tables
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, spearmanr

from hf_elastic.search.proxies.table import CLOSED_FORMS, PROXIES

BAND = 0.10
FEW = 100  # models: with fewer, nothing is fitted within a table
DECODER_PARAMETERS = PROXIES["decoder_parameters"].compute


def concordance(proxy: np.ndarray, quality: np.ndarray, parameters: np.ndarray, band: float = BAND) -> tuple[float, int]:
    """Share of pairs of nearly equal size that a proxy orders as the quality does, and how many such pairs there are.

    Args:
        proxy: larger is better, `[N]`; a tie counts as half.
        quality: larger is better, `[N]`; pairs of equal quality do not count.
        parameters: `[N]`.
        band: largest difference in parameters of a pair, as a share of the larger.

    Returns:
        the share, NaN if there is no such pair; and the number of pairs.
    """
    i, j = np.triu_indices(len(quality), 1)
    near = np.abs(parameters[i] - parameters[j]) <= band * np.maximum(parameters[i], parameters[j])
    near &= quality[i] != quality[j]
    i, j = i[near], j[near]
    agreement = np.sign(proxy[i] - proxy[j]) * np.sign(quality[i] - quality[j])
    return (float(((agreement + 1) / 2).mean()) if len(i) else float("nan")), len(i)


def score(proxy: np.ndarray, table: Recorded) -> tuple[float, float, float]:
    """Spearman's rho, Kendall's tau-b and the concordance of one proxy on one table."""
    near, _ = concordance(proxy, table.quality, DECODER_PARAMETERS(table.shapes))
    return float(spearmanr(proxy, table.quality)[0]), float(kendalltau(proxy, table.quality)[0]), near


def proxies_of(table: Recorded) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> where it is from, and its values on the models of a table, `[N]`."""
    computed = {name: (PROXIES[name].source, PROXIES[name].compute(table.shapes)) for name in CLOSED_FORMS}
    recorded = {name: ("recorded", values) for name, values in table.recorded.items()}
    if table.decoder_parameters is None or len(table.quality) < FEW:
        return {**computed, **recorded}
    return {**computed, **recorded, "fitted on nine tenths of this very table": ("no proxy", fitted_within(table))}


def show(console: Console, table: Recorded) -> None:
    """Print a table's scores, and how our count of decoder parameters compares with the table's own."""
    pairs = concordance(table.quality, table.quality, DECODER_PARAMETERS(table.shapes))[1]
    title = f"{table.name}: {len(table.quality)} models, quality {table.unit}, {pairs} pairs within {BAND:.0%}"
    printed = Table("proxy", "from", "Spearman", "Kendall", f"concordance within {BAND:.0%}", title=title, title_justify="left")
    for name, (source, values) in proxies_of(table).items():
        printed.add_row(name, source.split(",")[0], *(f"{number:.3f}" for number in score(values, table)))
    console.print(printed)
    if table.decoder_parameters is not None:
        difference = np.abs(DECODER_PARAMETERS(table.shapes) - table.decoder_parameters).max()
        console.print(f"largest difference between our decoder parameters and the table's own: {difference:.0f}\n")


def main() -> int:
    """Read the tables, score the proxies, print; 2 where a table is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with nas/lts_archai and nas/training_free_nas")
    arguments = parser.parse_args()
    try:
        tables = read_tables(arguments.data_dir)
    except FileNotFoundError as error:
        print(f"proxies.py: {error}", file=sys.stderr)
        return 2
    console = Console(width=120)
    for table in tables:
        show(console, table)
        if table.name == FITTED_ON and len(table.quality) >= FEW:
            share, heads, narrowness = fit_constants(table)
            console.print(
                f"the constants of capacity, fitted here: attention {share:.2f}, heads {heads:.2f}, w {narrowness:.0f}\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
