"""The task files: each parses, asks what it should, and scores as counted by hand; the shot is never the item itself."""

import gzip
import json

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hf-elastic[evaluate]'")

from made_up import ANSWER_TOKENS, ITEMS, rigged, tokenizer, write

from hf_elastic.evaluation.candidates import Candidate, torch_call
from hf_elastic.evaluation.harness import SEED, CandidateLM, chance, load_task, run_task
from hf_elastic.evaluation.results import macro_average
from hf_elastic.evaluation.suite import find_tasks, task_names

pytestmark = pytest.mark.one_lane

CHOICES = {
    "arc_challenge": 5, "arc_easy": 4, "boolq": 2, "commonsense_qa": 4, "copa": 2, "hellaswag": 4, "logiqa": 4, "openbookqa": 4,
    "piqa": 2, "siqa": 2, "winogrande": 2, "wsc273": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def expects_w1():
    model = rigged("w1")
    return CandidateLM(Candidate("full", None, 0, model, True, torch_call(model)), tokenizer(), 4)


def read(file):
    return [json.loads(line) for line in gzip.open(file.data, "rt")]


def best(scores) -> int:
    """The first of the largest."""
    return scores.index(max(scores))


def expected(name, metric, row) -> bool:
    """Whether a model that expects w1 everywhere is right: every other token costs the same, and ties go to the first choice."""
    if name == "triviaqa":
        return " ".join(["w1"] * ANSWER_TOKENS) in row["aliases"]
    if name == "lambada_openai":
        return set(row["continuation"].split()) == {"w1"}
    if "context_options" in row:  # the same words are scored after either
        return row["gold"] == 0
    costs = [-sum(word != "w1" for word in choice.split()) for choice in row["choices"]]
    if metric == "acc_norm":
        costs = [cost / len(choice) for cost, choice in zip(costs, row["choices"])]
    return best(costs) == row["gold"]


def prompts_of(task, file, num_fewshot, seed=SEED):
    """Contexts of every item, as lists: a few for one item where they differ between choices."""
    task.set_fewshot_seed(seed)
    task.build_all_requests(limit=None)
    found = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance.args[0])
    return [found[index] for index in range(ITEMS)]


def test_there_are_fourteen():
    assert task_names() == sorted([*CHOICES, "lambada_openai", "triviaqa"])


@pytest.mark.parametrize("name", task_names())
def test_accuracy_of_a_rigged_model(name, data, expects_w1):
    (file,) = find_tasks([name], data)
    score = run_task(file, load_task(file), expects_w1)
    rows = read(file)
    right = [expected(name, file.metric, row) for row in rows]
    share = sum(right) / len(right)
    assert score.value == pytest.approx(share) and score.items == len(rows)
    assert score.stderr == pytest.approx((share * (1 - share) / (len(rows) - 1)) ** 0.5)
    assert 0 < share < 1
    plain = [expected(name, "acc", row) for row in rows]
    assert score.metrics.get("acc", share) == pytest.approx(sum(plain) / len(plain))


@pytest.mark.parametrize("name", task_names())
def test_the_shot_is_another_item(name, data):
    """Over several seeds: one shot before each item, with its answer, never the item itself; and never the same for all."""
    (file,) = find_tasks([name], data)
    zero, one = load_task(file), load_task(file, num_fewshot=1)
    plain = prompts_of(zero, file, 0)
    answers = [one.doc_to_target(row, one.fewshot_cfg.doc_to_target) for row in one.eval_docs]
    for seed in range(10):
        shots = []
        for index, (bare, shown) in enumerate(zip(plain, prompts_of(one, file, 1, seed))):
            before = {long.removesuffix(short) for short, long in zip(bare, shown)}
            assert all(long.endswith(short) for short, long in zip(bare, shown)) and len(before) == 1
            (shot,) = before
            sources = [other for other, texts in enumerate(plain) if any(shot.startswith(text) for text in texts)]
            assert sources and index not in sources, shot
            answer = answers[sources[0]]
            if isinstance(answer, int):
                answer = one.doc_to_choice(one.eval_docs[sources[0]])[answer]
            assert shot.endswith(f" {answer.strip()}\n\n") and f"  {answer.strip()}" not in shot
            shots.append(shot)
        assert len(set(shots)) > 1


