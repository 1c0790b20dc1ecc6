import sqlite3

import pytest
import torch
from searching import PER_LAYER, SMALL, Quality, classification_rows, classifier, subnets_of

from hf_elastic.search import search_subnets

pytestmark = pytest.mark.one_lane


@pytest.mark.parametrize("name", ["folder", pytest.param("file.db", marks=pytest.mark.slow)])
def test_a_finished_search_is_not_done_again(tmp_path, timed, name):
    options = {"storage": tmp_path / name, "n_trials": 9, "population_size": 4, "sequence_length": 4, "progress": False}
    first, again, more = Quality(), Quality(), Quality()
    one = search_subnets(classifier(PER_LAYER), compute_quality=first, **options)
    two = search_subnets(classifier(PER_LAYER), compute_quality=again, **options)
    assert len(first.views) == 9 and not again.views
    assert sorted(subnets_of(one.evaluated)) == sorted(subnets_of(two.evaluated))
    assert {p.name for p in two.evaluated} == {"full", "smallest", None}
    more_trials = search_subnets(classifier(PER_LAYER), compute_quality=more, **{**options, "n_trials": 14})
    assert len(more.views) == 5 and len(more_trials.evaluated) == 14


def test_an_interrupted_search_takes_the_same_course(tmp_path, timed):
    options = {"n_trials": 16, "population_size": 4, "sequence_length": 4, "progress": False}
    whole = search_subnets(classifier(PER_LAYER), compute_quality=Quality(), **options)

    class Interrupted(Quality):
        def __call__(self, view):
            if len(self.views) == 11:
                raise KeyboardInterrupt
            return super().__call__(view)

    with pytest.raises(KeyboardInterrupt):
        search_subnets(classifier(PER_LAYER), compute_quality=Interrupted(), storage=tmp_path, **options)
    rest = Quality()
    resumed = search_subnets(classifier(PER_LAYER), compute_quality=rest, storage=tmp_path, **options)
    assert len(rest.views) == 5
    assert sorted(subnets_of(resumed.evaluated)) == sorted(subnets_of(whole.evaluated))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The options of a finished search, and its rows."""
    rows = classification_rows()
    options = {"objectives": ["loss", "flops"], "storage": str(tmp_path_factory.mktemp("stored")), "progress": False}
    search_subnets(classifier(), eval_dataset=rows, **options)
    return options, rows


@pytest.mark.parametrize("change", ["weights", "objectives", "constraints", "data", "space", "length"])
def test_storage_of_another_search_is_refused(stored, change):
    options, rows = stored
    model = classifier({"num_hidden_layers": [2, 4]} if change == "space" else SMALL)
    if change == "weights":
        with torch.no_grad():
            model.base.classifier.bias += 1e-3
    other = {
        "objectives": {"objectives": ["loss", "flops", "accuracy"]},
        "constraints": {"constraints": ["loss<=9"]},
        "length": {"sequence_length": 40},
    }.get(change, {})
    named = {"weights": "model", "length": "latency"}.get(change, change)
    with pytest.raises(ValueError, match=rf"belongs to another search.*{named} was"):
        search_subnets(model, eval_dataset=rows[1:] if change == "data" else rows, **{**options, **other})


def test_storage_that_is_something_else_is_refused(tmp_path):
    arguments = {"objectives": ["parameters"], "progress": False}
    text = tmp_path / "text.db"
    text.write_text("not a data base " * 100)
    with pytest.raises(ValueError, match=r"text\.db: cannot be used: file is not a database"):
        search_subnets(classifier(), storage=text, **arguments)
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(ValueError, match=r"other\.db: is no search storage: it has the tables songs"):
        search_subnets(classifier(), storage=tmp_path / "other.db", **arguments)
    with pytest.raises(ValueError, match=r"text\.txt: cannot be opened"):
        (tmp_path / "text.txt").write_text("")
        search_subnets(classifier(), storage=tmp_path / "text.txt", **arguments)
