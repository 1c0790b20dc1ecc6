"""DeBERTa-v3: BERT's layers, whose queries and keys are also made of a table of relative positions.

The second version's convolution, and projections of positions alone, are no part of it and are refused.
"""

from ..core.spec import Spec, register_spec
from .bert import CONFIG, HEADS

DEBERTA_V2 = register_spec(
    Spec(
        model_types=("deberta-v2",),
        layers="*encoder.layer.#",
        config={**CONFIG, "pooler_hidden_size": "hidden"},
        parameters={
            "*attention.self.[qkv]*_proj.weight": "(heads head) hidden",
            "*attention.self.[qkv]*_proj.bias": "(heads head)",
            "*attention.output.dense.weight": "hidden (heads head)",
            "*intermediate.dense.weight": "ffn hidden",
            "*intermediate.dense.bias": "ffn",
            "*layer.*.output.dense.weight": "hidden ffn",
            "*rel_embeddings.weight": "distances hidden",
            "*word_embeddings.weight": "vocab hidden",
            "*position_embeddings.weight": "positions hidden",
            "*token_type_embeddings.weight": "types hidden",
            **HEADS,
        },
        attributes={
            "*attention.self": {"num_attention_heads": "heads", "all_head_size": "heads head"},
            "*embeddings": {"embedding_size": "hidden"},
        },
        pooled=("pooler.dense.weight", "classifier.weight"),
        tables={"*query_proj.weight": "distances", "*key_proj.weight": "distances"},
    )
)