def test_every_size_gets_the_same_shots(data):
    (file,) = find_tasks(["piqa"], data)
    task = load_task(file, num_fewshot=1)
    assert prompts_of(task, file, 1) == prompts_of(task, file, 1)


def test_prompts(data):
    """As lm-eval's own tasks."""
    asked = {}
    for file in find_tasks(None, data):
        task = load_task(file)
        task.build_all_requests(limit=1)
        asked[file.name] = task.instances[0].args[:2]
    row = {file.name: read(file)[0] for file in find_tasks(None, data)}
    first = {name: f" {row[name]['choices'][0]}" for name in row if "choices" in row[name]}
    assert asked["piqa"] == (f"{row['piqa']['query']}Answer:", first["piqa"])
    assert asked["arc_easy"] == (f"{row['arc_easy']['query']}\nAnswer:", first["arc_easy"])
    assert asked["hellaswag"] == (row["hellaswag"]["query"], first["hellaswag"])
    assert asked["boolq"] == (f"{row['boolq']['query'].removeprefix('Passage: ')}\nAnswer:", " no")
    assert asked["winogrande"] == (row["winogrande"]["context_options"][0], f" {row['winogrande']['continuation']}")
    assert asked["triviaqa"][0] == row["triviaqa"]["context"]
    assert asked["lambada_openai"] == (row["lambada_openai"]["context"], f" {row['lambada_openai']['continuation']}")


@pytest.mark.parametrize("name", task_names())
def test_chance(name, data):
    (file,) = find_tasks([name], data)
    assert chance(load_task(file)) == pytest.approx(1 / CHOICES[name] if name in CHOICES else 0)


def test_chance_counts_the_choices_of_every_item_that_is_asked(tmp_path):
    write(tmp_path, "copa", [{"query": "w1", "choices": ["w2"] * count, "gold": 0} for count in (2, 4, 5)])
    (file,) = find_tasks(["copa"], tmp_path)
    assert chance(load_task(file)) == pytest.approx((1 / 2 + 1 / 4 + 1 / 5) / 3)
    assert chance(load_task(file), limit=2) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_what_does_not_fit_is_counted(tmp_path, expects_w1):
    """The beginning is lost, and said to be."""
    rows = [{"query": "w2 " * length, "choices": ["w1", "w2"], "gold": 0} for length in (3, 254, 255, 256, 300)]
    write(tmp_path, "copa", [{**row, "query": row["query"].strip()} for row in rows])
    (file,) = find_tasks(["copa"], tmp_path)
    score = run_task(file, load_task(file), expects_w1)
    assert score.value == 1 and score.truncated == 2  # 300 words, once for each choice: 256 go in, the answer comes after them


def test_an_answer_longer_than_the_input_counts_by_its_beginning(tmp_path, expects_w1):
    long = " ".join(["w1"] * 256)
    rows = [
        {"query": "w2", "choices": [f"{long} w2", "w2"], "gold": 0},
        {"query": "w2", "choices": [f"w2 {long}", "w1"], "gold": 1},
    ]
    write(tmp_path, "copa", rows)
    (file,) = find_tasks(["copa"], tmp_path)
    score = run_task(file, load_task(file), expects_w1)
    assert score.value == 1 and score.truncated == 2


def test_macro_average(data, expects_w1):
    scores = [run_task(file, load_task(file), expects_w1) for file in find_tasks(["copa", "piqa"], data)]
    value, stderr = macro_average(scores)
    assert value == pytest.approx((scores[0].value + scores[1].value) / 2)
    assert stderr == pytest.approx((scores[0].stderr ** 2 + scores[1].stderr ** 2) ** 0.5 / 2)
    (file,) = find_tasks(["copa"], data)
    single = run_task(file, load_task(file), expects_w1, limit=1)
    assert single.items == 1 and single.stderr is None and macro_average([single])[1] is None
