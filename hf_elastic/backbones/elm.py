"""ELM, of `hf_elastic.models.elm`: each layer is one of several blocks, whose inner axes have names of their own."""

from ..core.spec import Spec, register_spec

ELM = register_spec(
    Spec(
        model_types=("elm",),
        layers="*layers.#",
        config={
            "hidden_size": "hidden",
            "num_attention_heads": "heads",
            "intermediate_size": "ffn",
            "embedding_size": "embed",
            "block_type": "block_type",
        },
        choices={"block_type": "blocks.@"},
        parameters={
            "*word_embeddings.weight": "vocab embed",
            "*position_embeddings.weight": "positions hidden",
            "*token_type_embeddings.weight": "types hidden",
            "*embeddings.projection.weight": "hidden (neighbours embed)",
            # Of all blocks.
            "*feed_forward.up.bias": "ffn",
            "*output_norm.*": "hidden",
            # Channels within the bottleneck belong together, and heads partition those of attention.
            "*.mobilebert.attention.output.weight": "inner inner_context",
            "*.mobilebert.attention.output.bias": "inner",
            "*.mobilebert.attention.*.weight": "inner_context hidden",
            "*.mobilebert.attention.*.bias": "inner_context",
            "*.mobilebert.feed_forward.up.weight": "ffn inner",
            "*.mobilebert.feed_forward.down.weight": "inner ffn",
            "*.mobilebert.squeeze.weight": "inner hidden",
            "*.mobilebert.expand.weight": "hidden inner",
            "*.mobilebert.expand.bias": "hidden",
            "*.mobilebert.*": "inner",
            "*.bert.attention.output.weight": "hidden context",
            "*.bert.attention.output.bias": "hidden",
            "*.bert.attention.*.weight": "context hidden",
            "*.bert.attention.*.bias": "context",
            "*.bert.feed_forward.up.weight": "ffn hidden",
            "*.bert.feed_forward.down.weight": "hidden ffn",
            "*.bert.*": "hidden",
            "lm_head.dense.weight": "embed hidden",
            "lm_head.dense.bias": "embed",
            "lm_head.norm.*": "embed",
            "lm_head.decoder.weight": "vocab embed",
            "lm_head.decoder.bias": "vocab",
            "classifier.weight": "labels hidden",
            "classifier.bias": "labels",
            "qa_outputs.weight": "labels hidden",
            "qa_outputs.bias": "labels",
            "*embeddings.*": "hidden",
        },
        attributes={"*attention": {"num_attention_heads": "heads"}, "*embeddings": {"cache_idx": "layers"}},
        follows={"context": "hidden", "inner": "hidden // 4", "inner_context": "hidden // 4"},
        scores={"*.bert.attention.query.weight": "context", "*.mobilebert.attention.query.weight": "inner_context"},
        pooled=("classifier.weight",),
        cached=1,
        layered_config=("block_type", "num_attention_heads", "intermediate_size"),
    )
)
