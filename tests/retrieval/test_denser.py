"""`ElasticDenser` is a `SentenceTransformer`, and its full size is the model that it was made of."""

import itertools
import json
import threading

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from sentences import SIZES, make_denser, save_sentence_transformer, texts, without_us

from hf_elastic import ElasticModel
from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.denser import ElasticDenser, elastic_sentence_transformer
from hf_elastic.retrieval.export import export_denser
from hf_elastic.retrieval.graph import load_graph

pytestmark = pytest.mark.one_lane

MODES = ("asymmetric", "symmetric")
TEXTS = texts(7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sentence_transformer(tmp_path_factory.mktemp("stock"))


def trained(denser):
    """The denser with other weights in its sizes and heads, as after a training."""
    for parameter in denser.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * parameter.data.roll(1, -1)
    return denser


@pytest.mark.parametrize("mode", MODES)
def test_sizes_leave_the_full_one_as_it_is(mode, folder):
    denser, stock = make_denser(folder, mode)
    assert denser.mode == mode and denser.subnets == SIZES
    small = denser.encode_query(TEXTS, subnet="small")
    for encode in ("encode", "encode_query", "encode_document"):
        expected = getattr(stock, encode)(TEXTS)
        assert np.array_equal(getattr(denser, encode)(TEXTS), expected)
        assert np.array_equal(getattr(denser, encode)(TEXTS, subnet="full"), expected)
        assert np.array_equal(getattr(denser, encode)(TEXTS, subnet={"num_hidden_layers": 4}), expected)
    assert not np.allclose(small, stock.encode_query(TEXTS))
    assert np.array_equal(denser.similarity(small, small), stock.similarity(small, small))


@pytest.mark.parametrize("mode", MODES)
def test_a_size_is_the_stock_model_of_that_size(mode, folder):
    denser, stock = make_denser(folder, mode)
    options = {"layer_order": "ends", "importance": "none" if mode == "symmetric" else None}
    model = ElasticModel.from_base(stock[0].model, space=denser.elastic.space, subnets=SIZES, **options)
    for name, size in SIZES.items():
        stock[0].model = model.extract(name)
        for given in (name, size):
            assert np.allclose(denser.encode_query(TEXTS, subnet=given), stock.encode_query(TEXTS), atol=1e-6)
        assert np.array_equal(denser.tower("query", name).encode_query(TEXTS), denser.encode_query(TEXTS, subnet=name))
    assert denser.elastic.resolve("small").layers == (0, 3)


@pytest.mark.parametrize("mode", MODES)
def test_saved_and_loaded(mode, folder, tmp_path):
    denser = trained(make_denser(folder, mode)[0])
    denser.save_pretrained(str(tmp_path))
    again = ElasticDenser(str(tmp_path), device="cpu")
    assert again.mode == mode and again.prompts == denser.prompts
    for size in (None, "small", "tiny", {"num_hidden_layers": 3}):
        assert np.array_equal(again.encode_query(TEXTS, subnet=size), denser.encode_query(TEXTS, subnet=size))
    assert not again.training
    code = "from sentence_transformers import SentenceTransformer as S; import json; "
    code += f"print(json.dumps(S({str(tmp_path)!r}, device='cpu', trust_remote_code=True).encode_query({TEXTS!r}).tolist()))"
    assert np.array_equal(np.float32(json.loads(without_us(code))), denser.encode_query(TEXTS))


def test_threads_each_with_a_size(folder):
    denser, _ = make_denser(folder)
    sizes = [None, "small", "tiny", {"num_hidden_layers": 3}] * 2
    expected = [denser.encode_query(TEXTS, subnet=size) for size in sizes]
    found = [None] * len(sizes)

    def run(index):
        for _ in range(5):
            found[index] = denser.encode_query(TEXTS, subnet=sizes[index])

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(sizes))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_processes_encode_at_a_size(folder):
    denser = trained(make_denser(folder)[0])
    several = denser.encode_query(TEXTS, subnet="small", device=["cpu", "cpu"], chunk_size=2)
    assert np.allclose(several, denser.encode_query(TEXTS, subnet="small"), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "both"}, "mode: 'both' is unknown; known: asymmetric, symmetric"),
        ({"space": {"wings": [1]}}, "wings"),
        ({"layer_order": "last"}, "layer_order"),
    ],
)
def test_what_cannot_be_made_elastic(arguments, message, folder):
    with pytest.raises(UserError, match=message):
        elastic_sentence_transformer(folder, device="cpu", **{"space": {"num_hidden_layers": [2, 4]}, **arguments})


