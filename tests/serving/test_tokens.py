"""Texts become the tokens that transformers' own tokenizer gives, in any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from served import save

pytest.importorskip("sentence_transformers", minversion="6")
from sentences import texts
from tiny import WORDS, save_tokenizer
from transformers import AutoTokenizer

from hf_elastic.core.errors import UserError
from hf_elastic.serving.tokens import InputError, TextEncoder

pytestmark = pytest.mark.one_lane

TEXTS = texts(12)
PAIRS = list(zip(TEXTS, texts(12, seed=1)))


@pytest.fixture
def tokenizer(tmp_path):
    return save_tokenizer(tmp_path)


@pytest.mark.parametrize("inputs", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_that_of_transformers(inputs, side, tokenizer):
    tokenizer.padding_side = side
    encoder = TextEncoder(tokenizer, 64)
    expected = tokenizer(inputs, padding=True, return_tensors="pt")
    found = encoder.pad(encoder.encode(inputs))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("inputs", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_too_long_is_cut_as_transformers_does(inputs, side, tokenizer):
    tokenizer.truncation_side = side
    expected = tokenizer(inputs, truncation="longest_first", max_length=7)["input_ids"]
    encoder = TextEncoder(tokenizer, 7)
    assert [list(one.ids) for one in encoder.encode(inputs, truncate=True, direction=side)] == expected
    with pytest.raises(InputError, match="at most 7 tokens, given: "):
        encoder.encode(inputs)


def test_ids_are_taken_as_they_are(tokenizer):
    encoder = TextEncoder(tokenizer, 4)
    assert [one.ids for one in encoder.encode([[7, 8], "word1", [9]])] == [(7, 8), (2, 6, 3), (9,)]
    assert encoder.encode([[5, 6, 7, 8, 9]], truncate=True, direction="left")[0].ids == (6, 7, 8, 9)
    for wrong in ([-1], [len(tokenizer)], [10**30], []):
        with pytest.raises(UserError, match=f"from 0 to {len(tokenizer) - 1}"):
            encoder.encode([wrong])
    with pytest.raises(UserError, match="`ids` must be from 0 to"):
        encoder.decode([10**30])


def test_a_text_without_tokens(tokenizer):
    encoder = TextEncoder(tokenizer, 4)
    assert encoder.encode([""])[0].ids == (2, 3)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(UserError, match="has no tokens"):
        TextEncoder(tokenizer, 4).encode(["word1", ""])


def test_decoding(tokenizer):
    encoder = TextEncoder(tokenizer, 64)
    for text in TEXTS:
        assert encoder.decode(encoder.encode([text])[0].ids) == text
        assert encoder.decode(encoder.encode([text])[0].ids, skip_special=False) == f"[CLS] {text} [SEP]"


def test_many_threads_that_cut_and_do_not_cut(tokenizer):
    encoder = TextEncoder(tokenizer, 64)
    expected = [one.ids for one in encoder.encode(TEXTS)]
    short = TextEncoder(AutoTokenizer.from_pretrained(tokenizer.name_or_path), 5)

    def both(_):
        return [one.ids for one in encoder.encode(TEXTS)], [len(one) for one in short.encode(TEXTS, truncate=True)]

    with ThreadPoolExecutor(8) as pool:
        for found, lengths in pool.map(both, range(100)):
            assert found == expected and lengths == [min(5, len(one)) for one in expected]


def test_a_prompt_is_written_before_each_text(tokenizer):
    encoder = TextEncoder(tokenizer, 64)
    plain, prompted = encoder.encode(["word1"])[0], encoder.encode(["word1"], prompt=f"{WORDS[2]} {WORDS[3]} ")[0]
    assert prompted.ids == (*plain.ids[:1], *tokenizer.convert_tokens_to_ids(WORDS[2:4]), *plain.ids[1:])
    assert (plain.prompt_length, prompted.prompt_length) == (0, 3)


def test_a_tokenizer_in_python_is_refused():
    class Slow:
        pass

    with pytest.raises(UserError, match=r"Slow has no tokenizer\.json"):
        TextEncoder(Slow(), 8)


def test_models_keep_their_tokenizers(tmp_path):
    """What is served leaves the tokenizer on disk as it was."""
    path = save("symmetric", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    before = tokenizer.backend_tokenizer.to_str()
    TextEncoder(tokenizer, 5).encode(TEXTS, truncate=True)
    assert tokenizer.backend_tokenizer.to_str() == before
