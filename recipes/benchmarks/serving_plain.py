"""What many write to serve a model, to compare `hf-elastic serve` with: FastAPI around sentence-transformers' `encode`.

    python recipes/benchmarks/serving_plain.py MODEL [--port 8081] [--threads 1] [--inline]

A request is one call of `encode`. FastAPI runs it in a pool of threads; with `--inline` it runs in the event loop, one at a time.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hf-elastic serve sets it

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    """A text, or several."""

    inputs: str | list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inline", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, app = SentenceTransformer(args.model, device="cpu"), FastAPI()

    def embed(body: Body) -> list:
        return model.encode(body.inputs, show_progress_bar=False).tolist()

    async def embed_inline(body: Body) -> list:
        return embed(body)

    app.post("/embed")(embed_inline if args.inline else embed)

    @app.get("/health")
    def health() -> None:
        """It is up."""

    uvicorn.run(app, port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
