"""Caption photos with PyTorch as a competent user would: the peer of `captioning.py`.

    python experiments/benchmarks/torch_captioning.py CHECKPOINT.pt PHOTO…

The network is built without drawing weights ("meta"), the checkpoint's tensors are taken as they are read.
"""

import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "models"))
from torchvision_inception import inception_v3

START, END, NUM_SPECIAL = 2, 3, 4


class TorchCaptioner(nn.Module):
    """Inception V3 and the reference decoder."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.encoder = inception_v3(aux_logits=False)
        self.image = nn.Sequential(nn.Linear(2048, 120), nn.ELU(), nn.Linear(120, 300), nn.ELU())
        self.embedding = nn.Embedding(vocab_size, 100)
        self.lstm = nn.LSTM(100, 300, batch_first=True)
        self.logits = nn.Sequential(nn.Linear(300, 120), nn.ELU(), nn.Linear(120, vocab_size))

    @torch.inference_mode()
    def caption(self, images: torch.Tensor, max_length: int = 20) -> torch.Tensor:
        """Caption images [N, 3, 299, 299] greedily; return ids [N, L], END and what comes behind it included."""
        state = self.image(self.encoder.grid(images).mean(dim=(2, 3)))[None]
        state = (state, state)
        token, tokens = torch.full((len(images),), START), []
        ended = torch.zeros(len(images), dtype=torch.bool)
        while len(tokens) < max_length and not ended.all():
            output, state = self.lstm(self.embedding(token)[:, None], state)
            logits = self.logits(output[:, 0])
            logits[:, [0, 1, START]] = -torch.inf
            token = logits.argmax(dim=1)
            ended |= token == END
            tokens.append(token)
        return torch.stack(tokens, dim=1)


def read(path: str) -> np.ndarray:
    """Read a photo: its central square at 299 px, scaled to [-1, 1], channels first."""
    with Image.open(path) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.convert("RGB").resize((299, 299), Image.Resampling.BILINEAR, box))
    return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


def main(checkpoint: str, *photos: str) -> None:
    """Print a caption for each photo."""
    stored = torch.load(checkpoint, weights_only=True, mmap=True)
    words = stored["words"]
    with torch.device("meta"):
        model = TorchCaptioner(len(words))
    model.load_state_dict(stored["weights"], assign=True)
    tokens = model.eval().caption(torch.from_numpy(np.stack([read(photo) for photo in photos])))
    for photo, row in zip(photos, tokens.tolist(), strict=True):
        row = row[: row.index(END)] if END in row else row
        print(f"{photo}: {' '.join(words[i] for i in row)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