def test_a_wrong_size_is_refused(folder):
    denser, _ = make_denser(folder)
    with pytest.raises(UserError, match="unknown subnet 'medium'; known: full, largest, smallest, small, tiny"):
        denser.encode_query(TEXTS, subnet="medium")
    for call in (lambda: denser.encode_document(TEXTS, subnet="small"), lambda: denser.tower("document", "small")):
        with pytest.raises(UserError, match="'small' for documents, which this model encodes at the full size only"):
            call()
    with pytest.raises(UserError, match="no elastic model in it"):
        ElasticDenser(folder, device="cpu")


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_size_is_refused_without_texts_too(mode, folder):
    denser, _ = make_denser(folder, mode)
    for encode in (denser.encode, denser.encode_query, denser.encode_document):
        with pytest.raises(UserError, match="unknown subnet 'nope'"):
            encode([], subnet="nope")
    assert denser.encode_query([], subnet="small").size == 0
    if mode == "asymmetric":
        with pytest.raises(UserError, match="'small' for documents"):
            denser.encode_document([], subnet="small")


def test_a_width_without_a_head_is_refused(folder):
    space = {"num_hidden_layers": [2, 4], "hidden_size": [16, 32], "num_attention_heads": [2, 4]}
    narrow = {"hidden_size": 16, "num_attention_heads": 2}
    denser, _ = make_denser(folder, space=space, subnets={"narrow": narrow})
    assert denser.encode_query(TEXTS, subnet=narrow).shape == (7, 32)
    with pytest.raises(UserError, match="has no head that maps its vectors of 16 dimensions to the 32 of the documents"):
        denser.encode_query(TEXTS, subnet={**narrow, "num_hidden_layers": 2})
    symmetric, _ = make_denser(folder, "symmetric", space=space, subnets={"narrow": narrow})
    assert symmetric.encode_document(TEXTS, subnet="narrow").shape == (7, 16)


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        ("small", "asymmetric"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(["small", "narrow", None], MODES)
            if case != ("small", "asymmetric")
        ),
    ],
)
def test_exported_for_plain_sentence_transformers(size, mode, folder, tmp_path):
    space = {"num_hidden_layers": [2, 4], "hidden_size": [16, 32], "num_attention_heads": [2, 4]}
    subnets = {"small": {"num_hidden_layers": 2}, "narrow": {"hidden_size": 16, "num_attention_heads": 2}}
    denser = trained(make_denser(folder, mode, space=space, subnets=subnets)[0])
    record = export_denser(denser, size, tmp_path / "out", texts=TEXTS)
    assert record["passed"] and record["rows"] == 14
    code = "from sentence_transformers import SentenceTransformer as S; import json\n"
    code += f"model = S({str(tmp_path / 'out')!r}, device='cpu')\n"
    code += f"print(json.dumps([model.encode_query({TEXTS!r}).tolist(), model.encode_document({TEXTS!r}).tolist()]))"
    queries, documents = (np.float32(one) for one in json.loads(without_us(code)))
    assert np.abs(queries - denser.encode_query(TEXTS, subnet=size)).max() < 1e-5
    expected = denser.encode_document(TEXTS, **({} if mode == "asymmetric" else {"subnet": size}))
    assert np.abs(documents - expected).max() < 1e-5


