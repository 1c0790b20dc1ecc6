"""Which neurons matter."""

import pytest
import torch
from tiny import batch, config_of, randomize

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.core.importance import gradients_of


def test_taylor_ranks_by_effect_and_not_by_size():
    """A neuron with huge weights that never fires is kept longest by magnitude and cut first by Taylor."""
    config = config_of("bert", num_labels=2)
    stock = ElasticForSequenceClassification.stock_class(config)
    space = {"intermediate_size": [12, 47, 48]}
    batches = [{**batch(seed=seed), "labels": torch.tensor([0, 1, 0])} for seed in range(3)]
    places = []
    for options in ({"importance": "magnitude"}, {"importance": "taylor", "calibration": iter(batches)}):
        torch.manual_seed(0)
        base = randomize(stock(config))
        with torch.no_grad():
            inner = base.bert.encoder.layer[1].intermediate.dense
            inner.weight[5], inner.bias[5] = 10.0 * torch.sign(inner.weight[5]), -1e6
            expected = base(**batch(seed=7)).logits
        model = ElasticForSequenceClassification.from_base(base, space=space, **options)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch(seed=7)).logits, expected, atol=1e-4, rtol=1e-4)
        places.append(model.base.bert.encoder.layer[1].intermediate.dense.bias.argmin().item())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert places == [0, 47]


def test_gradients_are_the_root_of_summed_squares():
    config = config_of("bert", num_labels=2)
    model = ElasticForSequenceClassification.from_base(randomize(ElasticForSequenceClassification.stock_class(config)(config)))
    batches = [{**batch(seed=seed), "labels": torch.tensor([0, 1, 0])} for seed in range(2)]
    found = gradients_of(model, batches)["classifier.weight"]
    squares = torch.zeros_like(found)
    for one in batches:
        (gradient,) = torch.autograd.grad(model.base(**one).loss, model.base.classifier.weight)
        squares += gradient**2
    torch.testing.assert_close(found, squares.sqrt())


def test_taylor_needs_batches():
    config = config_of("bert", num_labels=2)
    base = ElasticForSequenceClassification.stock_class(config)(config)
    with pytest.raises(ValueError, match="importance: 'taylor' needs calibration batches"):
        ElasticForSequenceClassification.from_base(base, importance="taylor")
    with pytest.raises(ValueError, match="importance: 'magnitude' takes no calibration batches"):
        ElasticForSequenceClassification.from_base(base, calibration=[batch()])
    with pytest.raises(ValueError, match="taylor needs at least one batch with labels"):
        ElasticForSequenceClassification.from_base(base, importance="taylor", calibration=[])
