"""BERT and the encoders built like it: post-norm, with separate query, key and value matrices."""

from ..core.spec import Spec, register_spec

LAYER = {
    "*attention.self.*.weight": "(heads head) hidden",
    "*attention.self.*.bias": "(heads head)",
    "*attention.output.dense.weight": "hidden (heads head)",
    "*intermediate.dense.weight": "ffn hidden",
    "*intermediate.dense.bias": "ffn",
    "*layer.*.output.dense.weight": "hidden ffn",
    "*layer.*.bias": "hidden",
    "*layer.*.LayerNorm.weight": "hidden",
}
# Of BERT and RoBERTa, and of encoders that have theirs; all biases that nothing before has named are of the hidden size.
HEADS = {
    "*pooler.dense.weight": "hidden hidden",
    "cls.predictions.transform.dense.weight": "hidden hidden",
    "lm_head.dense.weight": "hidden hidden",
    "*classifier.dense.weight": "hidden hidden",
    "*decoder.weight": "vocab hidden",
    "*decoder.bias": "vocab",
    "cls.predictions.bias": "vocab",
    "lm_head.bias": "vocab",
    "classifier.weight": "labels hidden",
    "classifier.out_proj.weight": "labels hidden",
    "qa_outputs.weight": "labels hidden",
    "classifier.bias": "labels",
    "classifier.out_proj.bias": "labels",
    "qa_outputs.bias": "labels",
    "*.bias": "hidden",
    "*LayerNorm.weight": "hidden",
    "*layer_norm.weight": "hidden",
}
CONFIG = {"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"}
# What a sub-layer adds to the residual stream; the LayerNorm behind it stays, and normalizes the residual stream alone.
SKIPS = {
    "attention": {"attention.self": "0, None", "attention.output.dense": "x", "attention.output.dropout": "x"},
    "mlp": {"intermediate": "0", "output.dense": "x", "output.dropout": "x"},
}
ATTRIBUTES = {"*attention.self": {"num_attention_heads": "heads", "all_head_size": "heads head"}}
HEAD_ATTRIBUTES = {"*attention.self": {"attention_head_size": "head", "scaling": "head^-0.5"}}

BERT = register_spec(
    Spec(
        model_types=("bert", "roberta", "xlm-roberta", "camembert", "ernie"),
        layers="*encoder.layer.#",
        config=CONFIG,
        parameters={
            **LAYER,
            "*word_embeddings.weight": "vocab hidden",
            "*position_embeddings.weight": "positions hidden",
            "*token_type_embeddings.weight": "types hidden",
            "*task_type_embeddings.weight": "tasks hidden",
            **HEADS,
        },
        choices=SKIPS,
        attributes=ATTRIBUTES,
        head_attributes=HEAD_ATTRIBUTES,
        pooled=("*pooler.dense.weight", "classifier.*weight"),
    )
)

ELECTRA = register_spec(
    Spec(
        model_types=("electra",),
        layers="*encoder.layer.#",
        config={**CONFIG, "embedding_size": "embed"},
        parameters={
            **LAYER,
            "*word_embeddings.weight": "vocab embed",
            "*position_embeddings.weight": "positions embed",
            "*token_type_embeddings.weight": "types embed",
            "*embeddings.LayerNorm.*": "embed",
            "*embeddings_project.weight": "hidden embed",
            "*embeddings_project.bias": "hidden",
            "generator_predictions.LayerNorm.*": "embed",
            "generator_predictions.dense.weight": "embed hidden",
            "generator_predictions.dense.bias": "embed",
            "generator_lm_head.weight": "vocab embed",
            "generator_lm_head.bias": "vocab",
            "classifier.dense.weight": "hidden hidden",
            "classifier.dense.bias": "hidden",
            "sequence_summary.summary.weight": "hidden hidden",
            "sequence_summary.summary.bias": "hidden",
            "classifier.weight": "labels hidden",
            "classifier.out_proj.weight": "labels hidden",
            "qa_outputs.weight": "labels hidden",
            "classifier.bias": "labels",
            "classifier.out_proj.bias": "labels",
            "qa_outputs.bias": "labels",
        },
        choices=SKIPS,
        attributes=ATTRIBUTES,
        head_attributes=HEAD_ATTRIBUTES,
        aliases={"embed": ("hidden", "*embeddings_project.weight")},
        pooled=("classifier.*weight", "sequence_summary.*weight"),
    )
)
