"""GPT-NeoX (Pythia): rotary positions, query, key and value interleaved head by head."""

from ..core.spec import Spec, register_spec

GPT_NEOX = register_spec(
    Spec(
        model_types=("gpt_neox",),
        layers="*layers.#",
        config={"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"},
        parameters={
            "*attention.query_key_value.weight": "(heads 3 head) hidden",
            "*attention.query_key_value.bias": "(heads 3 head)",
            "*attention.dense.weight": "hidden (heads head)",
            "*dense_h_to_4h.weight": "ffn hidden",
            "*dense_h_to_4h.bias": "ffn",
            "*dense_4h_to_h.weight": "hidden ffn",
            "*embed_in.weight": "vocab hidden",
            "embed_out.weight": "vocab hidden",
            "lm_head.weight": "vocab hidden",
            "score.weight": "labels hidden",
            "classifier.weight": "labels hidden",
            "classifier.bias": "labels",
            "qa_outputs.weight": "labels hidden",
            "qa_outputs.bias": "labels",
            "*norm.weight": "hidden",
            "*.bias": "hidden",
        },
        choices={
            "attention": {"attention": "0, None", "input_layernorm": "x", "post_attention_dropout": "x"},
            "mlp": {"mlp": "0", "post_attention_layernorm": "x", "post_mlp_dropout": "x"},
        },
        attributes={"*attention": {"num_attention_heads": "heads", "hidden_size": "heads head"}},
    )
)
