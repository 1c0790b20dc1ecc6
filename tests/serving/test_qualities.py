"""Qualities of sizes, from the command line and from the files that evaluations and searches write."""

import json

import pytest
from served import save
from served_profiles import profile

pytest.importorskip("sentence_transformers", minversion="6")
from sentences import texts

import hf_elastic_cli
from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.data import Document, RetrievalData
from hf_elastic.retrieval.evaluate import evaluate_retrieval
from hf_elastic.retrieval.loading import load_denser
from hf_elastic.search.frontier import Frontier
from hf_elastic.search.objectives import Objective
from hf_elastic.search.point import Point
from hf_elastic.serving.config import SchedulerConfig
from hf_elastic.serving.loading import load_engine
from hf_elastic.serving.qualities import read_qualities
from hf_elastic.serving.run import make
from hf_elastic.serving.server_config import ServerConfig

pytestmark = pytest.mark.one_lane


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save("symmetric", tmp_path_factory.mktemp("qualities"))


def test_pairs():
    sizes = ["full", "a=b"]
    assert read_qualities(["full=1", "a=b=-0.5", "full=2"], sizes) == {"full": 2.0, "a=b": -0.5}
    for wrong, words in (
        ("huge=1", "'huge=1' is no file and names no size; give a file, or NAME=VALUE of full, a=b"),
        ("full", "names no size"),
        ("nowhere.json", "'nowhere.json' is no file"),
        ("full=good", "'good' of full is not"),
    ):
        with pytest.raises(UserError, match=words):
            read_qualities([wrong], sizes)


def test_of_an_evaluation(path, tmp_path, capsys):
    documents = [Document(f"d{place}", text) for place, text in enumerate(texts(12))]
    data = RetrievalData(documents, {"q": texts(12)[3]}, {"q": {"d3": 1}})
    results = evaluate_retrieval(
        load_denser(path, "cpu"), data, subnets=[None, "tiny"], metrics=["RR@10", "nDCG@10"], k=10, output_dir=tmp_path
    )
    file = str(tmp_path / "results.json")
    config = ServerConfig(quality=[file, "tiny=0.25"], profile_seconds=1e-9)
    reported = []
    _, scheduler = make(path, config, SchedulerConfig(latency_objective=60_000, max_batch_size=1), "cpu", reported.append)
    found = {size.name: size.quality for size in scheduler.costs.profile.sizes}
    assert found == {"full": results[None].scores.means["RR@10"], "small": None, "tiny": 0.25}
    assert f"quality: RR@10 of {file}; it does not have small" in reported
    profile([("full", 0.1, 9.0), ("tiny", 0.1, 3.0)]).save(tmp_path / "profile.json")
    command = ["simulate", "--profile", str(tmp_path / "profile.json"), "--duration", "2", "--load", "0.5"]
    assert hf_elastic_cli.main([*command, "--quality", file, "tiny=0.5", "--output_dir", str(tmp_path / "out")]) == 0
    assert f"quality: RR@10 of {file}\n" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert record["profile"]["sizes"] == {"full": found["full"], "tiny": 0.5}
    assert hf_elastic_cli.main([*command, "--quality", file, "huge=1"]) == 2
    assert "'huge=1' is no file and names no size" in capsys.readouterr().err


def test_of_a_search(path, tmp_path, capsys):
    engine = load_engine(path)
    objectives = [Objective("latency_ms", "minimize"), Objective("accuracy", "maximize")]
    points = [
        Point(engine.subnets["tiny"], {"accuracy": 0.5, "latency_ms": 1.0}),
        Point(engine.subnets["full"], {"accuracy": 0.9, "latency_ms": 4.0}, name="small"),
        Point({**engine.subnets["full"], "intermediate_size": 16}, {"accuracy": 0.8, "latency_ms": 3.0}),
    ]
    file = str(tmp_path / "frontier.json")

    def read(subnets=engine.subnets):
        return read_qualities([file], engine.sizes, subnets)

    Frontier(objectives, points, {}).save(file)
    assert read() == {"full": 0.9, "tiny": 0.5}
    assert capsys.readouterr().out == f"quality: accuracy of {file}; it does not have small\n"
    assert read({}) == {"small": 0.9}  # whose axes are not known
    Frontier(objectives, points[2:], {}).save(file)
    with pytest.raises(UserError, match="none of the sizes full, small, tiny"):
        read()
    Frontier(objectives[:1], points, {}).save(file)
    with pytest.raises(UserError, match="no objective that is maximised"):
        read()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sizes": {"full": 1}}', '{"sizes": {"full": {"metrics": {"a": "b"}}}}'])
def test_other_files(text, tmp_path):
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match="file has no qualities: "):
        read_qualities([str(tmp_path / "file")], ["full"])
