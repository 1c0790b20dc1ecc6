from .suite import task_names

__all__ = ["task_names"]
