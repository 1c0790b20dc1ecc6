"""Names of what is measured or counted: the keys of values in profiles, frontiers and cards."""

ACCURACY, LOSS, PERPLEXITY = "accuracy", "loss", "perplexity"
LATENCY, MEMORY, PARAMETERS, FLOPS = "latency_ms", "peak_memory_mb", "parameters", "flops"
