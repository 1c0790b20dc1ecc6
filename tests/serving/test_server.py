"""The routes over real HTTP, with the clients that people use."""

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served import LABELS, Client, Stopped, save, serving, until

pytest.importorskip("sentence_transformers", minversion="6")
from huggingface_hub import InferenceClient, constants
from sentences import texts
from tiny import WORDS
from transformers import AutoTokenizer

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.retrieval.loading import load_denser, load_ranker

pytestmark = pytest.mark.one_lane

TEXTS = texts(30)
SIZES = ["full", "small", "tiny"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    path = save("symmetric", tmp_path_factory.mktemp("embedder"))
    with serving(path) as (client, worker):
        yield client, worker, load_denser(path, "cpu")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    path = save("ranker", tmp_path_factory.mktemp("ranker"))
    with serving(path) as (client, _):
        yield client, load_ranker(path, "cpu")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = save("classifier", tmp_path_factory.mktemp("classifier"))
    with serving(path) as (client, _):
        yield client, ElasticForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def at(name):
    return {"x-elastic-subnet": name}


def assert_close(found, expected):
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_embed(name, embedder):
    client, _, model = embedder
    response = client.post("/embed", json={"inputs": TEXTS}, headers=at(name))
    assert response.status_code == 200 and response.headers["x-elastic-subnet"] == name
    assert response.headers["content-type"] == "application/json"
    assert_close(response.json(), model.encode(TEXTS, subnet=name))
    one = client.post("/embed", json={"inputs": TEXTS[0], "prompt_name": "query"}, headers=at(name)).json()
    assert_close(one, model.encode(TEXTS[:1], prompt_name="query", subnet=name))
    short = client.post("/embed", json={"inputs": TEXTS, "dimensions": 5}, headers=at(name)).json()
    assert_close(short, model.encode(TEXTS, truncate_dim=5, normalize_embeddings=True, subnet=name))
    raw = client.post("/embed", json={"inputs": TEXTS, "normalize": False}, headers=at(name)).json()
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert abs(lengths - 1).min() > 1e-3
    assert_close(np.array(raw) / lengths, model.encode(TEXTS, subnet=name))


def test_embed_takes_ids(embedder):
    client, _, model = embedder
    ids = model.tokenizer(TEXTS)["input_ids"]
    assert_close(client.post("/embed", json={"inputs": ids}, headers=at("full")).json(), model.encode(TEXTS))
    assert_close(client.post("/embed", json={"inputs": ids[0]}, headers=at("full")).json(), model.encode(TEXTS[:1]))
    mixed = {"inputs": [TEXTS[0], ids[1], TEXTS[2]]}
    assert_close(client.post("/embed", json=mixed, headers=at("full")).json(), model.encode(TEXTS[:3]))


def test_embed_all(embedder):
    client, _, model = embedder
    found = client.post("/embed_all", json={"inputs": TEXTS[:5]}, headers=at("small")).json()
    for one, expected in zip(found, model.encode(TEXTS[:5], output_value="token_embeddings", subnet="small"), strict=True):
        assert_close(one, expected)


def test_similarity(embedder):
    client, _, model = embedder
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:6]}}
    vectors = model.encode(TEXTS[:6], subnet="tiny")
    for given in (body, body | {"parameters": None}):
        assert_close(client.post("/similarity", json=given, headers=at("tiny")).json(), vectors[1:] @ vectors[0])


def test_truncation(embedder):
    client, _, model = embedder
    words = [WORDS[place % 60] for place in range(80)]
    body = {"inputs": " ".join(words)}
    refused = client.post("/embed", json=body)
    assert refused.status_code == 413 and refused.json()["error_type"] == "Validation"
    assert "at most 32 tokens, given: 82" in refused.json()["error"]
    right = client.post("/embed", json={**body, "truncate": True}, headers=at("full")).json()
    assert_close(right, model.encode([" ".join(words[:30])]))
    for written in ("left", "Left"):
        left = {**body, "truncate": True, "truncation_direction": written}
        assert_close(client.post("/embed", json=left, headers=at("full")).json(), model.encode([" ".join(words[-30:])]))


