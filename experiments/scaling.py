"""Predict how training scales, from what compiled programs send and compute: reads and completes a table of pods.

    python experiments/compile_for_pod.py --topologies v5e:16x16 h100:1x8 --out=experiments/results/pods.md
    python experiments/scaling.py experiments/results/pods.md >> experiments/results/pods.md

Of a step with F floating-point operations and B bytes in collectives a device, on n devices with peak P and a link of
bandwidth L each:

    compute time  C = F / (u P)                  u the share of the peak that the program reaches
    all-reduce    R = 2 (n - 1) / n · B / L      a ring: each byte goes out and comes in once, twice over
    efficiency    C / (C + R)                    nothing of R hidden behind C, so a lower bound

u is not known without the chip; the table has 10 % and 40 %. What the devices then ask of the host is captions, or
images, over C + R, times the bytes of one.
"""

import argparse
import pathlib
from typing import NamedTuple

from capjax.config import load_config


class Chip(NamedTuple):
    """Peak in bfloat16 (TFLOP/s) and link (GB/s out of a chip): Google Cloud's and NVIDIA's figures."""

    teraflops: float
    link: float


CHIPS = {
    "v5e": Chip(197, 200),  # 1,600 Gbit/s between chips
    "v6e": Chip(918, 448),  # 3,584 Gbit/s
    "h100": Chip(989, 450),  # NVLink within a machine, 900 GB/s both ways together
}
BETWEEN_MACHINES = 50.0  # GB/s of an H100: InfiniBand of 400 Gbit/s
PER_DEVICE = 64  # captions, as the table was made with


def bytes_of_image(recipe: str) -> float:
    """Return what one image takes on its way to the device."""
    config = load_config(recipe)
    if not config.features.dir:
        return 3 * 299**2
    pooled = 2048 * 4
    return pooled + 64 * 2048 * 2 if config.encoder.grid else pooled


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=pathlib.Path, help="what compile_for_pod.py wrote")
    table = parser.parse_args().table
    print(
        "\n| recipe | topology | compute, ms (10 %, 40 % of peak) | all-reduce, ms | efficiency | images/s a device |",
        end="",
    )
    print(" MB/s a device |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for line in table.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 11 or cells[1] not in ("training", "reinforcement") or not cells[3].endswith("× 1"):
            continue
        recipe, topology = cells[0], cells[2]
        name, _, shape = topology.partition(":")
        chip, rows = CHIPS[name], int(cells[3].split(" ")[0])
        link = BETWEEN_MACHINES if name == "h100" and not shape.startswith("1x") else chip.link
        operations, sent = (1e9 * float(cells[4].replace(",", "")), 1e6 * float(cells[8].replace(",", "")))
        reduce = 2 * (rows - 1) / rows * sent / (1e9 * link)
        compute = [operations / (share * 1e12 * chip.teraflops) for share in (0.1, 0.4)]
        images = PER_DEVICE / load_config(recipe).train.captions_per_image
        demand = [images / (c + reduce) for c in compute]
        row = [recipe, topology, ", ".join(f"{1e3 * c:.2f}" for c in compute), f"{1e3 * reduce:.2f}"]
        row += [", ".join(f"{c / (c + reduce):.0%}" for c in compute), ", ".join(f"{d:,.0f}" for d in demand)]
        row += [", ".join(f"{1e-6 * d * bytes_of_image(recipe):,.0f}" for d in demand)]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
