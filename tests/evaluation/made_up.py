"""Made-up data in the formats of the 14 tasks, and tiny GPT-2s with a tokenizer of whole words."""

import gzip
import json
import random

import torch
from tiny import config_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{index}" for index in range(60)]
ITEMS = 12
ANSWER_TOKENS = 24  # what triviaqa generates
LETTERED = ("commonsense_qa", "siqa", "logi_qa")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, so that lengths are counted by hand."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, *"ABCD", "no", "yes"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Sequence([decoders.Replace("w", " w")])  # decoding glues tokens together: separate the words again
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special, model_input_names=["input_ids", "attention_mask"])


def rigged(word: str) -> torch.nn.Module:
    """A GPT-2 that expects one word everywhere, whatever came before: its last norm gives the same vector for every input."""
    model = AutoModelForCausalLM.from_config(config_of("gpt2", n_positions=256)).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        model.transformer.wte.weight[:, 0] = 0.0
        model.transformer.wte.weight[tokenizer().convert_tokens_to_ids(word), 0] = 20.0
    return model


def write(folder, name: str, rows: list[dict]) -> None:
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_all(folder, seed: int = 0):
    """Every data file; no two items of a file share a word of their question."""
    generator = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(generator.choices(WORDS, k=count))

    def chosen(name: str, query: str, count: int, choices=None) -> None:
        rows = []
        for index in range(ITEMS):
            given = choices or [words(generator.randint(1, 4)) for _ in range(count)]
            text = query.format(f"{name}{index} {words(3)}")
            rows.append({"query": text, "choices": given, "gold": generator.randrange(len(given))})
        write(folder, name, rows)

    chosen("piqa", "Question: {}\n", 2)
    chosen("arc_easy", "Question: {}?", 4)
    chosen("arc_challenge", "Question: {}?", 5)
    chosen("openbook_qa", "{}", 4)
    chosen("hellaswag_val", "{}", 4)
    chosen("copa", "{} because", 2)
    chosen("boolq", "Passage: {}\nQuestion: is it?", 2, ["no", "yes"])
    for name, count in zip(LETTERED, (4, 2, 4)):
        chosen(
            name, "Question: {}\nChoices:\nA. one\nAnswer:" if name != "logi_qa" else "Context: {}\n", count, list("ABCD"[:count])
        )
    for name in ("winogrande", "winograd_wsc"):
        rows = []
        for index in range(ITEMS):
            contexts = [f"{name}{index} {words(2)} because {words(1)}" for _ in range(2)]
            rows.append({"context_options": contexts, "continuation": words(2), "gold": generator.randrange(2)})
        write(folder, name, rows)
    rows = [
        {"context": f"lambada{index} {words(4)}", "continuation": "w1 w1" if index == 5 else words(1 + index % 2)}
        for index in range(ITEMS)
    ]
    write(folder, "lambada_openai", rows)
    rows = [{"context": f"Question: trivia{index}\nAnswer:", "answer": words(1), "aliases": [words(1)]} for index in range(ITEMS)]
    rows[3]["aliases"].append(" ".join(["w1"] * ANSWER_TOKENS))
    write(folder, "triviaqa_sm_sub", rows)
    return folder
