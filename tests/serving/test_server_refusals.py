"""What the server refuses, and how it says so."""

import json
import socket

import pytest
from served import Client, save, serving

pytest.importorskip("sentence_transformers", minversion="6")
from sentences import texts
from tiny import WORDS

pytestmark = pytest.mark.one_lane

TEXTS = texts(9)
SECRET = "swordfish"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    with serving(save("symmetric", tmp_path_factory.mktemp("refusing")), max_client_batch_size=8, payload_limit=4000) as served:
        yield served[0]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    with serving(save("classifier", tmp_path_factory.mktemp("refusing"))) as served:
        yield served[0]


def check(response, status, *words, kind="Validation"):
    """An error in the shape of text-embeddings-inference, with these words."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error", "error_type"} and response.json()["error_type"] == kind
    assert all(word in response.json()["error"] for word in words), response.text


BODIES = {
    "no inputs": ({}, "inputs: Field required"),
    "a number": ({"inputs": 5}, "inputs: Input should be a valid list"),
    "truth values": ({"inputs": [True, False]}, "inputs"),
    "no whole numbers": ({"inputs": [[5.0, 6.0]]}, "inputs"),
    "texts and numbers": ({"inputs": ["word1", 5]}, "inputs"),
    "an empty text and a number": ({"inputs": ["", 5]}, "inputs"),
    "no list": ([], "body"),
    "nothing": (None, "body"),
    "a direction": ({"inputs": "word1", "truncation_direction": "up"}, "'right' or 'left'"),
    "a truth value": ({"inputs": "word1", "truncate": "maybe"}, "truncate"),
    "a lone surrogate": ({"inputs": "word1 \ud800"}, "inputs"),
}


@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES)
def test_bodies(body, words, embedder):
    data = json.dumps(body).encode()
    check(embedder.post("/embed", data=data, headers={"content-type": "application/json"}), 422, words)


def test_what_is_no_json(embedder):
    for data in (b"{", b"\xff\xfe", b"[" * 3000):
        check(embedder.post("/embed", data=data, headers={"content-type": "application/json"}), 400)
    for data in (b"", b'{"inputs": NaN}'):
        check(embedder.post("/embed", data=data, headers={"content-type": "application/json"}), 422)
    for kind in ("text/plain", ""):
        refused = embedder.post("/embed", data=b'{"inputs": "word1"}', headers={"content-type": kind})
        check(refused, 415, "body: send it with `Content-Type: application/json`")


def test_what_is_empty(embedder, tmp_path):
    for inputs in ("", [], [[]], ["word1", ""], [[5], ""]):
        for route in ("/embed", "/embed_all", "/"):
            check(embedder.post(route, json={"inputs": inputs}), 400, "`inputs` cannot be empty", kind="Empty")
        response = embedder.post("/v1/embeddings", json={"input": inputs})
        assert response.json() == {"message": "`inputs` cannot be empty", "code": 400, "type": "Empty"}
        assert response.status_code == 400
    check(embedder.post("/embed", json={"inputs": "", "prompt_name": "query"}), 400, kind="Empty")
    for inputs in ("", [], ["word1", ""]):
        check(embedder.post("/tokenize", json={"inputs": inputs}), 400, "`inputs` cannot be empty", kind="Empty")
    for ids in ([], [[]], [[5], []]):
        check(embedder.post("/decode", json={"ids": ids}), 400, "`ids` cannot be empty", kind="Empty")
    for source, sentences, name in (("a", [], "inputs.sentences"), ("a", [""], "inputs.sentences"), ("", ["a"], "inputs")):
        body = {"inputs": {"source_sentence": source, "sentences": sentences}}
        check(embedder.post("/similarity", json=body), 400, f"`{name}` cannot be empty", kind="Empty")
    with serving(save("ranker", tmp_path)) as (ranker, _):
        check(ranker.post("/rerank", json={"query": "word1", "texts": []}), 400, "`texts` cannot be empty", kind="Empty")
        check(ranker.post("/rerank", json={"query": "", "texts": ["word1", ""]}), 400, "`inputs` cannot be empty", kind="Empty")
        assert len(ranker.post("/rerank", json={"query": "word1", "texts": ["word1", ""]}).json()) == 2
        for inputs in ("", ["", ""], [["word1"], [""]]):
            check(ranker.post("/predict", json={"inputs": inputs}), 400, "`inputs` cannot be empty", kind="Empty")


def test_what_the_model_has_not(embedder):
    for body, words in (
        ({"prompt_name": "nothing"}, "'nothing' is unknown; known: query"),
        ({"dimensions": 0}, "`dimensions` must be from 1 to 32, got 0"),
        ({"dimensions": 33}, "`dimensions` must be from 1 to 32, got 33"),
    ):
        check(embedder.post("/embed", json={"inputs": "word1", **body}), 413, words)
    for ids in ([10**20], [[5, -1]], ["word1", [65]]):
        check(embedder.post("/embed", json={"inputs": ids}), 422, "token ids must be from 0 to 64", kind="Tokenizer")
    check(embedder.post("/decode", json={"ids": ["5"]}), 422, "ids")
    check(embedder.post("/decode", json={"ids": [65]}), 422, "`ids` must be from 0 to 64", kind="Tokenizer")


def test_what_is_too_large(embedder):
    check(embedder.post("/embed", json={"inputs": TEXTS}), 413, "batch size 9 > maximum allowed batch size 8")
    check(embedder.post("/similarity", json={"inputs": {"source_sentence": "a", "sentences": TEXTS[:8]}}), 413, "9 > ")
    check(embedder.post("/tokenize", json={"inputs": TEXTS}), 413, "9 > ")
    check(embedder.post("/decode", json={"ids": [[5]] * 9}), 413, "9 > ")
    check(embedder.post("/embed", json={"inputs": [5] * 40}), 413, "at most 32 tokens, given: 40")
    check(embedder.post("/embed", json={"inputs": "word1 " * 700}), 413, "4000 bytes at most")
    chunks = embedder.post(
        "/embed", data=iter([b'{"inputs": "', b"word1 " * 700, b'"}']), headers={"content-type": "application/json"}
    )
    check(chunks, 413, "4000 bytes at most")
    code = embedder.post("/v1/embeddings", json={"input": TEXTS})
    assert code.status_code == 413 and code.json() == {
        "message": "batch size 9 > maximum allowed batch size 8",
        "code": 413,
        "type": "Validation",
    }


HEADERS = {
    "a size": ({"x-elastic-subnet": "huge"}, "'huge' is no size here; sizes: full, small, tiny"),
    "a deadline in the past": ({"x-elastic-deadline-ms": "-5"}, "greater than 0"),
    "a deadline now": ({"x-elastic-deadline-ms": "0"}, "greater than 0"),
    "no number": ({"x-elastic-deadline-ms": "soon"}, "x-elastic-deadline-ms"),
    "no finite number": ({"x-elastic-deadline-ms": "inf"}, "finite"),
    "a quality": ({"x-elastic-min-quality": "0.95"}, "quality of at least 0.95; known: full 0.9"),
    "no quality": ({"x-elastic-min-quality": "nan"}, "finite"),
    "a priority": ({"x-elastic-priority": "11"}, "less than or equal to 10"),
}


@pytest.mark.parametrize(("headers", "words"), HEADERS.values(), ids=HEADERS)
def test_headers(headers, words, embedder):
    check(embedder.post("/embed", json={"inputs": "word1"}, headers=headers), 422, words)


def test_two_sizes(embedder):
    body = {"input": "word1", "model": "a:small"}
    response = embedder.post("/v1/embeddings", json=body, headers={"x-elastic-subnet": "tiny"})
    assert response.status_code == 422 and "asks for the size 'small'" in response.json()["message"]
    assert embedder.post("/v1/embeddings", json=body, headers={"x-elastic-subnet": "small"}).status_code == 200


def test_routes_of_other_heads(embedder, classifier):
    check(embedder.post("/predict", json={"inputs": "word1"}), 404, "kind embedding has no such route", "/embed, ", "/similarity")
    for route in ("/embed", "/rerank", "/v1/embeddings"):
        response = classifier.post(route, json={"inputs": "word1"})
        assert response.status_code == 404 and "it has: /decode, /health, /info, /metrics, /predict, /tokenize" in response.text
    for path in ("/docs", "/redoc", "/embed/"):
        assert embedder.get(path, allow_redirects=False).status_code in (404, 405, 307)
    check(embedder.get("/embed"), 405, "Method Not Allowed")
    assert embedder.head("/health").status_code == 200


def test_bodies_of_a_classifier(classifier):
    for inputs in ([], [[]], ["a", "b", "c"], [["a", "b", "c"]], ["a", ["b"]], 5, [5]):
        check(classifier.post("/predict", json={"inputs": inputs}), 422, "inputs")
    for body in ({"inputs": 5, "parameters": {}}, {"inputs": "word1", "parameters": {"top_k": 0}}, {"parameters": {}}, {}):
        check(classifier.post("/", json=body), 422)
    check(classifier.post("/", json=[]), 422)


def test_a_key(tmp_path, monkeypatch):
    path = save("symmetric", tmp_path)
    for options in ({"api_key": SECRET}, {}):
        if not options:
            monkeypatch.setenv("HF_ELASTIC_API_KEY", SECRET)
        with serving(path, **options) as (client, _):
            for headers in ({}, {"authorization": "Bearer"}, {"authorization": f"Bearer {SECRET}x"}, {"authorization": SECRET}):
                for method, route in (("post", "/embed"), ("get", "/info"), ("get", "/metrics"), ("get", "/openapi.json")):
                    response = client.request(method, route, json={"inputs": "word1"}, headers=headers)
                    check(response, 401, "missing or wrong", kind="Unauthorized")
                    assert response.headers["www-authenticate"] == "Bearer"
            raw = client.post("/embed", json={"inputs": "word1"}, headers={"authorization": b"Bearer \xff\xfe"})
            check(raw, 401, kind="Unauthorized")
            assert client.get("/health").status_code == 200
            right = {"authorization": f"Bearer {SECRET}"}
            assert client.post("/embed", json={"inputs": "word1"}, headers=right).status_code == 200
            metrics = client.get("/metrics", headers=right).text
            assert 'status="401"' in metrics and SECRET not in metrics


def test_pages_of_other_origins(embedder, tmp_path):
    origin = {"origin": "https://example.org"}
    asking = {**origin, "access-control-request-method": "POST"}
    assert embedder.options("/embed", headers=asking).status_code == 405
    assert "access-control-allow-origin" not in embedder.post("/embed", json={"inputs": "word1"}, headers=origin).headers
    with serving(save("symmetric", tmp_path), cors_origins=["https://example.org"]) as (client, _):
        for response in (client.options("/embed", headers=asking), client.post("/embed", json={"inputs": "a"}, headers=origin)):
            assert response.status_code == 200 and response.headers["access-control-allow-origin"] == "https://example.org"
        other = client.post("/embed", json={"inputs": "a"}, headers={"origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_what_is_sent_is_said_nowhere(embedder, capfd):
    secret = "word1 xyzzy " + WORDS[5]
    for body in ({"inputs": secret}, {"inputs": secret, "dimensions": secret}, {"inputs": [secret, 5]}):
        embedder.post("/embed", json=body)
        assert "xyzzy" not in embedder.post("/embed", json={**body, "dimensions": 1000}).text
    printed = capfd.readouterr()
    assert "xyzzy" not in printed.out + printed.err


def test_half_a_request_harms_nobody(embedder):
    host, port = embedder.url.removeprefix("http://").split(":")
    for sent in (b"", b"POST /embed HTTP/1.1\r\n", b"nonsense\r\n\r\n", b"POST /embed HTTP/1.1\r\ncontent-length: 50\r\n\r\n{"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    with Client(embedder.url) as other:
        assert other.post("/embed", json={"inputs": "word1"}).status_code == 200
