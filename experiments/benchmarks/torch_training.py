"""The peer of `training.py`: the reference decoder trained from cached features as a competent user of PyTorch does.

    python experiments/benchmarks/torch_training.py DATA --steps=934 --validate_every=467

DATA holds captions_train.json and captions_dev.json in COCO's layout and features.npz (`file_name`, `pooled`). Features
and captions lie in memory as tensors, padding is packed away in the LSTM and before the vocabulary layer, and
a validation is the loss of all captions and CIDEr-D (pycocoevalcap) of greedy captions.
"""

import argparse
import collections
import json
import pathlib
import re
import sys

import numpy as np
import torch
from pycocoevalcap.cider.cider import Cider
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

PAD, UNK, START, END = range(4)
MAX_TOKENS = 20


def words_of(caption: str) -> list[str]:
    """Split into lower-case words."""
    return [word for word in re.split(r"\W+", caption.lower()) if word]


class Split:
    """Features and captions of a split, one row of tokens and one of features by caption."""

    def __init__(self, folder: pathlib.Path, name: str, index: dict[str, int]) -> None:
        """Read the captions."""
        content = json.loads((folder / f"captions_{name}.json").read_text())
        captions = collections.defaultdict(list)
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        self.rows = np.array([index[image["file_name"]] for image in content["images"]])
        self.captions = [captions[image["id"]] for image in content["images"]]

    def encode(self, ids: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [captions, 20] and the row of each caption's features."""
        tokens, rows = [], []
        for row, of_image in zip(self.rows, self.captions, strict=True):
            for caption in of_image:
                of_caption = [START, *(ids.get(word, UNK) for word in words_of(caption)), END][:MAX_TOKENS]
                tokens.append(of_caption + (MAX_TOKENS - len(of_caption)) * [PAD])
                rows.append(row)
        return torch.tensor(tokens), torch.tensor(rows)


class Captioner(nn.Module):
    """The reference decoder."""

    def __init__(self, features: int, vocab: int, embed: int = 100, hidden: int = 300, bottleneck: int = 120) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, bottleneck), nn.ELU(), nn.Linear(bottleneck, hidden), nn.ELU()
        )
        self.embedding = nn.Embedding(vocab, embed)
        self.lstm = nn.LSTM(embed, hidden, batch_first=True)
        self.logits = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(hidden, bottleneck), nn.ELU(), nn.Linear(bottleneck, vocab)
        )
        self.dropout = nn.Dropout(0.3)

    def loss(self, pooled: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the words."""
        state = self.image(pooled)[None]
        lengths = (tokens[:, 1:] != PAD).sum(dim=1)
        words = self.dropout(self.embedding(tokens[:, :-1]))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = self.lstm(packed, (state, state))
        targets = pack_padded_sequence(tokens[:, 1:], lengths, batch_first=True, enforce_sorted=False)
        return nn.functional.cross_entropy(self.logits(outputs.data), targets.data)

    @torch.no_grad()
    def greedy(self, pooled: torch.Tensor) -> torch.Tensor:
        """Caption a batch."""
        state = self.image(pooled)[None]
        state = (state, state)
        token, tokens = torch.full((len(pooled),), START), []
        ended = torch.zeros(len(pooled), dtype=torch.bool)
        for _ in range(MAX_TOKENS):
            output, state = self.lstm(self.embedding(token)[:, None], state)
            logits = self.logits(output[:, 0])
            logits[:, :END] = -torch.inf
            token = torch.where(ended, PAD, logits.argmax(dim=1))
            tokens.append(token)
            ended |= token == END
            if ended.all():
                break
        return torch.stack(tokens, dim=1)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--validate_every", type=int, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    archive = np.load(args.data / "features.npz")
    features = torch.from_numpy(archive["pooled"].astype(np.float32, copy=False))
    index = {str(name): row for row, name in enumerate(archive["file_name"])}
    train, dev = Split(args.data, "train", index), Split(args.data, "dev", index)
    counts = collections.Counter(word for of_image in train.captions for c in of_image for word in words_of(c))
    vocabulary = ["<pad>", "<unk>", "<start>", "<end>", *sorted(word for word, n in counts.items() if n >= 5)]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokens, rows = train.encode(ids)
    dev_tokens, dev_rows = dev.encode(ids)
    references = {i: [" ".join(words_of(c)) for c in of_image] for i, of_image in enumerate(dev.captions)}
    model = Captioner(features.shape[1], len(vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def validate() -> tuple[float, float]:
        model.eval()
        with torch.no_grad():
            losses = [
                (float(model.loss(features[r], t)), int((t[:, 1:] != PAD).sum()))
                for r, t in zip(dev_rows.split(256), dev_tokens.split(256), strict=True)
            ]
        said = torch.cat(
            [
                nn.functional.pad(found, (0, MAX_TOKENS - found.shape[1]))
                for found in (model.greedy(features[r]) for r in torch.from_numpy(dev.rows).split(256))
            ]
        )
        captions = {i: [" ".join(vocabulary[t] for t in row if t > END)] for i, row in enumerate(said.tolist())}
        model.train()
        return sum(a * n for a, n in losses) / sum(n for _, n in losses), Cider().compute_score(references, captions)[0]

    step = 0
    while step < args.steps:
        for batch in torch.randperm(len(tokens)).split(64):
            optimizer.zero_grad()
            model.loss(features[rows[batch]], tokens[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            if step % args.validate_every == 0 or step == args.steps:
                print("step {}: loss {:.4f}, CIDEr-D {:.4f}".format(step, *validate()), file=sys.stderr, flush=True)
            if step == args.steps:
                break


if __name__ == "__main__":
    main()
