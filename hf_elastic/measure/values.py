"""Names of what is measured or counted: the keys of values in profiles, frontiers and cards."""

ACCURACY, LOSS, PERPLEXITY = "accuracy", "loss", "perplexity"
F1, MATTHEWS, PEARSON, SPEARMAN, MSE = "f1", "matthews_correlation", "pearson", "spearmanr", "mse"
LATENCY, MEMORY, PARAMETERS, FLOPS = "latency_ms", "peak_memory_mb", "parameters", "flops"
OUTPUT_CHANGE = "output_change"
