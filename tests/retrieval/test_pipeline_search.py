"""A search over the settings of two stages: quality, latency, and the best one for a budget."""

import json
from itertools import product

import pytest

pytest.importorskip("sentence_transformers", minversion="6")
pytest.importorskip("faiss")
pytest.importorskip("ir_measures")

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentences import make_denser, make_ranker, save_cross_encoder, save_sentence_transformer
from test_evaluate_retrieval import write_folder
from tiny_search import make_data

from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError
from hf_elastic.retrieval import RetrievalPipeline, search_pipeline
from hf_elastic.retrieval.data import RetrievalData
from hf_elastic.retrieval.index import Index
from hf_elastic.retrieval.metrics import score_run
from hf_elastic.search import Frontier

pytestmark = pytest.mark.one_lane

DATA = make_data()
DOCUMENTS = {document.id: document.text for document in DATA.corpus}
SIZES = ("full", "small", "tiny")
REPEATS = 3


class Counted(RetrievalPipeline):
    """Notes how many queries each call is about."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.encoded, self.reranked = [], []

    def encode(self, queries, denser_subnet=None):
        self.encoded.append((len(queries), denser_subnet))
        return super().encode(queries, denser_subnet)

    def rerank(self, queries, found, ranker_subnet=None):
        self.reranked.append((len(queries), ranker_subnet))
        return super().rerank(queries, found, ranker_subnet)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, stock and elastic, a collection, and its index."""
    folder = tmp_path_factory.mktemp("pipeline")
    stock = save_sentence_transformer(folder), save_cross_encoder(folder)
    denser, ranker = make_denser(stock[0])[0], make_ranker(stock[1])[0]
    denser.save_pretrained(str(folder / "denser"))
    ranker.save_pretrained(str(folder / "ranker"))
    write_folder(DATA, folder / "data")
    filled(denser).save(folder / "index")
    return folder


def filled(model):
    index = Index.create(model)
    index.add(list(DOCUMENTS), list(DOCUMENTS.values()))
    return index


@pytest.fixture(scope="module")
def pipeline(folder):
    denser, ranker = make_denser(str(folder / "sentence"))[0], make_ranker(str(folder / "cross"))[0]
    return Counted(denser, filled(denser), DOCUMENTS, ranker, 15, "small", "small")


@pytest.fixture(scope="module")
def searched(pipeline):
    """What was found, and the calls that it took."""
    pipeline.encoded.clear()
    pipeline.reranked.clear()
    found = search_pipeline(pipeline, DATA, ks=[0, 10, 20], repeats=REPEATS)
    return found, list(pipeline.encoded), list(pipeline.reranked)


@pytest.fixture(scope="module")
def frontier(searched):
    return searched[0]


def test_each_setting_is_as_good_as_its_searches(frontier, pipeline):
    queries = DATA.evaluated()
    wanted = [{"denser_subnet": one, "k": 0} for one in SIZES]
    wanted += [{"denser_subnet": one, "k": k, "ranker_subnet": two} for one, k, two in product(SIZES, (10, 20), SIZES)]
    assert sorted(map(json.dumps, (point.subnet for point in frontier.evaluated))) == sorted(map(json.dumps, wanted))
    for point in frontier.evaluated:
        found = pipeline.search(list(queries.values()), **point.subnet)
        run = {query: {hit.id: hit.score for hit in hits} for query, hits in zip(queries, found)}
        assert point.values["nDCG@10"] == pytest.approx(score_run(run, DATA, ["nDCG@10"]).means["nDCG@10"])
    assert len({point.values["nDCG@10"] for point in frontier.evaluated}) > 10
    names = {point.name: point.subnet for point in frontier.evaluated}
    assert names["full"] == {"denser_subnet": "full", "k": 20, "ranker_subnet": "full"}
    assert names["small alone"] == {"denser_subnet": "small", "k": 0} and len(names) == len(wanted)
    assert names["tiny, 10 by full"] == {"denser_subnet": "tiny", "k": 10, "ranker_subnet": "full"}


