"""GPT-2: learned positions, and Conv1D layers, whose weights are stored input side first."""

from ..core.spec import Spec, register_spec

GPT2 = register_spec(
    Spec(
        model_types=("gpt2",),
        layers="*h.#",
        config={"n_embd": "hidden", "n_head": "heads", "n_inner": "ffn"},
        parameters={
            "*wte.weight": "vocab hidden",
            "*wpe.weight": "positions hidden",
            "*attn.c_attn.weight": "hidden (3 heads head)",
            "*attn.c_attn.bias": "(3 heads head)",
            "*attn.c_proj.weight": "(heads head) hidden",
            "*mlp.c_fc.weight": "hidden ffn",
            "*mlp.c_fc.bias": "ffn",
            "*mlp.c_proj.weight": "ffn hidden",
            "lm_head.weight": "vocab hidden",
            "score.weight": "labels hidden",
            "classifier.weight": "labels hidden",
            "classifier.bias": "labels",
            "qa_outputs.weight": "labels hidden",
            "qa_outputs.bias": "labels",
            "*ln_*.weight": "hidden",
            "*.bias": "hidden",
        },
        choices={"attention": {"attn": "0, None", "ln_1": "x"}, "mlp": {"mlp": "0", "ln_2": "x"}},
        attributes={
            "*attn": {"num_heads": "heads", "split_size": "heads head", "embed_dim": "heads head"},
            "*transformer": {"embed_dim": "hidden"},
            "": {"embed_dim": "hidden"},
        },
        head_attributes={"*attn": {"head_dim": "head", "scaling": "head^-0.5"}},
    )
)
