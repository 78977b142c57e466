"""Export of a run's averaged weights in half precision, with their hash.

python -m medsam_app.pretraining.export_weights RUN [--out models/weights/sam3d_tiny.safetensors]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from medsam_app.atomic import replace_file
from medsam_app.models.download import sha256_of
from medsam_app.models.sam3d import build_sam3d_tiny
from medsam_app.models.table import WEIGHTS_FOLDER
from medsam_app.training.checkpoint import read_state


def export(run: Path, out: Path) -> str:
    """Write the averaged weights of a run as float16 safetensors.

    Args:
        run: folder of the run.
        out: file to write.

    Returns:
        The SHA-256 of the file.

    Raises:
        SystemExit: a weight is out of the range of half precision.
    """
    state, (weights,) = read_state(run, ["average"])
    build_sam3d_tiny().load_state_dict(weights)  # fails for a run of another architecture
    half = {key: tensor.half().contiguous() for key, tensor in weights.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in half.values()):
        raise SystemExit(f"The weights of {run} do not fit half precision; nothing was written.")
    metadata = {"steps": str(state["step"]), "hours": f"{state['seconds'] / 3600:.2f}"}
    with replace_file(out) as draft:
        save_file(half, draft, metadata=metadata)
    return sha256_of(out)


def main() -> None:
    """Export the weights of a run; entry point of the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER / "sam3d_tiny.safetensors")
    options = parser.parse_args()
    sha256 = export(options.run, options.out)
    print(f'size={options.out.stat().st_size}, sha256="{sha256}"  # for models/table.py')


if __name__ == "__main__":
    main()
