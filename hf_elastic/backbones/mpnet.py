"""MPNet: BERT's layers, and a bias by relative position for each head, one table for all layers."""

from ..core.spec import Spec, register_spec
from .bert import CONFIG, HEADS

MPNET = register_spec(
    Spec(
        model_types=("mpnet",),
        layers="*encoder.layer.#",
        config=CONFIG,
        parameters={
            "*attention.attn.[qkv].weight": "(heads head) hidden",
            "*attention.attn.[qkv].bias": "(heads head)",
            "*attention.attn.o.weight": "hidden (heads head)",
            "*intermediate.dense.weight": "ffn hidden",
            "*intermediate.dense.bias": "ffn",
            "*layer.*.output.dense.weight": "hidden ffn",
            "*relative_attention_bias.weight": "buckets heads",
            "*word_embeddings.weight": "vocab hidden",
            "*position_embeddings.weight": "positions hidden",
            **HEADS,
        },
        attributes={
            "*attention.attn": {"num_attention_heads": "heads", "all_head_size": "heads head"},
            "*encoder": {"n_heads": "heads"},
        },
        pooled=("*pooler.dense.weight", "classifier.*weight"),
    )
)
