"""The queue before the model, and the thread that runs it."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from served import Stopped, make, save, until

pytest.importorskip("sentence_transformers", minversion="6")
from sentences import texts

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.loading import load_denser
from hf_elastic.serving.config import SchedulerConfig
from hf_elastic.serving.engine import Row
from hf_elastic.serving.worker import BackendError, DeadlineError, DrainingError, OverloadedError, Worker

pytestmark = pytest.mark.one_lane

TEXTS = texts(40)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save("symmetric", tmp_path_factory.mktemp("worker"))


@pytest.fixture
def start(path):
    """Start a worker; it is closed afterwards."""
    started = []

    def start(max_queue=512, on_batch=lambda *given: None, **scheduling):
        config = SchedulerConfig(**{"latency_objective": 60_000, **scheduling})
        started.append(Worker(lambda: make(path, config), max_queue=max_queue, on_batch=on_batch).start())
        return started[-1], started[-1].ready.result()[0]

    yield start
    for worker in started:
        worker.close()
        assert not worker.is_healthy and worker.unanswered == worker.waiting == 0


def rows(engine, inputs):
    return [Row(tokens) for tokens in engine.encoder.encode(inputs)]


def test_every_answer_is_that_of_its_size_while_sizes_change(start, path):
    worker, engine = start(max_batch_size=5, max_batch_tokens=60, latency_objective=5)
    model = load_denser(path, "cpu")
    offline = {name: model.encode(TEXTS, subnet=name) for name in engine.sizes}
    used, wrong = set(), []

    def ask(seed):
        generator = np.random.default_rng(seed)
        for _ in range(25):
            places = generator.choice(len(TEXTS), generator.integers(1, 9), replace=False)
            subnet = generator.choice([None, None, *engine.sizes])
            answer = worker.submit(rows(engine, [TEXTS[place] for place in places]), subnet=subnet).result(60)
            found = np.array([engine.embedding(output.values) for output in answer.outputs])
            used.add(answer.subnet)
            if subnet not in (None, answer.subnet) or np.abs(found - offline[answer.subnet][places]).max() > 1e-5:
                wrong.append((seed, subnet, answer.subnet))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and used == set(engine.sizes)


def test_all_texts_of_a_request_are_answered_at_one_size(start):
    batches = []
    worker, engine = start(
        on_batch=lambda *given: batches.append(given), max_batch_size=4, policy="table", table={0: "full", 6: "tiny"}
    )
    stopped = Stopped(engine, "full")
    first = worker.submit(rows(engine, TEXTS[:1]))
    until(lambda: stopped.runs == 1)
    many = worker.submit(rows(engine, TEXTS[:8]))  # eight wait: the size for that is tiny, four of them later it were full
    stopped.may_run.set()
    assert first.result(60).subnet == "full" and many.result(60).subnet == "tiny"
    assert len(many.result().outputs) == 8
    until(lambda: len(batches) == 3)
    assert [(batch.subnet, len(batch.requests)) for batch, _, _ in batches] == [("full", 1), ("tiny", 4), ("tiny", 4)]


def test_a_list_takes_as_much_room_as_single_texts(start):
    worker, engine = start(max_queue=8)
    stopped = Stopped(engine, "full")
    running = worker.submit(rows(engine, TEXTS[:1]), subnet="full")
    until(lambda: stopped.runs == 1 and worker.waiting == 0)
    waiting = [worker.submit(rows(engine, TEXTS[:5])), *(worker.submit(rows(engine, [text])) for text in TEXTS[:2])]
    with pytest.raises(OverloadedError) as refused:
        worker.submit(rows(engine, TEXTS[:2]))
    assert refused.value.retry_after >= 1
    waiting.append(worker.submit(rows(engine, TEXTS[:1])))
    for count in (1, 2, 8):
        with pytest.raises(OverloadedError):
            worker.submit(rows(engine, TEXTS[:count]))
    stopped.may_run.set()
    assert [len(one.result(60).outputs) for one in [running, *waiting]] == [1, 5, 1, 1, 1]


def test_what_is_given_up_is_not_run(start):
    batches = []
    worker, engine = start(on_batch=lambda *given: batches.append(given), max_queue=4)
    stopped = Stopped(engine, "full")
    running = worker.submit(rows(engine, TEXTS[:1]), subnet="full")
    until(lambda: stopped.runs == 1)
    given_up = worker.submit(rows(engine, TEXTS[:4]))
    with pytest.raises(OverloadedError):
        worker.submit(rows(engine, TEXTS[:1]))
    assert given_up.cancel() and worker.waiting == 0
    kept = worker.submit(rows(engine, TEXTS[:2]))
    running.cancel()
    stopped.may_run.set()
    assert len(kept.result(60).outputs) == 2
    with pytest.raises(CancelledError):
        given_up.result()
    until(lambda: len(batches) == 2)
    assert [len(batch.requests) for batch, _, _ in batches] == [1, 2]


def test_a_deadline_that_has_passed(start):
    late = []
    worker, engine = start(on_batch=lambda batch, seconds, count: late.append(count))
    stopped = Stopped(engine, "full")
    running = worker.submit(rows(engine, TEXTS[:1]), subnet="full")
    until(lambda: stopped.runs == 1)
    passed = worker.submit(rows(engine, TEXTS[:3]), deadline=worker.clock())
    in_time = worker.submit(rows(engine, TEXTS[:3]), deadline=worker.clock() + 600)
    stopped.may_run.set()
    with pytest.raises(DeadlineError):
        passed.result(60)
    assert len(in_time.result(60).outputs) == 3 and len(running.result(60).outputs) == 1
    until(lambda: len(late) == 2)
    assert late == [0, 0]


def test_wishes_that_no_size_fulfils(start):
    worker, engine = start()
    some = rows(engine, TEXTS[:1])
    assert worker.submit(some, min_quality=0.85).result(60).subnet == "full"
    with pytest.raises(UserError, match="'huge' is no size here; sizes: full, small, tiny"):
        worker.submit(some, subnet="huge")
    with pytest.raises(UserError, match=r"at least 0\.95; known: full 0\.9, small 0\.8, tiny 0\.7"):
        worker.submit(some, min_quality=0.95)
    with pytest.raises(UserError, match="tiny has not"):
        worker.submit(some, subnet="tiny", min_quality=0.75)
    assert worker.waiting == worker.unanswered == 0


def test_draining_answers_what_was_accepted(start):
    worker, engine = start()
    stopped = Stopped(engine, "full")
    accepted = [worker.submit(rows(engine, TEXTS[:3]), subnet="full") for _ in range(5)]
    worker.drain()
    assert not worker.is_healthy and worker.is_draining
    with pytest.raises(DrainingError):
        worker.submit(rows(engine, TEXTS[:1]))
    stopped.may_run.set()
    assert [len(one.result(60).outputs) for one in accepted] == [3] * 5


def test_a_batch_that_fails_takes_no_other_with_it(start, caplog):
    worker, engine = start()
    tower = engine.towers["small"]

    def broken(features):
        raise MemoryError

    engine.towers["small"] = broken
    with pytest.raises(BackendError, match="the model has failed: MemoryError"):
        worker.submit(rows(engine, TEXTS[:3]), subnet="small").result(60)
    assert "of 3 texts has failed at the size small" in caplog.text and "MemoryError" in caplog.text
    assert len(worker.submit(rows(engine, TEXTS[:3]), subnet="tiny").result(60).outputs) == 3
    engine.towers["small"] = tower
    assert len(worker.submit(rows(engine, TEXTS[:3]), subnet="small").result(60).outputs) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_stops_says_so(start):
    worker, engine = start()
    stopped = Stopped(engine, "full")
    running = worker.submit(rows(engine, TEXTS[:1]), subnet="full")
    until(lambda: stopped.runs == 1)
    waiting = worker.submit(rows(engine, TEXTS[:1]))
    worker.ready.result()[1].next = None  # whatever the reason, a scheduler that cannot be called
    stopped.may_run.set()
    running.result(60)
    with pytest.raises(BackendError, match="the worker has stopped: TypeError"):
        waiting.result(60)
    until(lambda: not worker.is_healthy)
    with pytest.raises(DrainingError):
        worker.submit(rows(engine, TEXTS[:1]))


def test_a_model_that_cannot_be_loaded(tmp_path):
    config = SchedulerConfig()
    worker = Worker(lambda: make(str(tmp_path / "nowhere"), config), max_queue=4).start()
    with pytest.raises((UserError, OSError), match="nowhere"):
        worker.ready.result(60)
    assert not worker.is_healthy
    worker.close()


def test_the_model_runs_in_one_thread_only(start):
    worker, engine = start()
    threads = set()
    for name, tower in engine.towers.items():
        engine.towers[name] = lambda features, tower=tower: (threads.add(threading.get_ident()), tower(features))[1]
    for name in engine.sizes * 3:
        worker.submit(rows(engine, TEXTS[:4]), subnet=name).result(60)
    assert len(threads) == 1 and threading.get_ident() not in threads
