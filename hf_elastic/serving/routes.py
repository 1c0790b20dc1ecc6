"""The routes of a model, which are those of text-embeddings-inference that its head can answer."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

import hf_elastic_cli

from ..core.errors import UserError
from . import schemas
from .engine import EMBEDDING, RERANKER, Row
from .service import Service, Wishes, wishes
from .tokens import EmptyError, Text

Wanted = Annotated[Wishes, Depends(wishes)]
VERSION = hf_elastic_cli.value_of("hf_elastic", "__version__")
SUBNET_HEADER, DEADLINE_HEADER = "x-elastic-subnet", "x-elastic-deadline-ms"
REFUSALS = {
    401: "The API key is missing or wrong.",
    400: "No text, an empty one, or what is no JSON.",
    413: "Too many texts, tokens, bytes or dimensions, or an unknown prompt.",
    415: "Not sent as application/json.",
    422: "A value of another type, a token that the tokenizer does not know, or a header that is not allowed.",
    424: "The model has failed.",
    429: "The queue is full; `Retry-After` says for how many seconds.",
    503: "The server is shutting down.",
    504: "The deadline has passed.",
}


def refusals(model: type = schemas.ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """What a route answers where it does not answer."""
    return {status: {"model": model, "description": text} for status, text in REFUSALS.items()}


def reply(data: Any, subnet: str | None = None) -> Response:
    """JSON, and the size that it comes from; FastAPI would check each number of a vector."""
    headers = {} if subnet is None else {SUBNET_HEADER: subnet}
    return Response(to_json(data), media_type="application/json", headers=headers)


def texts_of(inputs: schemas.Inputs) -> list[Text]:
    """One text, or ids of one, as a list of it."""
    return [inputs] if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)) else list(inputs)


def sequences_of(inputs: str | list) -> tuple[list[Text], bool]:
    """Texts and pairs, and whether it was a list of them."""
    is_many = not isinstance(inputs, str) and not isinstance(inputs[0], str)
    given = inputs if is_many else [[inputs] if isinstance(inputs, str) else inputs]
    return [one[0] if len(one) == 1 else (one[0], one[1]) for one in given], is_many


def make_router(service: Service) -> APIRouter:
    """All routes of the served model."""
    router = APIRouter()
    common(router, service)
    if service.engine.kind == EMBEDDING:
        embedding(router, service)
    else:
        scores(router, service)
    return router


def common(router: APIRouter, service: Service) -> None:
    """Routes of every model."""
    engine, encoder = service.engine, service.engine.encoder

    @router.post("/tokenize", response_model=list[list[schemas.SimpleToken]], responses=refusals())
    async def tokenize(body: schemas.TokenizeRequest) -> Response:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        service.check(texts)
        found = []
        for text in texts:
            encoding = encoder.describe(text, prompt=service.prompt(body.prompt_name), special=body.add_special_tokens)
            written = service.prompt(body.prompt_name) + text
            found.append(
                [
                    {"id": number, "text": token if special else written[start:stop], "special": special}
                    | ({"start": None, "stop": None} if special else {"start": start, "stop": stop})
                    for number, token, (start, stop) in zip(encoding.ids, encoding.tokens, encoding.offsets)
                    for special in [encoder.is_special(number)]
                ]
            )
        return reply(found)

    @router.post("/decode", response_model=list[str], responses=refusals())
    async def decode(body: schemas.DecodeRequest) -> Response:
        many = texts_of(body.ids)
        service.check(many, "ids")
        return reply([encoder.decode(ids, skip_special=body.skip_special_tokens) for ids in many])

    @router.get("/info", responses={401: {"model": schemas.ErrorResponse}})
    async def info() -> dict[str, Any]:
        labels = dict(enumerate(engine.labels))
        heads = {"id2label": labels, "label2id": {name: place for place, name in labels.items()}}
        profile = service.scheduler.costs.profile
        return {
            "model_id": engine.name,
            "model_sha": None,
            "model_dtype": engine.dtype,
            "model_type": {engine.kind: {"pooling": engine.pooling} if engine.kind == EMBEDDING else heads},
            "max_concurrent_requests": service.config.max_queue,
            "max_input_length": encoder.max_length,
            "max_batch_tokens": service.scheduler.config.max_batch_tokens,
            "max_batch_requests": service.scheduler.config.max_batch_size,
            "max_client_batch_size": service.config.max_client_batch_size,
            "auto_truncate": service.config.auto_truncate,
            "tokenization_workers": 1,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
            "backend": engine.backend,
            "policy": service.scheduler.config.policy,
            "latency_objective_ms": service.scheduler.config.latency_objective,
            "subnets": [{"name": size.name, "quality": size.quality, "flops": size.flops} for size in profile.sizes],
        }

    @router.head("/health", include_in_schema=False)
    @router.get("/health", response_class=Response, responses={503: {"model": schemas.ErrorResponse}})
    async def health() -> Response:
        if service.worker.is_healthy:
            return Response()
        why = "the server is shutting down" if service.worker.is_draining else "the worker has stopped"
        return Response(to_json({"error": why, "error_type": "Unhealthy"}), 503, media_type="application/json")

    @router.get("/metrics", response_class=PlainTextResponse, responses={401: {"model": schemas.ErrorResponse}})
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


def embedding(router: APIRouter, service: Service) -> None:
    """Routes of models that give vectors."""
    engine = service.engine

    async def vectors(request: Request, texts: Sequence[Text], options: schemas.WithPrompt, wanted: Wishes, **given):
        """Normalised vectors unless `given` says otherwise, the size that they come from, and how many tokens were read."""
        if (dimensions := given.get("dimensions")) is not None:
            engine.check_dimensions(dimensions)
        wanted = service.for_prompt(wanted, options.prompt_name)
        tokens = await encode(texts, options)
        answer = await service.answer(request, [Row(one) for one in tokens], wanted)
        found = [engine.embedding(output.values, **given) for output in answer.outputs]
        return found, answer.subnet, sum(map(len, tokens))

    async def encode(texts: Sequence[Text], options: schemas.WithPrompt):
        return await service.encode(
            texts, prompt_name=options.prompt_name, truncate=options.truncate, direction=options.truncation_direction
        )

    @router.post("/embed", response_model=list[list[float]], responses=refusals())
    async def embed(request: Request, body: schemas.EmbedRequest, wanted: Wanted) -> Response:
        given = {"normalize": body.normalize, "dimensions": body.dimensions}
        found, subnet, _ = await vectors(request, texts_of(body.inputs), body, wanted, **given)
        return reply([vector.tolist() for vector in found], subnet)

    @router.post("/embed_all", response_model=list[list[list[float]]], responses=refusals())
    async def embed_all(request: Request, body: schemas.EmbedAllRequest, wanted: Wanted) -> Response:
        wanted = service.for_prompt(wanted, body.prompt_name)
        rows = [Row(one, wants_tokens=True) for one in await encode(texts_of(body.inputs), body)]
        answer = await service.answer(request, rows, wanted)
        return reply([output.tokens.tolist() for output in answer.outputs], answer.subnet)

    @router.post("/similarity", response_model=list[float], responses=refusals())
    async def similarity(request: Request, body: schemas.SimilarityRequest, wanted: Wanted) -> Response:
        service.check(body.inputs.sentences, "inputs.sentences")
        texts = [body.inputs.source_sentence, *body.inputs.sentences]
        (source, *others), subnet, _ = await vectors(request, texts, body.parameters or schemas.WithPrompt(), wanted)
        return reply([float(source @ other) for other in others], subnet)

    @router.post("/v1/embeddings", response_model=schemas.OpenAIResponse, responses=refusals(schemas.OpenAIError))
    async def openai(request: Request, body: schemas.OpenAIRequest, wanted: Wanted) -> Response:
        wanted = with_model_name(service, wanted, body.model)
        found, subnet, count = await vectors(
            request, texts_of(body.input), schemas.WithPrompt(), wanted, dimensions=body.dimensions
        )

        def written(vector: np.ndarray) -> list[float] | str:
            if body.encoding_format == "float":
                return vector.tolist()
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()

        data = [{"object": "embedding", "index": place, "embedding": written(vector)} for place, vector in enumerate(found)]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return reply({"object": "list", "data": data, "model": f"{engine.name}:{subnet}", "usage": usage}, subnet)

    @router.post("/", include_in_schema=False)
    async def pipeline(request: Request, body: dict[str, Any], wanted: Wanted) -> Response:
        """What `huggingface_hub` sends to the URL of a model: texts for `/embed`, or sentences for `/similarity`."""
        if isinstance(body.get("inputs"), dict):
            return await similarity(request, read(schemas.SimilarityRequest, body), wanted)
        return await embed(request, read(schemas.EmbedRequest, body), wanted)


def scores(router: APIRouter, service: Service) -> None:
    """Routes of models that give scores."""
    engine = service.engine

    async def logits(request: Request, texts: Sequence[Text], options: schemas.Truncation, wanted: Wishes):
        tokens = await service.encode(texts, truncate=options.truncate, direction=options.truncation_direction)
        answer = await service.answer(request, [Row(one) for one in tokens], wanted)
        return [output.values for output in answer.outputs], answer.subnet

    def predictions(values: np.ndarray) -> list[dict]:
        found = [{"score": float(score), "label": label} for score, label in zip(values, engine.labels)]
        return sorted(found, key=lambda one: -one["score"])

    @router.post("/predict", response_model=list[schemas.Prediction] | list[list[schemas.Prediction]], responses=refusals())
    async def predict(request: Request, body: schemas.PredictRequest, wanted: Wanted) -> Response:
        texts, is_many = sequences_of(body.inputs)
        found, subnet = await logits(request, texts, body, wanted)
        many = [predictions(values if body.raw_scores else engine.probabilities(values)) for values in found]
        return reply(many if is_many else many[0], subnet)

    if engine.kind == RERANKER:

        @router.post("/rerank", response_model=list[schemas.Rank], responses=refusals())
        async def rerank(request: Request, body: schemas.RerankRequest, wanted: Wanted) -> Response:
            if not body.texts:
                raise EmptyError("texts")
            found, subnet = await logits(request, [(body.query, text) for text in body.texts], body, wanted)
            ranks = [
                {"index": place, "score": float(values[0]) if body.raw_scores else engine.relevance(values)}
                | ({"text": body.texts[place]} if body.return_text else {})
                for place, values in enumerate(found)
            ]
            return reply(sorted(ranks, key=lambda rank: -rank["score"]), subnet)

    @router.post("/", include_in_schema=False)
    async def pipeline(request: Request, body: dict[str, Any], wanted: Wanted) -> Response:
        """What `huggingface_hub` sends to the URL of a model, with `parameters` and one list for each text; else `/predict`."""
        if "parameters" not in body:
            return await predict(request, read(schemas.PredictRequest, body), wanted)
        asked = read(schemas.PipelineRequest, body)
        texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        found, subnet = await logits(request, texts, schemas.Truncation(), wanted)
        apply = engine.functions.get(asked.parameters.function_to_apply, engine.probabilities)
        return reply([predictions(apply(values))[: asked.parameters.top_k] for values in found], subnet)


def read(model: type, body: dict[str, Any]):
    """A body of the route "/" as that of another route.

    Raises:
        UserError: it is none.
    """
    try:
        return TypeAdapter(model).validate_python(body)
    except ValidationError as error:
        raise UserError(explain(error.errors(include_input=False, include_url=False))) from error


def explain(errors: Sequence[dict]) -> str:
    """What pydantic complains about, without what was sent, and without the names that it gives to the members of a union."""
    places = [[str(part) for part in one["loc"] if part != "body" and "[" not in str(part)] for one in errors]
    shown = [f"{'.'.join(place) or 'body'}: {one['msg']}" for one, place in zip(errors[:3], places)]
    return "; ".join(shown) + ("" if len(errors) <= 3 else f"; and {len(errors) - 3} more")


def with_model_name(service: Service, wanted: Wishes, model: str | None) -> Wishes:
    """The size after the colon of OpenAI's `model`, if it is not a part of the served model's own name.

    Raises:
        UserError: a header asks for another size.
    """
    if model is None or ":" not in model or model == service.engine.name:
        return wanted
    subnet = model.rpartition(":")[2]
    if wanted.subnet not in (None, subnet):
        raise UserError(f"`model` asks for the size {subnet!r}, and {SUBNET_HEADER} for {wanted.subnet!r}")
    return Wishes(subnet, wanted.seconds, wanted.min_quality, wanted.priority)
