"""`optimum-cli` imports every file of this namespace package when it starts: here it learns the model type "elastic"."""

import sys

# Only what loads a model needs it; `optimum-cli --help` and the like stay fast.
if "export" in sys.argv[1:]:
    from hf_elastic.export.onnx.optimum_plugin import register

    register()
