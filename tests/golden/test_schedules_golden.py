"""Rates, averages, optimizer groups and augmentation by epoch of every D-FINE and DEIMv2 are the official ones."""

import json
from dataclasses import replace

import pytest
from official_cases import assert_all_pass, official_case, official_dir, skip_structures
from torch import nn

from datamodules.base import refuse_dense
from datamodules.transforms.mixing import CopyBlend, DenseO2O, Mixup, is_active
from datamodules.transforms.mosaic import Mosaic
from datamodules.transforms.presets import LaterTransform, build_transform, schedule_transforms
from zoo.contract.preprocess import InputContract
from zoo.storage.patterns import compiled
from zoo.verification.schedule import compare_schedules, schedule_of

FOLDERS = ("dfine", "deimv2")
STRUCTURES = sorted(p for f in FOLDERS for p in (official_dir() / f).glob("structure_*.json"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_rates_and_averages(folder):
    assert_all_pass(compare_schedules(official_case(folder, "schedule")))


@pytest.mark.parametrize(
    "path",
    STRUCTURES or [official_dir() / folder / "structure_n.json" for folder in FOLDERS],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_official_patterns_make_the_official_groups(path):
    if not path.is_file():
        skip_structures(path.parent.name)
    facts = json.loads(path.read_text())
    configs = official_case(path.parent.name, "schedule").facts["schedules"]
    schedule = schedule_of(configs[path.stem.removeprefix("structure_")])
    official = {(g["lr"], g["weight_decay"], n) for g in facts["param_groups"] for n in g["names"]}
    names = [n for _, _, n in official]
    # the official pattern of backbone norms matches nothing in most sizes
    rules = [r for r in schedule.rules if any(map(compiled(r.match).search, names))]
    groups = replace(schedule, rules=rules).groups([(n, nn.Parameter()) for n in names])
    assert {(g["lr"], g["weight_decay"], n) for g in groups for n in g["param_names"]} == official


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_epoch_augments_as_the_official_one(folder):
    case = official_case(folder, "schedule")
    columns = case.strings("augmentation/columns")
    models = case.strings("augmentation/models")
    table = [dict(zip(columns, row, strict=True)) for row in case["augmentation/table"].tolist()]
    assert [m for m in models if not any(models[r["model_index"]] == m for r in table)] == []
    for row in table:
        config, epoch = case.facts["schedules"][models[row["model_index"]]], row["epoch"]
        transforms, dense = policy_of(config)
        collate = config["collate_fn"]
        ours = {
            "policy_ops_active": transforms.at(epoch).name == "rt_detr",
            "mosaic_possible": is_active(dense.mosaic, epoch),
            "mixup_possible": is_active(dense.mixup, epoch),
            "copyblend_possible": is_active(dense.copy_blend, epoch),
            "multi_scale": bool(collate["base_size_repeat"]) and epoch < collate["stop_epoch"],
            "restart_from_best_stage1_at_start_of_epoch": epoch == schedule_of(config).restart_epoch,
        }
        assert {name: row[name] for name in ours} == ours, (config["config"], epoch)


def policy_of(config):
    """`train_transform`, `later_transforms` and `dense_o2o` of an official configuration."""
    policy, collate = config["policy"]["epoch"], config["collate_fn"]
    contract = InputContract(resize="stretch", size=tuple(config["eval_spatial_size"]))
    if isinstance(policy, int):
        first, later = "rt_detr", [(policy, "rt_detr_clean")]
        mosaic = None
    else:
        begin, end, stop = policy
        first, later = "rt_detr_clean", [(begin, "rt_detr"), (stop, "rt_detr_clean")]
        official = next(op for op in config["train_ops"] if op["type"] == "Mosaic")
        assert official["translation_range"] == [official["translation_range"][0]] * 2
        mosaic = Mosaic(
            epochs=(begin, end), probability=config["mosaic_prob"], side=official["output_size"],
            rotation=official["rotation_range"], translation=official["translation_range"][0],
            scale=tuple(official["scaling_range"]),
        )  # fmt: skip
    mixup = copy_blend = None
    if collate.get("mixup_prob"):
        mixup = Mixup(epochs=tuple(collate["mixup_epochs"]), probability=collate["mixup_prob"])
    if collate.get("copyblend_prob"):
        copy_blend = CopyBlend(
            epochs=tuple(collate["copyblend_epochs"]), probability=collate["copyblend_prob"],
            objects=collate["num_objects"], least_area=collate["area_threshold"],
            expand=tuple(collate["expand_ratios"]),
        )  # fmt: skip
    dense = DenseO2O(group=config["total_batch_size"] // 4, mosaic=mosaic, mixup=mixup, copy_blend=copy_blend)
    transforms = schedule_transforms(
        build_transform(first, contract), [LaterTransform(from_epoch=e, name=n) for e, n in later]
    )
    refuse_dense(dense, transforms)
    return transforms, dense
