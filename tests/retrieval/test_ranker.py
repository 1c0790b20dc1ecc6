"""`ElasticRanker` is a `CrossEncoder`."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder import losses
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentences import SIZES, make_ranker, save_cross_encoder, texts, without_us

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.export import export_ranker
from hf_elastic.retrieval.losses import ElasticLoss
from hf_elastic.retrieval.ranker import ElasticRanker, elastic_cross_encoder

pytestmark = pytest.mark.one_lane

PAIRS = [list(pair) for pair in zip(texts(6), texts(6, 1))]
LISTS = {"query": texts(4), "docs": [texts(3, seed) for seed in range(4)], "labels": [[1, 0, 0]] * 4}
POINTS = {"query": texts(4), "doc": texts(4, 1), "label": [1.0, 0.0, 1.0, 0.0]}
MARGINS = {"query": texts(4), "positive": texts(4, 1), "negative": texts(4, 2), "label": [1.0, 2.0, 0.5, 1.5]}
PLAIN = {"query": texts(4), "positive": texts(4, 1), "negative": texts(4, 2)}
LOSSES = {
    "BinaryCrossEntropyLoss": POINTS,
    "LambdaLoss": LISTS,
    "ListNetLoss": LISTS,
    "MarginMSELoss": MARGINS,
    "MultipleNegativesRankingLoss": PLAIN,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return save_cross_encoder(tmp_path_factory.mktemp("stock"), **changes)


def train(ranker, loss, data, folder, **options):
    args = CrossEncoderTrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[], disable_tqdm=True,
        use_cpu=True, save_strategy="no", **options,
    )  # fmt: skip
    CrossEncoderTrainer(ranker, args, train_dataset=Dataset.from_dict(data), loss=loss).train()


def test_sizes_leave_the_full_one_as_it_is(folder):
    ranker, stock = make_ranker(folder, importance="none")
    small = ranker.predict(PAIRS, subnet="small")
    assert np.array_equal(ranker.predict(PAIRS), stock.predict(PAIRS))
    assert np.array_equal(ranker.predict(PAIRS, subnet="full"), stock.predict(PAIRS))
    stock[0].model = ElasticForSequenceClassification.from_base(
        stock[0].model, space=ranker.elastic.space, subnets=SIZES, layer_order="ends", importance="none"
    ).extract("small")
    assert np.allclose(small, stock.predict(PAIRS), atol=1e-6)
    assert np.array_equal(ranker.tower("small").predict(PAIRS), small)
    documents = texts(5, 3)
    assert ranker.rank("word1 word2", documents, subnet="small") == stock.rank("word1 word2", documents)
    assert ranker.elastic.config.subnet is None
    with pytest.raises(UserError, match="unknown subnet 'huge'"):
        ranker.rank("word1", documents, subnet="huge")
    with pytest.raises(UserError, match="unknown subnet 'huge'"):
        ranker.predict([], subnet="huge")


@pytest.mark.slow
def test_saved_and_exported(folder, tmp_path):
    ranker, _ = make_ranker(folder)
    ranker.save_pretrained(str(tmp_path / "all"))
    again = ElasticRanker(str(tmp_path / "all"), device="cpu")
    for size in (None, "small", "tiny"):
        assert np.array_equal(again.predict(PAIRS, subnet=size), ranker.predict(PAIRS, subnet=size))
    assert export_ranker(ranker, "tiny", tmp_path / "tiny", pairs=PAIRS)["passed"]
    for name, size, options in (("tiny", "tiny", ""), ("all", None, ", trust_remote_code=True")):
        code = "from sentence_transformers import CrossEncoder as C; import json; "
        code += f"print(json.dumps(C({str(tmp_path / name)!r}, device='cpu'{options}).predict({PAIRS!r}).tolist()))"
        assert np.abs(np.float32(json.loads(without_us(code))) - ranker.predict(PAIRS, subnet=size)).max() < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_sizes_are_trained(name, folder, tmp_path):
    ranker, _ = make_ranker(folder)
    before = {size: ranker.predict(PAIRS, subnet=size) for size in (None, *SIZES)}
    train(ranker, ElasticLoss(ranker, getattr(losses, name)(ranker), sampling="all"), LOSSES[name], tmp_path)
    for size, scores in before.items():
        assert not np.allclose(ranker.predict(PAIRS, subnet=size), scores, atol=1e-4)
    assert ranker.elastic.config.subnet is None


def test_the_prompt_of_a_trainer_reaches_the_loss(folder):
    ranker, _ = make_ranker(folder)
    inner = losses.BinaryCrossEntropyLoss(ranker)
    given = [["word1 word2", "word3"], ["word4", "word5 word6"]], torch.tensor([1.0, 0.0])
    with torch.no_grad():
        expected = []
        for size in (None, *SIZES):
            with ranker.selected(size):
                expected.append(float(inner(*given, prompt="word7 word8 ")))
        loss = ElasticLoss(ranker, inner, sampling="all", alignment_weight=0.0)
        found, plain = float(loss(*given, prompt="word7 word8 ", task=None)), float(loss(*given))
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5) and found != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_mean_of_the_loss_and_the_pull_of_each_size(name, folder):
    ranker, _ = make_ranker(folder)
    inner = getattr(losses, name)(ranker)
    columns = [column for key, column in LOSSES[name].items() if not key.startswith("label")]
    labels = next((value for key, value in LOSSES[name].items() if key.startswith("label")), None)
    labels = [torch.tensor(row, dtype=torch.float) for row in labels] if name in ("LambdaLoss", "ListNetLoss") else labels
    labels = torch.tensor(labels) if isinstance(labels, list) and not isinstance(labels[0], torch.Tensor) else labels
    seen = []
    handle = ranker[0].register_forward_hook(lambda module, args, output: seen.append(output["scores"].detach()))
    expected, scores = 0.0, {}
    for size in (None, *SIZES):
        torch.manual_seed(1)
        seen.clear()
        with ranker.selected(size), torch.no_grad():
            expected += float(inner(columns, labels))
        scores[size] = torch.cat([one.flatten() for one in seen])
    handle.remove()
    expected += sum(float(((scores[size] - scores[None]) ** 2).mean()) for size in SIZES)
    torch.manual_seed(1)
    assert float(ElasticLoss(ranker, inner, sampling="all")(columns, labels)) == pytest.approx(expected / 3, rel=1e-4)


def test_a_single_path_is_pulled_to_the_full_size_without_training_it(folder):
    ranker, _ = make_ranker(folder, space={"num_hidden_layers": [2, 4]}, subnets={"small": {"num_hidden_layers": 2}})
    loss = ElasticLoss(ranker, losses.BinaryCrossEntropyLoss(ranker), sampling="single_path", subnets=["small"])
    loss._of_step = lambda step: [("small", ranker.elastic.subnet("small"))]
    loss([POINTS["query"], POINTS["doc"]], torch.tensor(POINTS["label"])).backward()
    trained = {name for name, one in ranker.named_parameters() if one.grad is not None}
    assert any("layer.3." in name for name in trained) and not any("layer.1." in name for name in trained)


def test_reranking_at_a_size(folder):
    ranker, _ = make_ranker(folder)
    samples = [{"query": texts(1)[0], "positive": texts(2, 5), "negative": texts(4, 6)}]
    evaluator = CrossEncoderRerankingEvaluator(samples, at_k=3)
    with ranker.selected("tiny"):
        found = evaluator(ranker)
    assert found == evaluator(ranker.tower("tiny"))


def test_what_is_refused(folder):
    ranker, stock = make_ranker(folder)
    with pytest.raises(UserError, match="CachedMultipleNegativesRankingLoss does not go with a cross encoder"):
        ElasticLoss(ranker, losses.CachedMultipleNegativesRankingLoss(ranker))
    with pytest.raises(UserError, match="CrossEncoder has no sizes"):
        ElasticLoss(stock, losses.BinaryCrossEntropyLoss(stock))
    with pytest.raises(UserError, match="no elastic model in it"):
        ElasticRanker(folder, device="cpu")
    with pytest.raises(UserError, match="space"):
        elastic_cross_encoder(CrossEncoder(folder, device="cpu"), space={"num_hidden_layers": [9]})
