"""ONNX folders in the library of this major: ORTModelFor* on 4.57; ExportedModel, which has no loop for decoders, on 5.x.

As a script it is all that the other environment runs, where this package cannot be imported: `reading.py FOLDER NEW INPUTS`.
"""

import json
import sys

if __name__ == "__main__":
    sys.modules["hf_elastic"] = None
import torch
import transformers

IS_OLD = transformers.__version__.startswith("4.")


def classify(folder, inputs: dict) -> torch.Tensor:
    """Logits."""
    if IS_OLD:
        from optimum.onnxruntime import ORTModelForSequenceClassification

        return ORTModelForSequenceClassification.from_pretrained(folder)(**inputs).logits
    from transformers.exporters import ExportedModel

    output = ExportedModel.from_pretrained(folder)(**inputs)
    assert type(output).__name__ == "SequenceClassifierOutput", type(output)
    return output.logits


def generate(folder, inputs: dict, new: int) -> torch.Tensor:
    """So many greedy tokens."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if IS_OLD:
        from optimum.onnxruntime import ORTModelForCausalLM

        model = ORTModelForCausalLM.from_pretrained(folder)
        assert model.can_use_cache
        tokens = model.generate(**inputs, max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
        return tokens[:, ids.shape[1] :]
    from transformers.exporters import ExportedModel

    model, tokens, cache = ExportedModel.from_pretrained(folder), [], {}
    for node in model.runners["model"].session.get_outputs():
        if node.name.startswith("present."):
            _, layer, part = node.name.split(".")
            cache.setdefault(layer, {})[part] = torch.zeros(len(ids), node.shape[1], 0, node.shape[3])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(new):
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        cache, ids = output["present"], output["logits"][:, -1].argmax(-1, keepdim=True)
        tokens.append(ids)
        mask, positions = torch.cat([mask, torch.ones_like(ids)], 1), positions[:, -1:] + 1
    return torch.cat(tokens, 1)


if __name__ == "__main__":
    folder, new, inputs = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    inputs = {name: torch.tensor(values) for name, values in inputs.items()}
    result = generate(folder, inputs, new) if new else classify(folder, inputs)
    print("RESULT", json.dumps({"version": transformers.__version__, "values": result.tolist()}))