def test_nothing_is_computed_twice(searched):
    for calls in searched[1:]:
        assert [size for count, size in calls if count == len(DATA.evaluated())] == list(SIZES)
        assert {count for count, _ in calls} == {1, len(DATA.evaluated())}  # by itself each is timed


def test_latency_is_that_of_the_stages(frontier):
    times = {}
    for point in frontier.evaluated:
        values, subnet = point.values, point.subnet
        low, high = point.details["latency_ms"]
        assert 0 < low <= values["latency_ms"] <= high
        assert set(values) - {"nDCG@10", "latency_ms"} == {"denser_ms"} | ({"ranker_ms"} if subnet["k"] else set())
        times.setdefault(("denser", subnet["denser_subnet"], subnet["k"]), set()).add(values["denser_ms"])
        if subnet["k"]:
            times.setdefault(("ranker", subnet["ranker_subnet"], subnet["k"]), set()).add(values["ranker_ms"])
            # Of three sums, and of three numbers each: the middle sum is between the least and the greatest sums.
            assert high > values["denser_ms"] and high > values["ranker_ms"]
        else:
            assert values["latency_ms"] == values["denser_ms"]
    assert all(len(found) == 1 for found in times.values()) and len(times) == 3 * 3 + 3 * 2
    assert frontier.facts["queries"] == 12 and frontier.facts["timed_queries"] == REPEATS
    assert any("fewer than 6 samples" in warning for warning in frontier.facts["warnings"])
    assert not any("wider than" in warning for warning in frontier.facts["warnings"])


def test_the_best_for_a_budget(frontier, pipeline, tmp_path):
    frontier.save(tmp_path / "frontier.json")
    again = Frontier.load(tmp_path / "frontier.json")
    for budget in sorted(point.values["latency_ms"] for point in frontier.evaluated):
        best = again.best(latency_ms=budget)
        within = [point for point in frontier.evaluated if point.values["latency_ms"] <= budget]
        assert best.values["nDCG@10"] == max(point.values["nDCG@10"] for point in within)
        assert len(pipeline.search(["word1"], **best.subnet)[0]) == 10
    with pytest.raises(UserError, match="no point has latency_ms <= 0; closest available: latency_ms="):
        again.best(latency_ms=0)
    frontier.plot(tmp_path / "frontier.svg")
    drawn = (tmp_path / "frontier.svg").read_text()
    assert "nDCG@10" in drawn and "L layers" not in drawn


def test_one_stage_and_plain_models(folder):
    stock = SentenceTransformer(str(folder / "sentence"), device="cpu"), CrossEncoder(str(folder / "cross"), device="cpu")
    pipeline = RetrievalPipeline(stock[0], filled(stock[0]), DOCUMENTS, stock[1])
    found = search_pipeline(pipeline, DATA, metric="R@3", top=12, repeats=1)
    assert [point.subnet for point in found.evaluated] == [{"k": k} for k in (0, 20, 50, 100)]
    assert [point.name for point in found.evaluated] == ["full alone", "full, 20 by full", "full, 50 by full", "full"]
    alone = search_pipeline(RetrievalPipeline(stock[0], pipeline.index, DOCUMENTS), DATA, metric="R@3", repeats=1)
    assert [(point.name, point.subnet) for point in alone.evaluated] == [("full", {"k": 0})]
    assert alone.evaluated[0].values["R@3"] == found.evaluated[0].values["R@3"]


def test_a_symmetric_denser_is_searched_at_the_size_of_its_index(folder):
    denser, _ = make_denser(str(folder / "sentence"), mode="symmetric")
    pipeline = RetrievalPipeline(denser, filled(denser), DOCUMENTS)
    assert [point.subnet for point in search_pipeline(pipeline, DATA, repeats=1).evaluated] == [{"denser_subnet": "full", "k": 0}]
    with pytest.raises(UserError, match="the index belongs to the document tower of"):
        search_pipeline(pipeline, DATA, [None, "small"], repeats=1)


