"""A search task of the standard library."""

import json
import subprocess
import sys

import pytest

from hf_elastic.core.errors import UserError
from hf_elastic.data.code_search import Pair, pairs_in, write_code_search

MODULE = '''
class Reader:
    @property
    def lines(self):
        """Return the number of lines that were read so far. It is 0 at first."""
        return self._lines

    async def close(self):
        """Close the file and forget all lines that it had."""
        self._lines = 0

def short():
    """Too short."""
    return 1

def nothing():
    """A function that has a docstring of some length, and no code."""
'''


def test_pairs_of_a_module(tmp_path):
    (tmp_path / "reader.py").write_text(MODULE)
    (tmp_path / "package").mkdir()
    for name in ("__init__", "copy"):
        (tmp_path / "package" / f"{name}.py").write_text(MODULE)
    assert pairs_in(tmp_path) == [
        Pair(
            "reader.py:4:lines",
            "Return the number of lines that were read so far.",
            "def lines(self): return self._lines",
        ),
        Pair("reader.py:8:close", "Close the file and forget all lines that it had.", "async def close(self): self._lines = 0"),
    ]
    with pytest.raises(UserError, match="no function with a docstring"):
        write_code_search(tmp_path / "out", stdlib=tmp_path / "nothing")


def test_the_collection_can_be_searched(tmp_path):
    pytest.importorskip("sentence_transformers", minversion="6")
    from hf_elastic.retrieval.data import load_retrieval

    counts = write_code_search(tmp_path / "one")
    assert counts["queries"] == 400 and counts["documents"] == 3000 and counts["texts"] > 3000
    data = load_retrieval(tmp_path / "one")
    texts = set((tmp_path / "one" / "texts.txt").read_text().splitlines())
    assert len(data.evaluated()) == 400 and not texts & set(data.queries.values())
    assert len({document.text for document in data.corpus}) == 3000
    subprocess.run([sys.executable, "-m", "hf_elastic.data.code_search", str(tmp_path / "other")], check=True)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "texts.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    row = json.loads((tmp_path / "one" / "corpus.jsonl").read_text().splitlines()[0])
    assert row["text"].startswith(("def ", "async def "))
