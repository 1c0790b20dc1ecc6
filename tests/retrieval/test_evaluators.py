"""sentence-transformers' own evaluators run on models with sizes, and say of the full size what they say of the stock model."""

import pytest
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.cross_encoder import evaluation as of_pairs
from sentence_transformers.sentence_transformer import evaluation
from sentences import make_denser, make_ranker, save_cross_encoder, save_sentence_transformer, texts

pytestmark = pytest.mark.one_lane

ONE, OTHER, THIRD = texts(8, 1), texts(8, 2), texts(8, 3)
SCORES, LABELS = [number / 8 for number in range(8)], [0, 1] * 4
DOCUMENTS = {f"d{number}": text for number, text in enumerate(texts(20, 4))}
QUERIES = {f"q{number}": text for number, text in enumerate(ONE)}
RIGHT = {f"q{number}": {f"d{number}", f"d{number + 9}"} for number in range(8)}
SAMPLES = [{"query": one, "positive": [two], "negative": [three, one]} for one, two, three in zip(ONE, OTHER, THIRD)]
DENSE = {
    "similarity": lambda stock: evaluation.EmbeddingSimilarityEvaluator(ONE, OTHER, SCORES),
    "binary": lambda stock: evaluation.BinaryClassificationEvaluator(ONE, OTHER, LABELS),
    "retrieval": lambda stock: evaluation.InformationRetrievalEvaluator(QUERIES, DOCUMENTS, RIGHT),
    "mse": lambda stock: evaluation.MSEEvaluator(ONE, ONE, teacher_model=stock),
    "paraphrases": lambda stock: evaluation.ParaphraseMiningEvaluator(DOCUMENTS, [("d1", "d2"), ("d3", "d4")]),
    "reranking": lambda stock: evaluation.RerankingEvaluator(SAMPLES),
    "translation": lambda stock: evaluation.TranslationEvaluator(ONE, OTHER),
    "triplets": lambda stock: evaluation.TripletEvaluator(ONE, OTHER, THIRD),
    "several": lambda stock: SequentialEvaluator(
        [evaluation.TripletEvaluator(ONE, OTHER, THIRD), evaluation.TranslationEvaluator(ONE, OTHER)]
    ),
}
PAIRS = list(map(list, zip(ONE, OTHER)))
OF_PAIRS = {
    "correlation": lambda: of_pairs.CrossEncoderCorrelationEvaluator(PAIRS, SCORES),
    "classification": lambda: of_pairs.CrossEncoderClassificationEvaluator(PAIRS, LABELS),
    "reranking": lambda: of_pairs.CrossEncoderRerankingEvaluator(SAMPLES),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = save_sentence_transformer(tmp_path_factory.mktemp("dense"))
    dense = {mode: make_denser(folder, mode, importance="none")[0] for mode in ("asymmetric", "symmetric")}
    ranker, cross = make_ranker(save_cross_encoder(tmp_path_factory.mktemp("cross")), importance="none")
    return {"stock": make_denser(folder)[1], **dense, "ranker": ranker, "cross": cross}


@pytest.mark.parametrize("mode", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("name", DENSE)
def test_of_sentences(name, mode, models):
    evaluator = DENSE[name](models["stock"])
    expected = models["stock"].evaluate(evaluator)
    assert models[mode].evaluate(evaluator) == pytest.approx(expected, rel=1e-5, abs=1e-7) and expected


@pytest.mark.parametrize("name", OF_PAIRS)
def test_of_pairs(name, models):
    expected = models["cross"].evaluate(OF_PAIRS[name]())
    assert models["ranker"].evaluate(OF_PAIRS[name]()) == pytest.approx(expected, rel=1e-5, abs=1e-7) and expected
