"""Nomic BERT: BERT with rotary positions, a gated feed-forward and no biases in its layers."""

from ..core.spec import Spec, register_spec
from .bert import CONFIG, HEADS

NOMIC_BERT = register_spec(
    Spec(
        model_types=("nomic_bert",),
        layers="*layers.#",
        config={**CONFIG, "head_dim": "head"},
        parameters={
            "*self_attn.[qkv]_proj.weight": "(heads head) hidden",
            "*self_attn.o_proj.weight": "hidden (heads head)",
            "*gate_proj.weight": "ffn hidden",
            "*up_proj.weight": "ffn hidden",
            "*down_proj.weight": "hidden ffn",
            "*word_embeddings.weight": "vocab hidden",
            "*token_type_embeddings.weight": "types hidden",
            "*norm.weight": "hidden",
            **HEADS,
        },
        attributes={"*layers.*[0-9]": {"hidden_size": "hidden"}, "*mlp": {"hidden_size": "hidden", "intermediate_size": "ffn"}},
        pooled=("*pooler.dense.weight", "classifier.weight"),
    )
)
