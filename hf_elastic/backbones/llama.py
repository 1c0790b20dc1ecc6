"""Llama and the decoders built like it: RMSNorm, rotary positions, grouped queries, gated feed-forward."""

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
LAYER = {
    "*q_proj.weight": "(kv group head) hidden",
    "*q_proj.bias": "(kv group head)",
    "*[kv]_proj.weight": "(kv head) hidden",
    "*[kv]_proj.bias": "(kv head)",
    "*o_proj.weight": "hidden (kv group head)",
    "*[qk]_norm.weight": "head",
    "*gate_proj.weight": "ffn hidden",
    "*gate_proj.bias": "ffn",
    "*up_proj.weight": "ffn hidden",
    "*up_proj.bias": "ffn",
    "*down_proj.weight": "hidden ffn",
    "*norm.weight": "hidden",
    "*.bias": "hidden",
}
ATTRIBUTES = {
    "*self_attn": {"num_key_value_groups": "group", "num_key_value_heads": "kv"},
    "*layers.*[0-9]": {"hidden_size": "hidden"},
    "*mlp": {"hidden_size": "hidden", "intermediate_size": "ffn"},
}

LLAMA = register_spec(
    Spec(
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        layers="*layers.#",
        config=CONFIG,
        parameters={**HEADS, **LAYER},
        attributes=ATTRIBUTES,
    )
)

GEMMA = register_spec(
    Spec(
        model_types=("gemma2", "gemma3_text"),
        layers="*layers.#",
        config=CONFIG,
        parameters={**HEADS, **LAYER},
        # Gemma multiplies its embeddings by the root of the hidden size, kept as a number and as a buffer.
        attributes={**ATTRIBUTES, "*embed_tokens": {"scalar_embed_scale": "hidden^0.5", "embed_scale": "hidden^0.5"}},
    )
)

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
        attributes=ATTRIBUTES,
    )
)
