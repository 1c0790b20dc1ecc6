"""Requests and responses, in the shapes of text-embeddings-inference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictInt


def whole(text: str) -> str:
    """Refuse halves of surrogate pairs, which JSON can escape and UTF-8 has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text has half a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(whole)]
Ids = list[StrictInt]
Inputs = Text | Ids | list[Text | Ids]
Sequence = Annotated[list[Text], Field(min_length=1, max_length=2)]
Direction = Annotated[Literal["right", "left"], BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)]
MORE = "; default: as the server is set up"


class ErrorResponse(BaseModel):
    """What went wrong."""

    error: str
    error_type: str


class OpenAIError(BaseModel):
    """What went wrong, for OpenAI's clients."""

    message: str
    code: int
    type: str


class Truncation(BaseModel):
    """What to do with texts that are too long."""

    truncate: bool | None = Field(None, description=f"Cut texts that are too long{MORE}.")
    truncation_direction: Direction = Field("right", description="The side that is cut.")


class WithPrompt(Truncation):
    """What to write before the texts."""

    prompt_name: str | None = Field(None, description="One of the model's prompts; default: the model's own default.")


class EmbedAllRequest(WithPrompt):
    """Texts whose tokens are to become vectors."""

    inputs: Inputs = Field(description="A text, or several; also as token ids.")


class EmbedRequest(EmbedAllRequest):
    """Texts to become vectors."""

    normalize: bool = Field(True, description="Make each vector of length 1.")
    dimensions: int | None = Field(None, description="Keep only the first so many dimensions (Matryoshka).")


class PredictRequest(Truncation):
    """Texts, or pairs of texts, to classify."""

    inputs: Text | Sequence | Annotated[list[Sequence], Field(min_length=1)] = Field(
        description="A text, a pair of texts, or a list in which each is a list of one or two."
    )
    raw_scores: bool = Field(False, description="Give logits.")


class PipelineParameters(BaseModel):
    """What `huggingface_hub` asks of a classifier."""

    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None


class PipelineRequest(BaseModel):
    """Texts to classify, as `huggingface_hub` sends them."""

    inputs: Text | list[Text]
    parameters: PipelineParameters


class RerankRequest(Truncation):
    """A query, and texts to order by how relevant they are to it."""

    query: Text
    texts: list[Text]
    raw_scores: bool = Field(False, description="Give logits.")
    return_text: bool = Field(False, description="Give each text with its score.")


class SimilarityInputs(BaseModel):
    """A sentence, and those that it is compared with."""

    source_sentence: Text
    sentences: list[Text]


class SimilarityRequest(BaseModel):
    """Sentences to compare."""

    inputs: SimilarityInputs
    parameters: WithPrompt | None = None


class TokenizeRequest(BaseModel):
    """Texts to split into tokens."""

    inputs: Text | list[Text]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(BaseModel):
    """Token ids to turn into texts."""

    ids: Ids | list[Ids]
    skip_special_tokens: bool = True


class OpenAIRequest(BaseModel):
    """OpenAI's request for embeddings."""

    input: Inputs
    model: str | None = Field(None, description="Any name; `name:size` asks for a size.")
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class Prediction(BaseModel):
    """A label and its score."""

    score: float
    label: str


class Rank(BaseModel):
    """A text of a rerank request: its place in the request and its score."""

    index: int
    score: float
    text: str | None = None


class SimpleToken(BaseModel):
    """A token and its place in the text, in characters."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class OpenAIEmbedding(BaseModel):
    """A vector in OpenAI's response."""

    object: str
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class OpenAIResponse(BaseModel):
    """OpenAI's response; `model` names the size that answered."""

    object: str
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage
