"""`ElasticLoss` is a loss modifier, and Trainer's own features work with it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, TripletEvaluator
from sentence_transformers.util import batch_to_device
from sentences import SIZES, make_denser, save_sentence_transformer, texts

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.denser import ElasticDenser
from hf_elastic.retrieval.losses import ElasticLoss

pytestmark = pytest.mark.one_lane

MODES = ("asymmetric", "symmetric")
TEXTS = texts(5)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LOSSES = {
    "plain": losses.MultipleNegativesRankingLoss,
    "cached": lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
    "matryoshka": lambda model: losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [32, 8]),
    "cached matryoshka": lambda model: losses.MatryoshkaLoss(
        model, losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3), [32, 8]
    ),
    "none": lambda model: None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sentence_transformer(tmp_path_factory.mktemp("stock"), **NO_DROPOUT)


def triplets(rows: int = 8) -> Dataset:
    return Dataset.from_dict({name: texts(rows, seed) for seed, name in enumerate(("anchor", "positive", "negative"))})


def features(denser, rows: int = 8) -> list[dict]:
    columns = triplets(rows)
    return [batch_to_device(denser.preprocess(columns[name][:]), denser.device) for name in columns.column_names]


def trainer_of(denser, loss, folder, train_dataset=None, **options) -> SentenceTransformerTrainer:
    evaluation = {name: options.pop(name) for name in ("eval_dataset", "evaluator") if name in options}
    options = {"max_steps": 3, "save_strategy": "no", "learning_rate": 1e-3, **options}
    args = SentenceTransformerTrainingArguments(
        str(folder), per_device_train_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True, **options
    )
    return SentenceTransformerTrainer(denser, args, train_dataset=train_dataset or triplets(), loss=loss, **evaluation)


def gradients_of(denser, loss) -> dict[str, torch.Tensor]:
    denser.zero_grad()
    loss(features(denser), None).backward()
    return {name: one.grad.clone() for name, one in denser.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOSSES)
def test_sizes_are_trained_and_a_frozen_full_one_is_not(name, mode, folder, tmp_path):
    denser, stock = make_denser(folder, mode)
    before = {size: denser.encode_query(TEXTS, subnet=size) for size in (None, *SIZES)}
    trainer_of(denser, ElasticLoss(denser, LOSSES[name](denser), sampling="all"), tmp_path).train()
    for size in SIZES:
        assert not np.allclose(denser.encode_query(TEXTS, subnet=size), before[size], atol=1e-3)
    assert np.array_equal(denser.encode_query(TEXTS), before[None]) == (mode == "asymmetric")
    if mode == "asymmetric":
        assert np.array_equal(denser.encode_document(TEXTS), stock.encode_document(TEXTS))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("cached", "plain"), [("cached", "plain"), ("cached matryoshka", "matryoshka")])
def test_a_cache_of_gradients_changes_nothing(cached, plain, mode, folder):
    denser, _ = make_denser(folder, mode)
    # The pull goes over the full vectors with a cache and over the last dimension without: compared without it.
    options = {"sampling": "all", "alignment_weight": 1.0 if plain == "plain" else 0.0}
    found, expected = (gradients_of(denser, ElasticLoss(denser, LOSSES[name](denser), **options)) for name in (cached, plain))
    assert found.keys() == expected.keys() and len(expected) > 20
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=2e-5 * max(1.0, float(gradient.abs().max()))), name


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_weighted_mean_of_the_loss_of_each_size(mode, folder):
    denser, _ = make_denser(folder, mode)
    weights = {"largest": 1.0, "small": 3.0, "tiny": 2.0}
    if mode == "asymmetric":
        del weights["largest"]
    loss = ElasticLoss(
        denser, losses.MultipleNegativesRankingLoss(denser), sampling="all", size_weights=weights, alignment_weight=0.5
    )
    expected = 0.0
    for name, weight in weights.items():
        size = None if name == "largest" else name
        query = torch.tensor(denser.encode(triplets()["anchor"][:], subnet=size))
        full = torch.tensor(denser.encode(triplets()["anchor"][:]))
        others = [triplets()["positive"][:], triplets()["negative"][:]]
        of_documents = {} if mode == "asymmetric" else {"subnet": size}
        documents = [torch.tensor(denser.encode(column, **of_documents)) for column in others]
        one = losses.MultipleNegativesRankingLoss(denser).compute_loss_from_embeddings([query, *documents], None)
        distances = [1 - torch.cosine_similarity(query, full).mean()]
        if mode == "symmetric":
            targets = [torch.tensor(denser.encode(column)) for column in others]
            distances += [1 - torch.cosine_similarity(*pair).mean() for pair in zip(documents, targets)]
        expected += weight * (one + 0.5 * torch.stack(distances).mean())
    assert torch.allclose(loss(features(denser), None), expected / sum(weights.values()), atol=1e-5)


def test_the_pull_has_no_gradient_into_the_full_size(folder):
    denser, _ = make_denser(folder, "symmetric", space={"num_hidden_layers": [1, 2, 4]}, importance="none")
    loss = ElasticLoss(denser, None, subnets=["small"], sampling="all")
    found = gradients_of(denser, loss)
    assert any("layer.0." in name for name in found) and any("layer.3." in name for name in found)
    assert not any("layer.1." in name or "layer.2." in name for name in found)  # these are the full size's alone


def test_draws(folder):
    denser, _ = make_denser(folder, "symmetric")
    runs = []
    for _ in range(2):
        loss = ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser), sampling="sandwich", num_random_subnets=1)
        draws = [[size for _, size in loss._draw([{}])] for _ in range(6)]
        assert all(draw[0] == denser.elastic.space.largest and draw[-1] == denser.elastic.space.smallest for draw in draws)
        runs.append(draws)
    assert runs[0] == runs[1] and len({str(draw[1]) for draw in runs[0]}) > 1
    batch = [{}]
    assert loss._draw(batch) == loss._draw(batch)  # a modifier around it runs a batch several times
    loss.eval()
    assert loss._draw([{}]) == loss._draw([{}])


def test_several_data_sets_with_prompts_and_the_best_checkpoint(folder, tmp_path):
    denser, _ = make_denser(folder)
    pairs = Dataset.from_dict({"question": texts(8, 5), "answer": texts(8, 6)})
    mine = Dataset.from_dict({"text": texts(8, 7)})
    loss = {
        "triplets": ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser)),
        "pairs": ElasticLoss(denser, losses.CachedMultipleNegativesRankingLoss(denser, mini_batch_size=2)),
        "alone": ElasticLoss(denser),
    }
    data = DatasetDict({"triplets": triplets(), "pairs": pairs, "alone": mine})
    documents = {str(index): text for index, text in enumerate(texts(9, 8))}
    evaluator = InformationRetrievalEvaluator({"q": TEXTS[0]}, documents, {"q": {"3"}}, name="mine")
    trainer = trainer_of(
        denser, loss, tmp_path, data, eval_dataset=data, evaluator=evaluator, prompts={"triplets": {"anchor": "word2 "}},
        max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_mine_cosine_ndcg@10", router_mapping={},
    )  # fmt: skip
    trainer.train()
    logged = {name for line in trainer.state.log_history for name in line}
    assert {"eval_triplets_loss", "eval_pairs_loss", "eval_alone_loss", "eval_mine_cosine_ndcg@10"} <= logged
    best = ElasticDenser(trainer.state.best_model_checkpoint, device="cpu")
    for size in (None, "small"):
        assert np.allclose(best.encode_query(TEXTS, subnet=size), denser.encode_query(TEXTS, subnet=size), atol=1e-6)


def test_resumed_training_goes_on(folder, tmp_path):
    for steps in (2, 4):
        denser, _ = make_denser(folder)
        loss = ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser))
        trainer = trainer_of(denser, loss, tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=steps > 2)
    assert trainer.state.global_step == 4
    assert np.array_equal(
        ElasticDenser(str(tmp_path / "checkpoint-4"), device="cpu").encode_query(TEXTS, subnet="small"),
        denser.encode_query(TEXTS, subnet="small"),
    )


def test_a_router_mapping_says_which_columns_are_queries(folder):
    denser, _ = make_denser(folder)
    loss = ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser), sampling="all")
    columns = features(denser)
    expected = loss(columns, None)
    for column, task in zip(columns, ("query", "document", "document")):
        column["task"] = task
    assert torch.equal(loss([{**column} for column in columns], None), expected)
    columns[1]["task"] = "query"
    assert not torch.equal(loss([{**column} for column in columns], None), expected)


def test_evaluators_at_a_size(folder):
    denser, _ = make_denser(folder, "symmetric")
    evaluator = TripletEvaluator(*(triplets()[name][:] for name in triplets().column_names))
    found = {}
    for size in (None, "tiny"):
        denser.elastic.select(size)
        found[size] = denser.evaluate(evaluator)["cosine_accuracy"]
    denser.elastic.select(None)
    encode = {"anchor": denser.encode_query, "positive": denser.encode_document, "negative": denser.encode_document}
    anchor, positive, negative = (encode[name](triplets()[name][:], subnet="tiny") for name in encode)
    assert found["tiny"] == pytest.approx(np.mean((anchor * positive).sum(1) > (anchor * negative).sum(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "progressive"}, "sampling: 'progressive' is unknown; known: sandwich, all, single_path"),
        ({"subnets": ["medium"]}, "unknown subnet 'medium'"),
        ({"alignment_weight": -1.0}, "alignment_weight: -1.0 is no number of at least 0"),
        ({"loss": None, "alignment_weight": 0.0}, "leaves nothing to train"),
        ({"size_weights": {"huge": 1.0}}, "size_weights: 'huge' is no size that is trained; known: largest, random, smallest"),
    ],
)
def test_bad_options(options, message, folder):
    denser, _ = make_denser(folder, "symmetric")
    options = {"loss": losses.MultipleNegativesRankingLoss(denser), **options}
    with pytest.raises(UserError, match=message):
        ElasticLoss(denser, **options)


def test_models_without_sizes(folder):
    stock = make_denser(folder)[1]
    with pytest.raises(UserError, match="SentenceTransformer has no sizes"):
        ElasticLoss(stock, losses.MultipleNegativesRankingLoss(stock))
    one, _ = make_denser(folder, space=None, subnets=None)
    with pytest.raises(UserError, match="one size only"):
        ElasticLoss(one, losses.MultipleNegativesRankingLoss(one))


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_of_at_least_0(wrong, folder):
    denser, _ = make_denser(folder)
    inner = losses.MultipleNegativesRankingLoss(denser)
    with pytest.raises(UserError, match="alignment_weight"):
        ElasticLoss(denser, inner, alignment_weight=wrong)
    with pytest.raises(UserError, match="size_weights: small"):
        ElasticLoss(denser, inner, sampling="all", size_weights={"small": wrong})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("subnets", [[], ["whole"]])
def test_no_size_below_the_full_one_is_not_all_sizes(subnets, mode, folder):
    denser, _ = make_denser(folder, mode, subnets={**SIZES, "whole": {"num_hidden_layers": 4}})
    with pytest.raises(UserError, match="at least one size below the full one"):
        ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser), sampling="all", subnets=subnets)


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_runs_another_model_is_refused(mode, folder):
    denser, stock = make_denser(folder, mode)
    other, _ = make_denser(folder, mode)
    wrong = [
        losses.MultipleNegativesRankingLoss(stock),
        losses.MatryoshkaLoss(denser, losses.CoSENTLoss(other), [32, 8]),
        losses.ContrastiveTensionLoss(denser),
        losses.GISTEmbedLoss(denser, other),
    ]
    for loss in wrong:
        with pytest.raises(UserError, match="runs another model"):
            ElasticLoss(denser, loss)
    ElasticLoss(denser, losses.GISTEmbedLoss(denser, stock))
    ElasticLoss(denser, losses.GISTEmbedLoss(denser, denser.tower("document")))
    with pytest.raises(UserError, match="ElasticLoss already"):
        ElasticLoss(denser, ElasticLoss(denser))


def test_the_denoising_loss(folder, tmp_path):
    """Its decoder is that of the base, and shares weights with all sizes of a symmetric model, made or loaded."""
    made, _ = make_denser(folder, "symmetric")
    made.save_pretrained(str(tmp_path / "made"))
    for denser in (made, ElasticDenser(str(tmp_path / "made"), device="cpu")):
        denoising = losses.DenoisingAutoEncoderLoss(denser)
        shared = {id(weight) for weight in denoising.decoder.parameters()} & {id(weight) for weight in denser.parameters()}
        assert len(shared) > 60
        columns = [denser.preprocess(texts(6, seed)) for seed in range(2)]
        for size in (None, "tiny"):
            denser.elastic.select(size)
            denser.zero_grad()
            denoising([{**column} for column in columns], None).backward()
            assert float(denser.elastic.get_input_embeddings().weight.grad.abs().sum()) > 0
        denser.elastic.select(None)
    trainer_of(
        made, ElasticLoss(made, losses.DenoisingAutoEncoderLoss(made)), tmp_path, triplets().remove_columns("negative")
    ).train()
    single = ElasticLoss(made, losses.DenoisingAutoEncoderLoss(made), subnets=["tiny"], sampling="single_path", seed=1)
    with pytest.raises(UserError, match="it encodes 1 of 2 columns"):
        for _ in range(9):
            single([made.preprocess(texts(6, seed)) for seed in range(2)], None)


def test_the_denoising_loss_never_trains_a_fixed_tower(folder):
    denser, stock = make_denser(folder)
    denoising = losses.DenoisingAutoEncoderLoss(denser)
    with pytest.raises(UserError, match="DenoisingAutoEncoderLoss trains the tower of documents, which is fixed here"):
        ElasticLoss(denser, denoising)
    denser.train()
    assert not any(weight.requires_grad for weight in denser[0].document.parameters())
    assert np.array_equal(denser.encode_document(TEXTS), stock.encode_document(TEXTS))


def test_queries_are_never_guessed_from_a_wrong_mapping(folder):
    denser, _ = make_denser(folder)
    columns = [denser.preprocess(TEXTS, task=task) for task in ("document", "querry")]
    with pytest.raises(UserError, match="router_mapping: 'querry'"):
        ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser))(columns, None)


@pytest.mark.parametrize("mode", MODES)
def test_a_cached_loss_can_be_wrapped_again(mode, folder):
    denser, _ = make_denser(folder, mode)
    columns = [denser.preprocess(texts(6, seed)) for seed in range(2)]

    def value(loss, **options):
        return float(ElasticLoss(denser, loss, sampling="all", **options)([{**column} for column in columns], None))

    used, fresh = (losses.CachedMultipleNegativesRankingLoss(denser, mini_batch_size=3) for _ in range(2))
    denser.eval()
    value(used)
    assert value(used, alignment_weight=0.0) == pytest.approx(value(fresh, alignment_weight=0.0), abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_every_loss_with_a_cache_is_pulled(mode, folder):
    denser, stock = make_denser(folder, mode)
    plain, cached = losses.GISTEmbedLoss(denser, stock), losses.CachedGISTEmbedLoss(denser, stock, mini_batch_size=3)
    columns = [denser.preprocess(texts(6, seed)) for seed in range(2)]
    found = []
    for loss in (plain, cached):
        denser.zero_grad()
        ElasticLoss(denser, loss, sampling="all")([{**column} for column in columns], None).backward()
        found.append({name: weight.grad for name, weight in denser.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_fewer_dimensions_around_it(mode, folder):
    denser, _ = make_denser(folder, mode)
    columns = [denser.preprocess(texts(6, seed)) for seed in range(2)]
    inner = ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser), sampling="single_path")
    assert torch.isfinite(losses.MatryoshkaLoss(denser, inner, [16, 8])(columns, None))
    cached = ElasticLoss(denser, losses.CachedMultipleNegativesRankingLoss(denser, mini_batch_size=3))
    with pytest.raises(UserError, match="goes inside ElasticLoss"):
        losses.MatryoshkaLoss(denser, cached, [16, 8])(columns, None)


TWO_PROCESSES = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
import torch
from test_elastic_loss import ElasticLoss, losses, make_denser, trainer_of, triplets
denser, _ = make_denser({folder!r}, {mode!r})
trainer_of(denser, ElasticLoss(denser, losses.MultipleNegativesRankingLoss(denser)), {output!r}, max_steps=2).train()
both = [None, None]
torch.distributed.all_gather_object(both, denser.state_dict())
assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_end_with_the_same_weights(mode, folder, tmp_path):
    here = Path(__file__).parent
    facts = {"tests": str(here.parent), "here": str(here), "folder": folder, "mode": mode, "output": str(tmp_path / "out")}
    (tmp_path / "two.py").write_text(TWO_PROCESSES.format(**facts))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "two.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
