"""Train the digit reader of ``aioais demo`` and write the files of ``src/aioais/demo_data``.

aioais does not need this script: both files are in the repository. To make them again::

    pip install torch scikit-learn onnx onnxruntime
    python tools/train_digits.py

Data
    The 1797 images of ``sklearn.datasets.load_digits``, in their own order. They come from 13 writers, and neighbours
    are often from the same writer. So the last images are a harder and fairer test than shuffled ones, where each
    writer would be in both parts.

    ======== ============== =====================================================
    images   used for       how
    ======== ============== =====================================================
    0-999    training       the only ones the optimiser sees
    1000-    test           the 797 images of the demo: used once, after training
    ======== ============== =====================================================

    The settings below (widths, epochs, augmentation) were chosen with ``--validate``, which trains on images 0-799 and
    measures on 800-999. The test images were not used for the choice.

Determinism
    One thread, one seed, CPU: the same torch version gives the same weights.
"""

# pyright: basic, reportMissingImports=false
# torch and scikit-learn are not installed where the types are checked: nearly every value is unknown.
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

TRAIN_IMAGES = 1000
VALIDATION_IMAGES = 200
SEED = 0
EPOCHS = 60
BATCH = 64
OPSET = 13
DATA_DIR = Path(__file__).resolve().parents[1] / "src" / "aioais" / "demo_data"


class DigitReader(nn.Module):
    """Three small convolutions and a linear layer: 31 thousand weights.

    Takes pixels as they are in the data, 0 to 16, and gives ten logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(256, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Read a batch of images of shape ``(n, 1, 8, 8)``."""
        logits: torch.Tensor = self.layers(image / 16)
        return logits


def augment(images: torch.Tensor) -> torch.Tensor:
    """Turn, shear, scale, shift, brighten and roughen each image a little."""
    n = len(images)

    def spread(limit: float, *shape: int) -> torch.Tensor:
        return (torch.rand(n, *shape) * 2 - 1) * limit

    angle, scale, shear, shift = spread(0.26), 1 + spread(0.12), spread(0.2), spread(0.15, 2)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack(
        [
            torch.stack([cos, shear - sin, shift[:, 0]], dim=1),
            torch.stack([sin, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, align_corners=False)
    return warped * (1 + spread(0.15, 1, 1, 1)) + torch.randn_like(warped) * 0.5


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitReader:
    """Train a fresh network on these images and return it in evaluation mode."""
    torch.manual_seed(SEED)
    model = DigitReader()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            logits = model(augment(images[batch]))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}: loss {total / steps:.4f}")
    return model.eval()


def export(model: DigitReader, path: Path) -> None:
    """Write the network as ONNX, weights inside, batch of one: ``image`` to ``logits``."""
    # Exporters leave module paths, stack traces and file names in the graph: only the bare
    # operators and weights are kept.
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.onnx"
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            str(raw),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            # The older exporter: it writes this opset directly and ``Flatten`` as ``Flatten``.
            dynamo=False,
        )
        proto = onnx.load(raw)
    del proto.metadata_props[:]
    proto.graph.name = "digits"
    proto.doc_string = "Handwritten digits, 8x8 pixels of 0 to 16, to ten logits; tools/train_digits.py"
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Part of the images that the ONNX file reads right, one image at a time, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = 0
    for image, label in zip(images, labels, strict=True):
        (logits,) = session.run(None, {"image": image.astype(np.float32)[None, None]})
        right += int(np.argmax(logits)) == int(label)
    return right / len(images)


def main() -> None:
    """Train, export, measure and write the data files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--validate", action="store_true", help="measure the settings; write nothing")
    arguments = parser.parse_args()

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    digits = load_digits()
    pixels = digits.images.astype(np.uint8)
    truth = digits.target.astype(np.uint8)
    images = torch.from_numpy(pixels).float()[:, None]
    labels = torch.from_numpy(truth).long()

    if arguments.validate:
        cut = TRAIN_IMAGES - VALIDATION_IMAGES
        model = train(images[:cut], labels[:cut])
        with torch.no_grad():
            answers = model(images[cut:TRAIN_IMAGES]).argmax(dim=1)
        print(f"validation accuracy: {(answers == labels[cut:TRAIN_IMAGES]).float().mean():.2%}")
        return

    model = train(images[:TRAIN_IMAGES], labels[:TRAIN_IMAGES])
    onnx_path, data_path = DATA_DIR / "digits.onnx", DATA_DIR / "digits.npz"
    export(model, onnx_path)
    np.savez_compressed(data_path, images=pixels[TRAIN_IMAGES:], labels=truth[TRAIN_IMAGES:])
    test = accuracy(onnx_path, pixels[TRAIN_IMAGES:], truth[TRAIN_IMAGES:])
    for path in (onnx_path, data_path):
        print(f"{path.name}: {path.stat().st_size} bytes")
    print(f"test accuracy on {len(pixels) - TRAIN_IMAGES} unseen images: {test:.2%}")


if __name__ == "__main__":
    main()