def test_answers_are_looked_for_in_one_pass(pipeline):
    class Corpus(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    corpus = Corpus(DATA.corpus)
    answers = {query: [DOCUMENTS[next(iter(found))].split()[0]] for query, found in DATA.qrels.items()}
    data = RetrievalData(corpus, DATA.queries, answers=answers)
    score_run({}, data, ["Answer@5"])
    before = corpus.passes
    found = search_pipeline(pipeline, data, ["tiny"], [0, 10], ["tiny", "small"], metric="Answer@5", repeats=1)
    assert len(found.evaluated) == 3 and corpus.passes - before <= 2
    for point in found.evaluated:
        hits = pipeline.search(list(DATA.evaluated().values()), **point.subnet)
        run = {query: {hit.id: hit.score for hit in row} for query, row in zip(DATA.evaluated(), hits)}
        assert point.values["Answer@5"] == score_run(run, data, ["Answer@5"]).means["Answer@5"]


REFUSED = {
    "no such size": ({"denser_subnets": ["small", "huge"]}, "unknown subnet 'huge'"),
    "no such size of the ranker": ({"ranker_subnets": ["huge"]}, "unknown subnet 'huge'"),
    "a size twice": ({"denser_subnets": [None, "full"]}, "denser_subnets: needed are sizes, each once; got full, full"),
    "no sizes": ({"ranker_subnets": []}, "ranker_subnets: needed are sizes, each once; got none"),
    "a k twice": ({"ks": [10, 10]}, "ks: needed are numbers, each once; got 10, 10"),
    "no k": ({"ks": []}, "ks: needed are numbers, each once; got none"),
    "few candidates": ({"ks": [0, 5]}, "ks: 5 candidates are fewer than the 10 hits"),
    "below zero": ({"ks": [-1]}, "ks must be an integer of at least 0, got -1"),
    "no such metric": ({"metric": "best"}, "metrics: 'best' is none of ir_measures"),
    "a deeper metric": ({"metric": "R@20"}, "R@20 looks at 20 documents for each query, and k=10 are searched for"),
    "no answers": ({"metric": "Answer@5"}, "Answer@5: tiny has no answers"),
    "no rounds": ({"repeats": 0}, "repeats must be an integer of at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_the_work(name, pipeline):
    pipeline.encoded.clear()
    options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        search_pipeline(pipeline, DATA, **options)
    assert not pipeline.encoded


def test_without_a_ranker(pipeline):
    alone = RetrievalPipeline(pipeline.denser, pipeline.index, DOCUMENTS)
    with pytest.raises(UserError, match="ranker_subnets: the pipeline has no ranker"):
        search_pipeline(alone, DATA, ranker_subnets=[None])
    with pytest.raises(UserError, match="ks: 10, and the pipeline has no ranker"):
        search_pipeline(alone, DATA, ks=[10])


COMMAND = "--model {f}/denser --index {f}/index --data {f}/data --ranker {f}/ranker --device cpu --output_dir {t}/out"
QUICK = "--ks 0 10 --denser_subnets small tiny --ranker_subnets tiny --repeats 2 --max_queries 5"


def test_the_command(folder, tmp_path, capsys):
    line = f"retrieve search {COMMAND} {QUICK}".format(f=folder, t=tmp_path)
    assert main(line.split()) == 0
    printed = capsys.readouterr().out
    assert (
        "4 evaluated subnets are on the frontier" in printed
        and f"written: {tmp_path / 'out'}" in printed
        and "warning: " in printed
    )
    frontier = Frontier.load(tmp_path / "out" / "frontier.json")
    assert [point.subnet for point in frontier.evaluated] == [
        setting
        for size in ("small", "tiny")
        for setting in (
            {"denser_subnet": size, "k": 0},
            {"denser_subnet": size, "k": 10, "ranker_subnet": "tiny"},
        )
    ]
    assert frontier.facts["queries"] == 5 and frontier.facts["data"] == "data"
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert main(line.split()) == 2
    assert "is not empty; add --overwrite" in capsys.readouterr().err
    alone = line.replace(f"--ranker {folder}/ranker", "").replace("--ranker_subnets tiny", "").replace("--ks 0 10", "")
    assert main([*alone.split(), "--overwrite"]) == 0
    assert [point.name for point in Frontier.load(tmp_path / "out" / "frontier.json").evaluated] == ["small", "tiny"]


def test_the_command_and_a_symmetric_model(folder, tmp_path, capsys):
    denser, _ = make_denser(str(folder / "sentence"), mode="symmetric")
    denser.save_pretrained(str(tmp_path / "denser"))
    filled(denser.tower("document", "small")).save(tmp_path / "index")
    line = f"retrieve search --model {tmp_path}/denser --index {tmp_path}/index --data {folder}/data --repeats 1 --output_dir"
    assert main([*line.split(), str(tmp_path / "full")]) == 2
    assert "belongs to the document tower of" in capsys.readouterr().err
    assert main([*line.split(), str(tmp_path / "small"), "--denser_subnets", "small"]) == 0
    (found,) = Frontier.load(tmp_path / "small" / "frontier.json").evaluated
    assert found.subnet == {"denser_subnet": "small", "k": 0}


BAD = {
    "no model": ("--model {t}/none", "model: '{t}/none' cannot be loaded"),
    "no ranker": ("--ranker {t}/none", "'{t}/none' cannot be loaded"),
    "no index": ("--index {t}", "{t} is no index, it has no index.json"),
    "another model": ("--model {f}/other/sentence", "belongs to the document tower of"),
    "no data": ("--data {t}/none", "{t}/none: no such folder"),
    "no such split": ("--split dev", "has no file of judgements of the split 'dev'"),
    "no size": ("--denser_subnets huge", "unknown subnet 'huge'"),
    "no JSON": ("--denser_subnets {{", "denser_subnets: '{{' is neither"),
    "no number": ("--ks ten", "argument --ks: invalid int value: 'ten'"),
    "below zero": ("--ks -1", "ks must be an integer of at least 0"),
    "few candidates": ("--ks 5", "ks: 5 candidates are fewer than the 10 hits"),
    "no queries": ("--max_queries 0", "max_queries must be an integer of at least 1"),
    "no rounds": ("--repeats 0", "repeats must be an integer of at least 1"),
    "no metric": ("--metric best", "metrics: 'best' is none of ir_measures"),
    "no device": ("--device abacus", "device: 'abacus' cannot be used here"),
    "over the index": ("--output_dir {f}/index --overwrite", "output_dir: {f}/index is index"),
    "a text is missing": ("--corpus {t}/part.jsonl --drop_unknown true", "documents: there is no text for 'd"),
    "unknown": ("--wings 2", "unknown argument '--wings'; see hf-elastic retrieve search --help"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_command_refuses(name, folder, tmp_path, capsys):
    options, message = BAD[name]
    lines = (folder / "data" / "corpus.jsonl").read_text().splitlines()[:10]
    (tmp_path / "part.jsonl").write_text("\n".join(lines))
    if not (folder / "other").exists():
        (folder / "other").mkdir()
        save_sentence_transformer(folder / "other", num_hidden_layers=2)
    try:
        status = main(["retrieve", "search", *f"{COMMAND} --repeats 1 {options}".format(f=folder, t=tmp_path).split()])
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if "error: " in line]
    assert status == 2 and len(errors) == 1 and message.format(f=folder, t=tmp_path) in errors[0], printed
    assert "Traceback" not in printed and not (tmp_path / "out").exists()
