"""Whether an accelerator waits: ``python -m benchmarks.accelerator``; ResNet-50 on a GPU, fed from TIFFs, on torch.

Its own speed is that of steps on a batch which lies on the GPU already. The fed speed is that of the same steps over
epochs of `BatchFlow`, with batches sent from pinned memory while the step before runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import lazytiles as lt
from benchmarks import readers, workloads


class Step:
    """A step of training of ResNet-50 in bfloat16, channels last, on images of bytes."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.model = torchvision.models.resnet50().cuda().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
        self.labels = torch.zeros(batch, dtype=torch.int64, device="cuda")

    def __call__(self, images: torch.Tensor) -> None:
        x = images.permute(0, 3, 1, 2).to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(self.model(x), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def ahead(batches: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
    """Batches on the GPU: the next one is on its way while the one before is used."""
    copying = torch.cuda.Stream()

    def sent(batch: np.ndarray) -> tuple[torch.Tensor, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            tensor = torch.from_numpy(batch).pin_memory().to("cuda", non_blocking=True)
            return tensor, copying.record_event()

    coming = map(sent, batches)
    for (tensor, there), _ in itertools.pairwise(coming):
        torch.cuda.current_stream().wait_event(there)
        tensor.record_stream(torch.cuda.current_stream())
        yield tensor


def images_a_second(step: Step, batches: Iterator[torch.Tensor], count: int) -> float:
    """Speed of so many steps."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for images in itertools.islice(batches, count):
        step(images)
    torch.cuda.synchronize()
    return count * step.batch / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks-data"), help="where the images are made")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--readers", default="0,auto", help="numbers of reader processes, such as 0,4,auto")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("accelerator.json"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    tiles = readers.open_workload(workloads.w2(given.folder, full=False))
    lt.configure(cache_bytes=0)
    step = Step(given.batch)
    still = torch.from_numpy(np.asarray(tiles[: given.batch])).cuda()
    ways: dict[str, Callable[[], Iterator[torch.Tensor]]] = {"ResNet-50 alone": lambda: itertools.repeat(still)}
    for asked in given.readers.split(","):
        many: Any = asked if asked == "auto" else int(asked)
        flow = lt.BatchFlow(tiles, given.batch, shuffle=True, seed=0, drop_last=True, readers=many, loop=True)
        ways[f"fed, readers={asked}"] = lambda flow=flow: ahead(iter(flow))
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in [*ways.items()] * (given.repeats + 1):
        batches = way()
        images_a_second(step, batches, 10)  # readers are up, the first batches are there
        speeds[name].append(images_a_second(step, batches, given.steps))
    found = {name: statistics.median(each[1:]) for name, each in speeds.items()}
    own = found["ResNet-50 alone"]
    for name, speed in found.items():
        print(f"{name}: {speed:,.0f} images/s, {speed / own:.2f} of its own speed")
    if given.json:
        given.json.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "images_a_second": found}, indent=1))


if __name__ == "__main__":
    main()
