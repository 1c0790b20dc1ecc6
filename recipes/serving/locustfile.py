"""Users of a server, for `locust`: they embed, classify or rerank, whatever its model does.

    pip install locust
    locust -f recipes/serving/locustfile.py --host http://127.0.0.1:8080          and open http://localhost:8089
    locust -f recipes/serving/locustfile.py --host http://127.0.0.1:8080 --headless -u 32 -r 8 -t 60s

A user waits for an answer before the next request. The table has a line for each size that answered; a full queue (status 429)
is a failure. The key of the server is that of the variable HF_ELASTIC_API_KEY. To send requests whether or not others are
answered, use `hf-elastic simulate --server`.
"""

import os
import random
from pydoc_data.topics import topics

from locust import HttpUser, between, task

# Paragraphs of Python's own help.
TEXTS = [text for topic in topics.values() for text in topic.split("\n\n") if 32 < len(text) < 500]
CANDIDATES = 8  # texts of a rerank request


class ServingUser(HttpUser):
    """Asks, reads for a moment, and asks again."""

    wait_time = between(0.0, 0.2)

    def on_start(self):
        """Find out what the model does."""
        if key := os.environ.get("HF_ELASTIC_API_KEY"):
            self.client.headers["authorization"] = f"Bearer {key}"
        (self.kind,) = self.client.get("/info", name="/info").json()["model_type"]

    @task
    def ask(self):
        """One request for what the model does."""
        one, *others = random.sample(TEXTS, CANDIDATES + 1)
        if self.kind == "embedding":
            self.post("/embed", {"inputs": one})
        elif self.kind == "classifier":
            self.post("/predict", {"inputs": one})
        else:
            self.post("/rerank", {"query": one, "texts": others})

    def post(self, route, body):
        """Send it; it is counted under the size that answered."""
        with self.client.post(route, json={**body, "truncate": True}, catch_response=True) as response:
            response.request_meta["name"] = f"{route} {response.headers.get('x-elastic-subnet', '')}".strip()