def test_tokenize_and_decode(embedder):
    client, _, model = embedder
    (tokens,) = client.post("/tokenize", json={"inputs": "word1  word2"}).json()
    assert [token["text"] for token in tokens] == ["[CLS]", "word1", "word2", "[SEP]"]
    assert [token["special"] for token in tokens] == [True, False, False, True]
    assert [(token["start"], token["stop"]) for token in tokens] == [(None, None), (0, 5), (7, 12), (None, None)]
    ids = [token["id"] for token in tokens]
    assert ids == model.tokenizer("word1 word2")["input_ids"]
    assert client.post("/decode", json={"ids": ids}).json() == ["word1 word2"]
    many = {"ids": [ids, ids[1:2]], "skip_special_tokens": False}
    assert client.post("/decode", json=many).json() == ["[CLS] word1 word2 [SEP]", "word1"]
    bare = client.post("/tokenize", json={"inputs": ["word3"], "add_special_tokens": False}).json()
    assert [[token["text"] for token in one] for one in bare] == [["word3"]]


def test_info_health_and_metrics(embedder):
    client, _, _ = embedder
    info = client.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}} and info["max_input_length"] == 32
    assert [size["name"] for size in info["subnets"]] == SIZES and info["max_client_batch_size"] == 32
    assert client.get("/health").status_code == 200
    client.post("/embed", json={"inputs": TEXTS[:3]}, headers=at("tiny"))
    client.get("/nowhere")
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['hf_elastic_texts_total{subnet="tiny"}']) >= 3
    assert float(values['hf_elastic_request_seconds_count{subnet="tiny"}']) >= 1
    assert float(values['hf_elastic_requests_total{route="other",status="404"}']) >= 1
    assert {f'hf_elastic_cost_correction{{subnet="{name}"}}' for name in SIZES} < values.keys()
    assert values["hf_elastic_queue_texts"] == "0.0" and "hf_elastic_deadline_misses_total" in values
    assert not any(word in line for word in WORDS for line in lines)


@pytest.mark.parametrize("name", SIZES)
def test_rerank_and_predict(name, ranker):
    client, model = ranker
    body = {"query": TEXTS[0], "texts": TEXTS[1:9], "return_text": True}
    found = client.post("/rerank", json=body, headers=at(name))
    assert found.headers["x-elastic-subnet"] == name
    expected = model.rank(TEXTS[0], TEXTS[1:9], subnet=name)
    assert [rank["index"] for rank in found.json()] == [rank["corpus_id"] for rank in expected]
    assert_close([rank["score"] for rank in found.json()], [rank["score"] for rank in expected])
    assert [rank["text"] for rank in found.json()] == [TEXTS[1 + rank["index"]] for rank in found.json()]
    raw = client.post("/rerank", json={**body, "raw_scores": True, "return_text": False}, headers=at(name)).json()
    logits = [np.log(rank["score"] / (1 - rank["score"])) for rank in expected]
    assert np.abs(np.array([rank["score"] for rank in raw]) - logits).max() < 1e-3 and "text" not in raw[0]
    (one,) = client.post("/predict", json={"inputs": TEXTS[:2]}, headers=at(name)).json()
    assert_close([one["score"]], model.predict([TEXTS[:2]], subnet=name))


def test_predict(classifier):
    client, model, tokenizer = classifier

    def offline(inputs, name):
        return model.view(name)(**tokenizer(inputs, return_tensors="pt")).logits.softmax(-1)[0].tolist()

    for name in SIZES:
        one = client.post("/predict", json={"inputs": TEXTS[0]}, headers=at(name)).json()
        many = client.post("/predict", json={"inputs": [[text] for text in TEXTS]}, headers=at(name)).json()
        assert len(many) == len(TEXTS)
        for text, found in zip(TEXTS, many):
            assert [rank["score"] for rank in found] == sorted((rank["score"] for rank in found), reverse=True)
            by_label = {rank["label"]: rank["score"] for rank in found}
            assert_close([by_label[label] for label in LABELS.values()], offline(text, name))
        assert [rank["label"] for rank in one] == [rank["label"] for rank in many[0]]
    pair = client.post("/predict", json={"inputs": TEXTS[:2]}, headers=at("small")).json()
    pairs = client.post("/predict", json={"inputs": [TEXTS[:2], TEXTS[2:3]]}, headers=at("small")).json()
    expected = model.view("small")(**tokenizer([TEXTS[:2]], return_tensors="pt")).logits.softmax(-1)[0]
    assert_close([pair[0]["score"], pairs[0][0]["score"]], [expected.max().item()] * 2)
    raw = client.post("/predict", json={"inputs": TEXTS[0], "raw_scores": True}, headers=at("full")).json()
    assert raw[0]["score"] > 1 > abs(sum(rank["score"] for rank in one) - 1)


