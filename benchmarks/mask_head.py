"""How much memory does DETR's mask branch take when it runs on matched queries only?

Forward and backward of the branch with its losses, on random features of ResNet-50's shapes:
    python benchmarks/mask_head.py [--images 4] [--objects 30] [--size 800 1066] [--count-only]
    [--float64] [--tiny] [--json]
Four paths, each in a process of its own: all queries run and enlarged to the image; all run and the matched ones
enlarged (the official code); the matched ones run and enlarged; and ours, which also computes the losses in
blocks. `tensors` is the largest sum of live tensors, counted without computing; `resident` the growth of the
process. Gradients of weights and features are compared with those of the first path; a difference ends the run.
All queries of four full images need about 20 GB; --count-only needs none, and measures tensors alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import sigmoid_focal_loss

from zoo.layers.mask_head import AttentionMap, MaskHead, QueryMasks
from zoo.training.losses import focal_and_dice

QUERIES, DIM, HEADS = 100, 256, 8
CHANNELS = (1024, 512, 256)  # ResNet-50's third, second and first stage
# of gradients, relative to the largest value of all; in float32 sums over 50 000 places differ by their order
TOLERANCE = {False: 1e-4, True: 1e-10}  # by --float64
Loss = Callable[["Branch"], Tensor]


class Branch(nn.Module):
    """The branch, random features that need gradients, and matched pairs with random targets."""

    def __init__(self, images: int, objects: int, size: tuple[int, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.head = AttentionMap(DIM, HEADS), MaskHead(DIM, HEADS, CHANNELS)
        coarse, *finer = [tuple(-(-side // stride) for side in size) for stride in (32, 16, 8, 4)]
        self.images, self.size = images, size
        self.queries = nn.Parameter(torch.randn(images, QUERIES, DIM))
        self.memory = nn.Parameter(torch.randn(images, coarse[0] * coarse[1], DIM))
        self.projected = nn.Parameter(torch.randn(images, DIM, *coarse))
        self.stages = nn.ParameterList(
            torch.randn(images, channels, *shape) for channels, shape in zip(CHANNELS, finer, strict=True)
        )
        self.padding = torch.zeros(images, *coarse, dtype=torch.bool)
        self.image = torch.arange(images).repeat_interleave(objects)
        self.query = torch.stack([torch.randperm(QUERIES)[:objects] for _ in range(images)]).flatten()
        self.targets = torch.rand(images * objects, *size) < 0.2

    def masks(self, image: Tensor, query: Tensor) -> Tensor:
        """[P, h, w] logits."""
        masks = QueryMasks(
            self.attention,
            self.head,
            self.queries,
            self.memory,
            self.padding,
            self.projected,
            tuple(self.stages),
        )
        return masks(image, query)

    def of_all(self) -> Tensor:
        """[B, Q, h, w]."""
        image = torch.arange(self.images).repeat_interleave(QUERIES)
        return self.masks(image, torch.arange(QUERIES).repeat(self.images)).unflatten(
            0, (self.images, QUERIES)
        )


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., h, w] to [..., H, W]."""
    large = F.interpolate(logits.flatten(0, -3)[:, None], size, mode="bilinear", align_corners=False)
    return large.view(*logits.shape[:-2], *size)


def by_autograd(large: Tensor, targets: Tensor) -> Tensor:
    """Focal and dice of each mask, added up, over the number of masks."""
    t = targets.to(large.dtype)
    focal = sigmoid_focal_loss(large, t, alpha=0.25, gamma=2.0).mean((1, 2)).sum()
    p = large.sigmoid()
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    return (focal + dice.sum()) / len(large)


def all_enlarged(branch: Branch) -> Tensor:
    """Every query is computed and enlarged."""
    large = enlarged(branch.of_all(), branch.size)
    return by_autograd(large[branch.image, branch.query], branch.targets)


def all_run(branch: Branch) -> Tensor:
    """Every query is computed, the matched ones are enlarged."""
    matched = branch.of_all()[branch.image, branch.query]
    return by_autograd(enlarged(matched, branch.size), branch.targets)


def matched_run(branch: Branch) -> Tensor:
    """The matched queries are computed and enlarged."""
    return by_autograd(enlarged(branch.masks(branch.image, branch.query), branch.size), branch.targets)


def ours(branch: Branch) -> Tensor:
    """The matched queries are computed; losses in blocks, as the criterion has them."""
    focal, dice = focal_and_dice(branch.masks(branch.image, branch.query), branch.targets)
    return (focal.sum() + dice.sum()) / len(focal)


PATHS: dict[str, Loss] = {
    "all enlarged": all_enlarged,
    "all run, matched enlarged": all_run,
    "matched": matched_run,
    "ours": ours,
}


