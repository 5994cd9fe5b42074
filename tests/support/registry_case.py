"""A tiny RT-DETR, its checkpoint and a manifest, for the tests of registry, detector and publishing."""

import msgspec
import torch

from zoo.contract.labels import LabelMap
from zoo.registry.manifest import Manifest, parse_manifest

LABELS = LabelMap.contiguous(["disc", "square", "no"], [7, 3, 12])
INPUT = {"resize": "stretch", "size": [64, 64], "mean": [], "std": [], "backend": "fast", "padding": "batch"}
MODEL = {
    "class_path": "zoo.architectures.rt_detr.RtDetrModule",
    "init_args": {
        "num_classes": 3,
        "backbone": {
            "name": "residual",
            "weights": "random",
            "freeze_stem": False,
            "frozen_norm": False,
            "widths": [4, 4, 8, 8, 8],
        },
        "encoder": {"dim": 8, "num_heads": 2, "ffn_dim": 8, "expansion": 0.5, "num_blocks": 1},
        "decoder": {
            "dim": 8,
            "num_queries": 5,
            "num_layers": 1,
            "eval_layers": 1,
            "num_heads": 2,
            "num_points": 1,
            "ffn_dim": 8,
            "num_denoising": 4,
            "label_noise": 0.5,
            "box_noise": 1.0,
            "learned_queries": False,
        },
        "costs": {"label": 2.0, "l1": 5.0, "giou": 2.0},
        "losses": {"label": 1.0, "l1": 5.0, "giou": 2.0},
        "schedule": {
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "rules": [],
            "warmup_steps": 0,
            "drop_epochs": [],
            "global_batch_size": 2,
            "decay": "constant",
            "final_factor": 1.0,
            "betas": [0.9, 0.999],
        },
        "ema": {"decay": 0.99, "warmup_steps": 10},
        "multi_scale": [],
    },
}


def tiny_module():
    """Random weights; the average differs from the raw weights."""
    from zoo.training.module import build_module

    torch.manual_seed(0)
    module = build_module(MODEL)
    with torch.no_grad():
        for parameter in module.ema.network.parameters():
            parameter += 1e-3
    return module


def tiny_checkpoint(path, step=20):
    """`write_checkpoint` of a tiny module, which it returns."""
    module = tiny_module()
    write_checkpoint(path, module, LABELS, INPUT, step)
    return module


def write_checkpoint(path, module, label_map, contract, step):
    """Writes what `DetectionModule.on_save_checkpoint` makes."""
    facts = {
        "format": 1,
        "model": module.model_block(),
        "label_map": label_map.to_dict(),
        "input": contract,
        "data_digest": "d" * 64,
        "consumed_batches": 0,
        "epoch": 1,
        "step": step,
    }
    torch.save({"state_dict": module.state_dict(), "global_step": step, "zoo": facts}, path)


def tiny_manifest(**changes) -> Manifest:
    """A valid manifest of trained weights with no file behind it, or with `changes`."""
    plain = {
        "name": "rt_detr_tiny.shapes",
        "version": 1,
        "family": "rt_detr",
        "license": "Apache-2.0",
        "model": MODEL,
        "label_map": LABELS.to_dict(),
        "input": INPUT,
        "files": [{"path": "model.safetensors", "size": 10, "sha256": "a" * 64}],
        "origin": {"kind": "trained"},
        "trained_by": {"code": "detr-zoo"},
        "data": {"name": "shapes", "split": "train"},
        "created": "2026-01-01",
    }
    return parse_manifest(msgspec.json.encode({**plain, **changes}))


def safetensors_bytes(value: float = 1.0) -> bytes:
    """A small real safetensors file."""
    import struct

    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", value)