def test_what_is_not_exported(folder, tmp_path):
    denser, _ = make_denser(
        folder, space={"num_hidden_layers": [2, 4], "intermediate_size": [16, 48], "per_layer": ["intermediate_size"]}
    )
    uneven = {"num_hidden_layers": 2, "intermediate_size": [16, 48]}
    with pytest.raises(UserError, match=r"not standard.*nearest standard size is \{"):
        export_denser(denser, uneven, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        export_denser(denser, "small", tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", ["small", None])
def test_queries_on_graphs(size, mode, folder, tmp_path):
    denser = trained(make_denser(folder, mode)[0])
    formats = {"onnx": 1e-5, "onnx-int8": 0.05, "openvino": 1e-5}
    export_denser(denser, size, tmp_path / "out", list(formats), texts=TEXTS)
    expected = denser.encode_query(TEXTS, subnet=size)
    for name, most in formats.items():
        tower = load_graph(tmp_path / "out" / name)
        assert np.abs(tower.encode_query(TEXTS) - expected).max() < most
        if mode == "asymmetric":
            with pytest.raises(ValueError, match="No route found for task type 'document'"):
                tower.encode_document(TEXTS)
        else:
            assert np.abs(tower.encode_document(TEXTS) - denser.encode_document(TEXTS, subnet=size)).max() < most
        assert tower.prompts["query"] == denser.prompts["query"] and not list((tmp_path / "out" / name).glob("*.safetensors"))
    with pytest.raises(UserError, match=r"there is no model\.onnx"):
        load_graph(tmp_path / "out")


WIDTHS = {"space": {"num_hidden_layers": [2, 4], "hidden_size": [16, 32]}, "subnets": {"thin": {"hidden_size": 16}}}


@pytest.mark.parametrize("rest", [[Pooling(32), Dense(32, 20), Normalize()], [Pooling(32, ("cls", "mean"))]])
def test_heads_are_as_wide_as_what_is_pooled(rest, folder, tmp_path):
    stock = SentenceTransformer(modules=[SentenceTransformer(folder, device="cpu")[0], *rest], device="cpu")
    denser = trained(elastic_sentence_transformer(stock, **WIDTHS))
    found = denser.encode_query(TEXTS, subnet="thin")
    assert found.shape == stock.encode(TEXTS).shape
    denser.save_pretrained(str(tmp_path))
    np.testing.assert_array_equal(ElasticDenser(str(tmp_path), device="cpu").encode_query(TEXTS, subnet="thin"), found)


def test_weights_for_one_width_behind_several_are_refused(folder):
    stock = SentenceTransformer(modules=[*SentenceTransformer(folder, device="cpu"), Dense(32, 20)], device="cpu")
    with pytest.raises(UserError, match="hidden_size, but modules after the pooling"):
        elastic_sentence_transformer(stock, mode="symmetric", **WIDTHS)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_in_half_precision(mode, folder):
    stock = SentenceTransformer(folder, device="cpu").bfloat16()
    found = elastic_sentence_transformer(stock, mode=mode, **WIDTHS)
    assert found.encode_query(TEXTS, subnet="thin", convert_to_tensor=True).dtype == torch.bfloat16


def test_a_router_is_not_exported_in_half_precision(folder, tmp_path):
    """sentence-transformers would load the head of the small tower in float32, and could not encode."""
    denser = make_denser(folder)[0].bfloat16()
    with pytest.raises(UserError, match=r"model: torch.bfloat16; .* export model.float\(\)"):
        export_denser(denser, "small", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_denser(denser, None, tmp_path / "full")
    export_denser(denser.float(), "small", tmp_path / "out")


@pytest.mark.parametrize("mode", MODES)
def test_adapters_are_refused(mode, folder):
    with pytest.raises(UserError, match="takes no adapters"):
        make_denser(folder, mode)[0].add_adapter(None)
