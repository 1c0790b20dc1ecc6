"""What `hf-elastic serve` is told about the server; how it schedules is `SchedulerConfig`'s."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.options import check_dtype, check_integers
from .config import QueueOptions

BACKENDS = ("torch", "onnx", "onnx-int8", "openvino", "openvino-int8")


@dataclass(kw_only=True)
class ServerConfig(QueueOptions):
    """What is served, where, and within which limits.

    Raises:
        UserError: a value that is not allowed.
    """

    subnets: list[str] | None = field(
        default=None, metadata={"help": "Sizes to serve; default: the full one and all that have a name."}
    )
    backend: str = field(default="torch", metadata={"help": f"{', '.join(BACKENDS)}; all but torch run on the CPU."})
    dtype: str = field(default="float32", metadata={"help": "Of torch's weights: float32, float16 or bfloat16."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads of the model (count); default: the runtime's."})
    compile: bool = field(default=False, metadata={"help": "Compile each size with torch.compile before serving."})
    pooling: str | None = field(
        default=None,
        metadata={"help": "mean, cls or lasttoken, for an encoder whose checkpoint has no pooling; default: mean."},
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 is reachable from outside."})
    port: int = field(default=8080, metadata={"help": "Port to listen on; 0 takes a free one."})
    profile: str | None = field(
        default=None, metadata={"help": "File of a serving profile: read if it is there, else measured and written."}
    )
    profile_seconds: float = field(
        default=20.0,
        metadata={"help": "Time for measuring a profile at the start (s); it takes longer where each batch once takes longer."},
    )
    max_client_batch_size: int = field(
        default=32, metadata={"help": "Most texts of a request; a longer one gets status 413 (count)."}
    )
    auto_truncate: bool = field(
        default=False, metadata={"help": "Cut texts that are too long, where a request does not say whether to."}
    )
    payload_limit: int = field(default=2_000_000, metadata={"help": "Largest request body (bytes)."})
    api_key: str | None = field(
        default=None,
        metadata={
            "help": "Key that requests must send as `Authorization: Bearer KEY`; default: the variable HF_ELASTIC_API_KEY, "
            "else none."
        },
    )
    cors_origins: list[str] = field(
        default_factory=list, metadata={"help": "Web origins whose pages may send requests; default: none."}
    )
    otlp_endpoint: str | None = field(
        default=None,
        metadata={
            "help": "URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318, that gets a span of each "
            "request; default: none."
        },
    )
    demo: bool = field(default=False, metadata={"help": "Serve the page /demo as well, which shows the server under a load."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for exported graphs; default: hf_elastic in the cache of Hugging Face."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise UserError(f"backend: {self.backend!r} is unknown; known: {', '.join(BACKENDS)}")
        check_dtype(self.dtype)
        check_integers(1, or_none=True, threads=self.threads)
        check_integers(1, max_client_batch_size=self.max_client_batch_size, payload_limit=self.payload_limit)
        check_integers(0, port=self.port)
        if self.port > 65535:
            raise UserError(f"port must be at most 65535, got {self.port}")
        if not self.profile_seconds > 0:
            raise UserError(f"profile_seconds must be above 0, got {self.profile_seconds}")
        if self.max_client_batch_size > self.max_queue:
            raise UserError(
                f"max_client_batch_size: {self.max_client_batch_size} texts do not fit into max_queue {self.max_queue}"
            )
        if self.api_key == "":
            raise UserError("api_key is empty; leave it out for a server without one")
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise UserError(f"otlp_endpoint must begin with http:// or https://, got {self.otlp_endpoint!r}")
        if self.backend != "torch":
            for name, default in (("dtype", "float32"), ("compile", False)):
                if getattr(self, name) != default:
                    raise UserError(f"{name}: {getattr(self, name)!r} is for the backend torch, not for {self.backend}")
