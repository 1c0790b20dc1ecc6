"""DistilBERT: BERT's layers under other names, without token types or a pooler."""

from ..core.spec import Spec, register_spec

DISTILBERT = register_spec(
    Spec(
        model_types=("distilbert",),
        layers="*transformer.layer.#",
        config={"dim": "hidden", "n_heads": "heads", "hidden_dim": "ffn"},
        parameters={
            "*attention.[qkv]_lin.weight": "(heads head) hidden",
            "*attention.[qkv]_lin.bias": "(heads head)",
            "*attention.out_lin.weight": "hidden (heads head)",
            "*ffn.lin1.weight": "ffn hidden",
            "*ffn.lin1.bias": "ffn",
            "*ffn.lin2.weight": "hidden ffn",
            "*word_embeddings.weight": "vocab hidden",
            "*position_embeddings.weight": "positions hidden",
            "vocab_transform.weight": "hidden hidden",
            "pre_classifier.weight": "hidden hidden",
            "vocab_projector.weight": "vocab hidden",
            "vocab_projector.bias": "vocab",
            "classifier.weight": "labels hidden",
            "classifier.bias": "labels",
            "qa_outputs.weight": "labels hidden",
            "qa_outputs.bias": "labels",
            "*LayerNorm.weight": "hidden",
            "*layer_norm.weight": "hidden",
            "*.bias": "hidden",
        },
        attributes={
            "*layer.*.attention": {"n_heads": "heads", "dim": "heads head"},
            "*ffn": {"dim": "hidden"},
            "*transformer": {"n_layers": "layers"},
        },
        head_attributes={"*layer.*.attention": {"attention_head_size": "head", "scaling": "head^-0.5"}},
        pooled=("pre_classifier.weight", "classifier.weight"),
    )
)
