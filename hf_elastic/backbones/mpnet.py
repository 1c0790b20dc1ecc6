"""MPNet: BERT's layers, and a bias by relative position for each head, one table for all layers."""

from ..core.spec import Spec, register_spec

MPNET = register_spec(
    Spec(
        model_types=("mpnet",),
        layers="*encoder.layer.#",
        config={"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"},
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
            "*pooler.dense.weight": "hidden hidden",
            "lm_head.dense.weight": "hidden hidden",
            "classifier.dense.weight": "hidden hidden",
            "lm_head.decoder.weight": "vocab hidden",
            "lm_head.decoder.bias": "vocab",
            "lm_head.bias": "vocab",
            "classifier.weight": "labels hidden",
            "classifier.out_proj.weight": "labels hidden",
            "qa_outputs.weight": "labels hidden",
            "classifier.bias": "labels",
            "classifier.out_proj.bias": "labels",
            "qa_outputs.bias": "labels",
            "*LayerNorm.weight": "hidden",
            "*layer_norm.weight": "hidden",
            "*.bias": "hidden",
        },
        attributes={
            "*attention.attn": {"num_attention_heads": "heads", "all_head_size": "heads head"},
            "*encoder": {"n_heads": "heads"},
        },
        pooled=("*pooler.dense.weight", "classifier.*weight"),
    )
)
