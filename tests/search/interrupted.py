"""A search for tests to kill: python interrupted.py STORAGE LOG [evaluation at which to hang] [seconds per evaluation]."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import torch
from transformers import BertForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.search import Objective, search_subnets

storage, log = sys.argv[1], Path(sys.argv[2])
hang_at, seconds = (int(sys.argv[3]) if len(sys.argv) > 3 else 0), (float(sys.argv[4]) if len(sys.argv) > 4 else 0)
torch.manual_seed(0)
torch.set_num_threads(1)
base = tiny.randomize(BertForSequenceClassification(tiny.config_of("bert", num_labels=3)))
model = ElasticForSequenceClassification.from_base(base, space=tiny.space_of("bert"))
started = []


def compute_quality(view):
    started.append(view)
    weights = sum(parameter.numel() for parameter in view.parameters())
    with log.open("a") as file:
        file.write(f"{[(name, tuple(p.shape)) for name, p in view.named_parameters()]}\n")
    if len(started) == hang_at:
        print("hanging", flush=True)
        time.sleep(600)
    time.sleep(seconds)
    return {"score": float(weights % 1000)}


frontier = search_subnets(
    model,
    [Objective("score", "maximize"), "latency"],
    compute_quality=compute_quality,
    n_trials=12,
    population_size=4,
    algorithm="nsga2",
    sequence_length=4,
    storage=storage,
    stale_after=6,
)
frontier.save(log.with_name(f"frontier-{os.getpid()}.json"))
