"""ModernBERT: pre-norm encoder with rotary positions, fused projections and alternating local attention."""

from ..core.spec import Spec, register_spec

MODERNBERT = register_spec(
    Spec(
        model_types=("modernbert",),
        layers="*layers.#",
        config={"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"},
        parameters={
            "*attn.Wqkv.weight": "(3 heads head) hidden",
            "*attn.Wqkv.bias": "(3 heads head)",
            "*attn.Wo.weight": "hidden (heads head)",
            "*mlp.Wi.weight": "(2 ffn) hidden",
            "*mlp.Wi.bias": "(2 ffn)",
            "*mlp.Wo.weight": "hidden ffn",
            "*tok_embeddings.weight": "vocab hidden",
            "head.dense.weight": "hidden hidden",
            "decoder.weight": "vocab hidden",
            "decoder.bias": "vocab",
            "classifier.weight": "labels hidden",
            "classifier.bias": "labels",
            "*norm.weight": "hidden",
            "*.bias": "hidden",
        },
        attributes={"*attn": {"num_heads": "heads", "all_head_size": "heads head"}},
        pooled=("head.dense.weight", "classifier.weight"),
    )
)
