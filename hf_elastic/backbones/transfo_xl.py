"""Transformer-XL, of `hf_elastic.models.transfo_xl`: relative positions, and tables of tokens by cluster."""

from ..core.spec import Spec, register_spec

CLUSTERS = 16  # of the adaptive embedding and softmax, at most; each has axes of its own
TABLES: dict[str, str] = {}
WIDTHS: dict[str, str] = {}
for _index in range(CLUSTERS):
    _table, _width = f"tokens{_index} embed{_index}", " ".join(["division"] * _index)
    TABLES[f"*emb_layers.{_index}.weight"] = TABLES[f"*out_layers.{_index}.weight"] = _table
    TABLES[f"*out_layers.{_index}.bias"] = f"tokens{_index}"
    TABLES[f"*emb_projs.{_index}"] = TABLES[f"*out_projs.{_index}"] = f"hidden embed{_index}"
    WIDTHS[f"embed{_index}"] = f"hidden // {_width}" if _width else "hidden"

TRANSFORMER_XL = register_spec(
    Spec(
        model_types=("transformer_xl",),
        layers="*layers.#",
        config={
            "d_model": "hidden",
            "n_head": "heads",
            "d_head": "head",
            "d_inner": "ffn",
            "d_embed": "embed0",
            "div_val": "division",
        },
        parameters={
            **TABLES,
            "*cluster_weight": "tails embed0",
            "*cluster_bias": "tails",
            "*qkv_net.weight": "(3 heads head) hidden",
            # Its input are sines and cosines, as many as hidden channels, but not these: another order of channels is not theirs.
            "*r_net.weight": "(heads head) sines",
            "*o_net.weight": "hidden (heads head)",
            "*r_[wr]_bias": "(heads head) -> heads",
            "*CoreNet.0.weight": "ffn hidden",
            "*CoreNet.0.bias": "ffn",
            "*CoreNet.3.weight": "hidden ffn",
            "*CoreNet.3.bias": "hidden",
            "*layer_norm.*": "hidden",
        },
        attributes={
            "*dec_attn": {"n_head": "heads"},
            "*pos_emb": {"d_model": "hidden"},
            "*word_emb": {"scale": "hidden^0.5", "embedding_dim": "hidden"},
        },
        head_attributes={"*dec_attn": {"d_head": "head"}},
        aliases={"embed0": ("hidden", "*_projs.0")},
        follows={**WIDTHS, "sines": "hidden"},
        positional=("*r_net.weight",),
        score_products=3,
        layered_config=("n_head", "d_head", "d_inner"),
    )
)