class LiveBytes(TorchDispatchMode):
    """The largest sum of bytes of tensors that were alive at the same time since it began."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: Any) -> None:
        """Counts a storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        """The storage is gone."""
        self.seen.discard(key)
        self.now -= size


def tensor_bytes(loss: Loss, sizes: tuple[int, int, tuple[int, int]]) -> int:
    """Peak of one forward and backward, features and weights not counted; nothing is computed."""
    with FakeTensorMode():
        branch = Branch(*sizes)
        with LiveBytes() as live:
            loss(branch).backward()
    return live.peak


def measure(
    name: str, sizes: tuple[int, int, tuple[int, int]], into: Path | None, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Peaks of one path; computes it and writes its gradients if told where to."""
    tensors = tensor_bytes(PATHS[name], sizes)
    if into is None:
        return {"tensors_mb": tensors / 1e6}
    branch = Branch(*sizes).to(dtype)
    before = resident_now()
    PATHS[name](branch).backward()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    torch.save({n: p.grad for n, p in branch.named_parameters()}, into)
    return {"tensors_mb": tensors / 1e6, "resident_mb": resident / 1e6}


def resident_now() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def compare(path: Path, reference: Path) -> dict[str, float]:
    """Largest differences of gradients, relative to the largest value of all, and of the own tensor."""
    mine, theirs = torch.load(path), torch.load(reference)
    assert mine.keys() == theirs.keys()
    differences = {name: float((mine[name] - gradient).abs().max()) for name, gradient in theirs.items()}
    largest = {name: float(gradient.abs().max()) for name, gradient in theirs.items()}
    return {
        "gradient_difference": max(differences.values()) / max(largest.values()),
        "gradient_difference_of_a_tensor": max(d / largest[name] for name, d in differences.items()),
    }


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every path in a process of its own."""
    rows: list[dict[str, Any]] = []
    if arguments.count_only:
        for name in PATHS:
            row = {"path": name, **measure(name, sizes_of(arguments), None)}
            rows.append(row | {"ratio_tensors": row["tensors_mb"] / (rows[0] if rows else row)["tensors_mb"]})
        return rows
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.pt" for number, name in enumerate(PATHS)}
        for name, file in files.items():
            command = [
                sys.executable,
                __file__,
                "--child",
                name,
                str(file),
                "--images",
                str(arguments.images),
            ]
            command += ["--float64"] if arguments.float64 else []
            command += ["--objects", str(arguments.objects), "--size", *map(str, arguments.size)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                sys.exit(f"{name}: ended with {ended.returncode} (-9: not enough memory)\n{ended.stderr}")
            row = {"path": name, **json.loads(ended.stdout)}
            row["ratio_tensors"] = row["tensors_mb"] / (rows[0] if rows else row)["tensors_mb"]
            row["ratio_resident"] = row["resident_mb"] / max(1e-9, (rows[0] if rows else row)["resident_mb"])
            row |= compare(file, files["all enlarged"])
            rows.append(row)
    return rows


def sizes_of(arguments: argparse.Namespace) -> tuple[int, int, tuple[int, int]]:
    """Images, objects of each, (h, w)."""
    return arguments.images, arguments.objects, tuple(arguments.size)


def main() -> None:
    """Parses the command line and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066))
    parser.add_argument("--count-only", action="store_true")
    parser.add_argument("--float64", action="store_true", help="compute in float64: exact gradients")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.tiny:
        arguments.images, arguments.objects, arguments.size = 2, 3, (64, 96)
    if arguments.child:
        name, file = arguments.child
        dtype = torch.float64 if arguments.float64 else torch.float32
        print(json.dumps(measure(name, sizes_of(arguments), Path(file), dtype)))
        return
    rows = run(arguments)
    if arguments.json:
        print(json.dumps({"rows": rows}))
    else:
        columns = {
            "tensors_mb": ("tensors MB", ".0f"),
            "ratio_tensors": ("ratio", ".3f"),
            "resident_mb": ("resident MB", ".0f"),
            "ratio_resident": ("ratio", ".3f"),
            "gradient_difference": ("gradients differ", ".1e"),
            "gradient_difference_of_a_tensor": ("of a tensor", ".1e"),
        }
        print(f"{'path':28}" + "".join(f"{columns[c][0]:>18}" for c in columns if c in rows[0]))
        for row in rows:
            values = (f"{format(row[c], columns[c][1]):>18}" for c in columns if c in row)
            print(f"{row['path']:28}" + "".join(values))
    if any(r.get("gradient_difference", 0.0) > TOLERANCE[arguments.float64] for r in rows):
        sys.exit(f"gradients differ by more than {TOLERANCE[arguments.float64]}")


if __name__ == "__main__":
    main()
