"""Llama and the decoders built like it: RMSNorm, rotary positions, grouped queries, gated feed-forward."""

from dataclasses import replace

from ..core.spec import Spec, register_spec

CONFIG = {
    "hidden_size": "hidden",
    "num_key_value_heads": "kv",
    "num_attention_heads": "kv group",
    "intermediate_size": "ffn",
    "head_dim": "head",
}
HEADS = {
    "*embed_tokens.weight": "vocab hidden",
    "lm_head.weight": "vocab hidden",
    "score.weight": "labels hidden",
    "score.bias": "labels",
    "qa_outputs.weight": "labels hidden",
    "qa_outputs.bias": "labels",
}
ENCODER_HEADS = {"dense.weight": "hidden hidden", "classifier.weight": "labels hidden", "classifier.bias": "labels"}
LAYER = {
    "*q_proj.weight": "(kv group head) hidden",
    "*q_proj.bias": "(kv group head)",
    "*[kv]_proj.weight": "(kv head) hidden",
    "*[kv]_proj.bias": "(kv head)",
    "*o_proj.weight": "hidden (kv group head)",
    "*[qk]_norm.weight": "head",
    "*gate_up_proj.weight": "(2 ffn) hidden",
    "*gate_proj.weight": "ffn hidden",
    "*gate_proj.bias": "ffn",
    "*up_proj.weight": "ffn hidden",
    "*up_proj.bias": "ffn",
    "*down_proj.weight": "hidden ffn",
    "*norm.weight": "hidden",
    "*.bias": "hidden",
}
ATTRIBUTES = {
    "*self_attn": {
        "num_key_value_groups": "group",
        "num_key_value_heads": "kv",
        "num_heads": "kv group",
        "hidden_size": "kv group head",
    },
    "*layers.*[0-9]": {"hidden_size": "hidden"},
    "*mlp": {"hidden_size": "hidden", "intermediate_size": "ffn"},
    "*norm": {"normalized_shape": "hidden"},  # there may be no weights that say it
}
# A sub-layer goes together with its norms: the one before it, and of some the one behind it as well.
SKIPS = {
    "attention": {"self_attn": "0, None", "input_layernorm": "x", "post_self_attn_layernorm": "x", "resid_attn_dropout": "x"},
    "mlp": {"mlp": "0", "post_attention_layernorm": "x", "post_mlp_layernorm": "x", "resid_mlp_dropout": "x"},
}
# Where attention and feed-forward read the same norm, or may do so, it stays.
SKIPS_BUT_NORMS = {
    "attention": {"self_attn": "0, None"},
    "mlp": {"mlp": "0", "dropout": "x"},
}
SKIPS_WITH_BOTH_NORMS = {
    "attention": {"self_attn": "0, None", "input_layernorm": "x", "post_attention_layernorm": "x"},
    "mlp": {"mlp": "0", "pre_feedforward_layernorm": "x", "post_feedforward_layernorm": "x"},
}

LLAMA = register_spec(
    Spec(
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo", "glm", "glm4", "eurobert"),
        layers="*layers.#",
        config=CONFIG,
        parameters={**HEADS, **ENCODER_HEADS, **LAYER},
        choices=SKIPS,
        attributes=ATTRIBUTES,
    )
)

PARALLEL = register_spec(replace(LLAMA, model_types=("stablelm", "cohere2"), choices=SKIPS_BUT_NORMS))

PLAIN = register_spec(
    Spec(
        model_types=("phi",),
        layers="*layers.#",
        config=CONFIG,
        parameters={
            **HEADS,
            "lm_head.bias": "vocab",
            "*self_attn.dense.weight": "hidden (kv group head)",
            "*[qk]_layernorm.*": "head",
            "*mlp.fc1.weight": "ffn hidden",
            "*mlp.fc1.bias": "ffn",
            "*mlp.fc2.weight": "hidden ffn",
            "*mlp.c_fc.weight": "ffn hidden",
            "*mlp.c_fc.bias": "ffn",
            "*mlp.c_proj.weight": "hidden ffn",
            **LAYER,
        },
        attributes={key: value for key, value in ATTRIBUTES.items() if key != "*norm"},
    )
)

STARCODER2 = register_spec(replace(PLAIN, model_types=("starcoder2",), choices=SKIPS))

GEMMA = register_spec(
    Spec(
        model_types=("gemma",),
        layers="*layers.#",
        config=CONFIG,
        parameters={**HEADS, **LAYER},
        choices=SKIPS,
        # Gemma multiplies its embeddings by the root of the hidden size, kept as a number and as a buffer.
        attributes={**ATTRIBUTES, "*embed_tokens": {"scalar_embed_scale": "hidden^0.5", "embed_scale": "hidden^0.5"}},
    )
)

GEMMA2 = register_spec(replace(GEMMA, model_types=("gemma2", "gemma3_text"), choices=SKIPS_WITH_BOTH_NORMS))

PHI3 = register_spec(
    Spec(
        model_types=("phi3",),
        layers="*layers.#",
        config=CONFIG,
        parameters={
            **HEADS,
            "*qkv_proj.weight": "((kv group head)+(kv head)+(kv head)) hidden",
            "*o_proj.weight": "hidden (kv group head)",
            "*gate_up_proj.weight": "(2 ffn) hidden",
            "*down_proj.weight": "hidden ffn",
            "*norm.weight": "hidden",
        },
        choices=SKIPS,
        attributes=ATTRIBUTES,
    )
)
