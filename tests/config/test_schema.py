"""The editor's schema takes what the parser takes, refuses what it refuses, and is up to date."""

import json

import jsonschema
import pytest
import yaml
from conftest import ROOT

from src import schema

FILES = [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "tests").rglob("*.yaml"))]
CONFIGS = [path for path in FILES if path.parent.name != "sweep"]  # which hold a space, not a run


@pytest.fixture(scope="module")
def validator():
    found = json.loads(schema.FILE.read_text())
    jsonschema.Draft7Validator.check_schema(found)
    return jsonschema.Draft7Validator(found)


def test_the_schema_is_up_to_date():
    made, there = schema.make(), json.loads(schema.FILE.read_text())
    if made["$comment"] != there["$comment"]:
        pytest.skip(f"the schema was {there['$comment']}; here is {schema.versions()}")
    assert made == there, "signatures have changed -> make schema"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_configs_fit_and_name_the_schema(path, validator):
    text = path.read_text()
    assert [e.message for e in validator.iter_errors(yaml.safe_load(text))] == []
    if path.is_relative_to(ROOT / "configs"):
        marker = "# yaml-language-server: $schema="
        named = [line.removeprefix(marker) for line in text.splitlines()[:2] if line.startswith(marker)]
        assert named, f"{path}: its first line should be {marker}../schema.json"
        assert (path.parent / named[0]).resolve() == schema.FILE


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["trainer", "max_epoch"], 3),
        (["trainer", "max_epochs"], "three"),
        (["model", "init_args", "label_smothing"], 0.1),
        (["model", "init_args", "label_smoothing"], "much"),
        (["model", "init_args", "network", "init_args", "width"], [8]),
        (["model", "init_args", "network", "init_args", "widths"], 8),
        (["model", "init_args", "optimizer", "init_args", "learning_rate"], 0.1),
        (["model", "init_args", "optimizer", "class_path"], "os.system"),
        (["data", "init_args", "noise"], "much"),
        # kind: images
        (["data"], {"class_path": "src.data.images.module.ImageDataModule", "init_args": {"dataset": "digit"}}),
        # end
        (["data", "class_path"], "src.networks.mlp.MLP"),
        (["checkpoints", "mode"], "minimum"),
        (["optimizer"], {}),
    ],
    ids=str,
)
def test_mistakes_are_marked(keys, value, validator):
    config = yaml.safe_load((ROOT / "tests/small.yaml").read_text())
    node = config
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value
    assert list(validator.iter_errors(config))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["model", "init_args", "network"], "src.networks.mlp.MLP"),
        (
            ["model", "init_args", "network"],
            {"class_path": "torchvision.models.resnet18", "init_args": {"num": 3}},
        ),
        (["trainer", "callbacks+"], [{"class_path": "lightning.pytorch.callbacks.EarlyStopping"}]),
    ],
    ids=["by name", "torchvision", "added to a list"],
)
def test_what_the_parser_takes_is_not_marked(keys, value, validator):
    config = yaml.safe_load((ROOT / "tests/small.yaml").read_text())
    node = config
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    assert list(validator.iter_errors(config)) == []


def test_keys_are_explained():
    found = json.loads(schema.FILE.read_text())["definitions"]
    for path in (p for p in found if p.startswith("src.") and "schedules" not in p):
        keys = found[path]["properties"]["init_args"]["properties"]
        assert [name for name, key in keys.items() if "description" not in key] == [], path
