"""Serving the sizes of one model: a scheduler that keeps a latency promise by changing size, and its simulation."""
