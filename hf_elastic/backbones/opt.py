"""OPT: learned positions, and embeddings that may be narrower than the hidden size."""

from ..core.spec import Spec, register_spec

OPT = register_spec(
    Spec(
        model_types=("opt",),
        layers="*decoder.layers.#",
        config={"hidden_size": "hidden", "num_attention_heads": "heads", "ffn_dim": "ffn", "word_embed_proj_dim": "embed"},
        parameters={
            "*self_attn.[qkv]_proj.weight": "(heads head) hidden",
            "*self_attn.[qkv]_proj.bias": "(heads head)",
            "*self_attn.out_proj.weight": "hidden (heads head)",
            "*fc1.weight": "ffn hidden",
            "*fc1.bias": "ffn",
            "*fc2.weight": "hidden ffn",
            "*embed_tokens.weight": "vocab embed",
            "*embed_positions.weight": "positions hidden",
            "*project_in.weight": "hidden embed",
            "*project_out.weight": "embed hidden",
            "lm_head.weight": "vocab embed",
            "score.weight": "labels embed",
            "qa_outputs.weight": "labels embed",
            "qa_outputs.bias": "labels",
            "*layer_norm.weight": "hidden",
            "*.bias": "hidden",
        },
        attributes={
            "*self_attn": {"num_heads": "heads", "embed_dim": "heads head"},
            "*layers.*[0-9]": {"embed_dim": "hidden"},
            "*layer_norm": {"normalized_shape": "hidden"},  # there may be no weights that say it
        },
        head_attributes={"*self_attn": {"head_dim": "head", "scaling": "head^-0.5"}},
        aliases={"embed": ("hidden", "*project_in.weight")},
    )
)