def test_documents_of_an_asymmetric_model_are_encoded_at_the_full_size(tmp_path):
    path = save("asymmetric", tmp_path)
    model = load_denser(path, "cpu")
    with serving(path, scheduling={"policy": "static:tiny"}) as (client, _):
        documents = client.post("/embed", json={"inputs": TEXTS, "prompt_name": "document"})
        queries = client.post("/embed", json={"inputs": TEXTS, "prompt_name": "query"})
        assert (documents.headers["x-elastic-subnet"], queries.headers["x-elastic-subnet"]) == ("full", "tiny")
        assert_close(documents.json(), model.encode_document(TEXTS))
        assert_close(queries.json(), model.encode_query(TEXTS, subnet="tiny"))
        refused = client.post("/embed", json={"inputs": TEXTS, "prompt_name": "document"}, headers=at("small"))
        assert refused.status_code == 422 and "'small' for documents" in refused.json()["error"]


@pytest.fixture
def online(monkeypatch):
    """huggingface_hub sends nothing while it is offline, to this machine neither."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_huggingface_hub_takes_vectors(embedder, online):
    client, _, model = embedder
    for url in (client.url, f"{client.url}/embed"):
        hub = InferenceClient(model=url)
        assert_close(hub.feature_extraction(TEXTS[0]), model.encode(TEXTS[:1]))
        query = hub.feature_extraction(TEXTS[0], normalize=True, prompt_name="query", truncate=True, truncation_direction="left")
        assert_close(query, model.encode(TEXTS[:1], prompt_name="query"))
    vectors = model.encode(TEXTS[:5])
    for url in (client.url, f"{client.url}/similarity"):
        found = InferenceClient(model=url).sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:5])
        assert_close(found, vectors[1:] @ vectors[0])


def test_huggingface_hub_takes_labels(classifier, online):
    client, model, tokenizer = classifier
    logits = model(**tokenizer(TEXTS[0], return_tensors="pt")).logits[0].detach()
    hub = InferenceClient(model=client.url)
    found = {one.label: one.score for one in hub.text_classification(TEXTS[0])}
    assert_close([found[label] for label in LABELS.values()], logits.softmax(-1).tolist())
    (best,) = hub.text_classification(TEXTS[0], top_k=1, function_to_apply="none")
    assert best.label == LABELS[int(logits.argmax())] and abs(best.score - float(logits.max())) < 1e-4


def test_openai(embedder):
    client, _, model = embedder
    openai = pytest.importorskip("openai")
    ai = openai.OpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0)
    for size in (None, *SIZES):
        name = "anything" if size is None else f"anything:{size}"
        found = ai.embeddings.create(model=name, input=TEXTS)
        answered = found.model.rpartition(":")[2]
        assert answered in SIZES and size in (None, answered)
        assert [one.index for one in found.data] == list(range(len(TEXTS)))
        assert_close([one.embedding for one in found.data], model.encode(TEXTS, subnet=answered))
    assert found.usage.prompt_tokens == sum(map(len, model.tokenizer(TEXTS)["input_ids"])) == found.usage.total_tokens
    ids = ai.embeddings.create(
        model="a:full", input=model.tokenizer(TEXTS[:2])["input_ids"], dimensions=7, encoding_format="float"
    )
    assert_close([one.embedding for one in ids.data], model.encode(TEXTS[:2], truncate_dim=7, normalize_embeddings=True))
    body = {"input": TEXTS[0], "model": client.get("/info").json()["model_id"], "encoding_format": "base64"}
    coded = client.post("/v1/embeddings", json=body, headers=at("full")).json()["data"][0]["embedding"]
    assert_close(np.frombuffer(base64.b64decode(coded), "<f4"), model.encode(TEXTS[0]))
    with pytest.raises(openai.UnprocessableEntityError, match="'huge' is no size here; sizes: full, small, tiny"):
        ai.embeddings.create(model="a:huge", input="word1")


def test_many_clients_get_the_answer_of_the_size_that_it_names(tmp_path):
    path = save("symmetric", tmp_path)
    model = load_denser(path, "cpu")
    offline = {name: model.encode(TEXTS, subnet=name) for name in SIZES}
    used = set()
    with serving(path, scheduling={"latency_objective": 8, "max_batch_size": 6}) as (client, _):

        def ask(seed):
            generator = np.random.default_rng(seed)
            with Client(client.url) as own:
                for number in range(12):
                    size = (None, *SIZES)[number % (1 + len(SIZES))]
                    places = generator.choice(len(TEXTS), generator.integers(1, 12), replace=False)
                    body = {"inputs": [TEXTS[place] for place in places]}
                    response = own.post("/embed", json=body, headers={} if size is None else at(size))
                    name = response.headers["x-elastic-subnet"]
                    assert size in (None, name)
                    assert_close(response.json(), offline[name][places])
                    used.add(name)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
    assert used == set(SIZES)


def test_a_client_that_leaves(embedder):
    client, worker, _ = embedder
    engine = worker.ready.result()[0]
    tower, stopped = engine.towers["full"], Stopped(engine, "full")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/embed", json={"inputs": TEXTS[0]}, headers=at("full"))
        until(lambda: stopped.runs == 1)
        with Client(client.url) as leaving, pytest.raises(OSError, match="timed out"):
            leaving.post("/embed", json={"inputs": TEXTS[:5]}, headers=at("full"), timeout=0.5)
        until(lambda: worker.waiting == 0)
        stopped.may_run.set()
        assert first.result().status_code == 200
    assert stopped.runs == 1
    engine.towers["full"] = tower


def test_a_full_queue(tmp_path):
    with serving(save("symmetric", tmp_path), max_queue=4, max_client_batch_size=4) as (client, worker):
        stopped = Stopped(worker.ready.result()[0], "full")
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(client.post, "/embed", json={"inputs": TEXTS[0]}, headers=at("full"))]
            until(lambda: stopped.runs == 1)
            waiting.append(pool.submit(client.post, "/embed", json={"inputs": TEXTS[:3]}))
            until(lambda: worker.waiting == 3)
            refused = client.post("/embed", json={"inputs": TEXTS[:2]})
            assert refused.status_code == 429 and refused.json()["error_type"] == "Overloaded"
            assert int(refused.headers["retry-after"]) >= 1
            waiting.append(pool.submit(client.post, "/embed", json={"inputs": TEXTS[0]}))
            until(lambda: worker.waiting == 4)
            for inputs in (TEXTS[0], TEXTS[:4]):
                assert client.post("/v1/embeddings", json={"input": inputs}).json()["code"] == 429
            stopped.may_run.set()
            assert [len(one.result().json()) for one in waiting] == [1, 3, 1]


def test_a_deadline_that_passes_in_the_queue(embedder):
    client, worker, _ = embedder
    engine = worker.ready.result()[0]
    tower, stopped = engine.towers["full"], Stopped(engine, "full")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/embed", json={"inputs": TEXTS[0]}, headers=at("full"))
        until(lambda: stopped.runs == 1)
        late = pool.submit(client.post, "/embed", json={"inputs": TEXTS[0]}, headers={"x-elastic-deadline-ms": "20"})
        until(lambda: worker.waiting == 1)
        time.sleep(0.05)
        stopped.may_run.set()
        assert first.result().status_code == 200
        assert late.result().status_code == 504 and late.result().json()["error"] == "the deadline has passed"
    engine.towers["full"] = tower
    assert client.post("/embed", json={"inputs": TEXTS[0]}, headers={"x-elastic-deadline-ms": "60000"}).status_code == 200


def test_draining_answers_what_was_accepted_and_refuses_the_rest(tmp_path):
    with serving(save("symmetric", tmp_path)) as (client, worker):
        stopped = Stopped(worker.ready.result()[0], "full")
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(client.post, "/embed", json={"inputs": TEXTS[:3]}, headers=at("full")) for _ in range(4)]
            until(lambda: worker.unanswered == 4)
            with Client(client.url) as other:
                worker.drain()
                refused = other.post("/embed", json={"inputs": TEXTS[0]})
                assert refused.status_code == 503 and refused.json()["error_type"] == "Unhealthy"
                assert other.get("/health").status_code == 503
            stopped.may_run.set()
            assert [len(one.result().json()) for one in waiting] == [3] * 4


def test_nothing_but_the_worker_runs_the_model(embedder):
    client, worker, _ = embedder
    engine, threads = worker.ready.result()[0], set()
    for name, tower in engine.towers.items():
        engine.towers[name] = lambda features, tower=tower: (threads.add(threading.current_thread().name), tower(features))[1]
    for name in SIZES:
        client.post("/embed", json={"inputs": TEXTS}, headers=at(name))
    assert threads == {"hf-elastic-worker"}
