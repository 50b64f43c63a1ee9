"""Models that the library transformers has saved: evaluated, fine-tuned and drawn as any other."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from helpers.configs import ROOT, refused
from helpers.detrs import image
from helpers.runs import load, train, write_config
from safetensors.torch import load_file

from onenet.checkpoints.hub import ADDRESS, find_published, read_published
from onenet.checkpoints.weights import load_weights, locate_weights
from onenet.errors import CheckpointError, ConfigError
from onenet.lightning.build import build_detector
from onenet.lightning.config import dump, load_cfg
from onenet.lightning.predictor import build_predictor

transformers = pytest.importorskip("transformers")
errors = pytest.importorskip("huggingface_hub.errors")

close = torch.testing.assert_close
DETR = ROOT / "configs" / "baselines" / "detr.res50.yaml"
# Labels of shapes with gaps, as COCO's ids have them.
NAMES = {0: "N/A", 1: "circle", 2: "ring", 3: "N/A", 4: "square", 5: "triangle", 6: "star"}
NAMES |= {7: "LABEL_7", 8: "cross"}
KEPT = [1, 2, 4, 5, 6, 8]
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.OneNet.NUM_CLASSES", "6"]
RESNET = {
    "model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16],
    "embedding_size": 8, "layer_type": "basic",
}  # fmt: skip
SIZES = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "num_queries": 8,
}  # fmt: skip


def save(folder, name="Detr", names=NAMES, **options):
    """A network of random weights in the library's format."""
    kind = getattr(transformers, f"{name}ForObjectDetection")
    torch.manual_seed(0)
    labels = {"id2label": names, "label2id": {n: i for i, n in names.items()}} if names else {}
    network = kind(kind.config_class(**SIZES, **labels, **options)).eval()
    network.save_pretrained(folder)
    images = {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406]}
    images |= {"image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255}
    images["size"] = {"shortest_edge": 64, "longest_edge": 96}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """DETR's folder and its network."""
    folder = tmp_path_factory.mktemp("hub") / "detr"
    return folder, save(folder, backbone_config={**RESNET, "out_features": ["stage4"]})


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def built(cfg):
    model = build_detector(cfg)
    return model.eval(), load_weights(model, cfg.MODEL.WEIGHTS, detector=True)


def detect(model):
    with torch.inference_mode():
        return model([image()])[0], (image() - model.pixel_mean) / model.pixel_std


def test_cocos_91_labels_are_our_80_classes(tmp_path):
    """The gaps of COCO's ids have no class; the others keep the order of their ids."""
    gaps = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    names = {str(i): "N/A" if i in gaps else f"class {i}" for i in range(91)}
    config = {"model_type": "detr", "architectures": ["DetrForObjectDetection"], "id2label": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_published(tmp_path)
    assert found.labels == tuple(i for i in range(91) if i not in gaps) and len(found.labels) == 80
    assert found.classes[:2] == ("class 1", "class 2") and found.classes[-1] == "class 90"
    assert found.labels[11] == 13  # the first one behind a gap


def test_a_saved_detr_detects_as_in_its_library(saved):
    """A softmax without the rows of no class: those share their part among the others."""
    folder, network = saved
    cfg = load_cfg(DETR, [*OPTS, "MODEL.WEIGHTS", str(folder)])
    assert cfg.MODEL.TRANSFORMERS.OWN_BACKBONE and cfg.MODEL.TRANSFORMERS.CONFIG.num_queries == 8
    model, extras = built(cfg)
    assert extras["class_names"] == ["circle", "ring", "square", "triangle", "star", "cross"]
    found, pixels = detect(model)
    with torch.inference_mode():
        raw = network(pixels[None])
    scores, labels = raw.logits[0, :, [*KEPT, 9]].softmax(-1)[:, :-1].max(-1)
    close(found.scores, scores.sort(descending=True).values)
    best = scores.argmax()
    assert found.labels[0] == labels[best]
    x, y, w, h = raw.pred_boxes[0, best]
    box = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    close(found.boxes[0], box * torch.tensor([96, 64, 96, 64]))


def test_a_saved_deformable_detr_detects_as_in_its_library(tmp_path):
    """Sigmoids: the classes have exactly the library's scores."""
    backbone = {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}
    network = save(tmp_path, "DeformableDetr", backbone_config=backbone)
    opts = ["MODEL.META_ARCHITECTURE", "transformers.DeformableDetr", *OPTS]
    model, _ = built(load_cfg(DETR, [*opts, "MODEL.WEIGHTS", str(tmp_path)]))
    found, pixels = detect(model)
    with torch.inference_mode():
        raw = network(pixels[None])
    close(found.scores, raw.logits[0, :, KEPT].sigmoid().flatten().sort(descending=True).values)


def test_a_runs_checkpoint_needs_the_folder_no_more(copy, tmp_path, shapes):
    """Evaluated, then fine-tuned: the run's own config and weights are enough."""
    opts = {"MODEL__META_ARCHITECTURE": "transformers.Detr", "MODEL__WEIGHTS": str(copy)}
    opts |= {"SOLVER__MAX_ITER": 1, "SOLVER__IMS_PER_BATCH": 2}
    opts["MODEL__OneNet__IN_FEATURES"] = ["res5"]
    file = write_config(tmp_path, shapes, **opts)
    assert train(file, "--eval-only")["bbox/AP"] >= 0
    train(file, "--overwrite")
    shutil.rmtree(copy)
    final = tmp_path / "run" / "model_final.pth"
    assert load(final)["class_names"][0] == "circle"
    predictor = build_predictor(
        str(tmp_path / "run" / "config.yaml"), ["MODEL.WEIGHTS", str(final)]
    )
    assert len(predictor(image().permute(1, 2, 0).numpy()).scores) <= 8


def test_other_classes_start_the_class_layer_again(saved):
    cfg = load_cfg(DETR, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(saved[0])])  # 80 classes
    model = build_detector(cfg)
    with pytest.raises(CheckpointError, match="another number of classes: set .*NUM_CLASSES"):
        load_weights(model, cfg.MODEL.WEIGHTS, detector=True)
    before = model.head.class_labels_classifier.weight.clone()
    load_weights(model, cfg.MODEL.WEIGHTS, new_classes=True)
    assert torch.equal(model.head.class_labels_classifier.weight, before)
    close(model.head.bbox_predictor.layers[0].weight, saved[1].bbox_predictor.layers[0].weight)


def test_the_config_reads_back(saved, tmp_path):
    cfg = load_cfg(DETR, [*OPTS, "MODEL.WEIGHTS", str(saved[0] / "model.safetensors")])
    (tmp_path / "c.yaml").write_text(dump(cfg))
    again = load_cfg(tmp_path / "c.yaml", ["MODEL.WEIGHTS", ""])
    assert again.MODEL.TRANSFORMERS == cfg.MODEL.TRANSFORMERS
    build_detector(again).load_state_dict(build_detector(cfg).state_dict())


# What is refused.


def test_another_architecture_is_told(saved):
    told = refused(DETR, "MODEL.META_ARCHITECTURE", "OneNet", "MODEL.WEIGHTS", str(saved[0]))
    assert "META_ARCHITECTURE is 'OneNet', but MODEL.WEIGHTS" in told
    assert "is of transformers.Detr: set that" in told


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"], "PIXEL_MEAN '[123.675, 116.280, 103.530]'"),
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT is 'BGR'; expected 'RGB'"),
    ],
)
def test_pixels_prepared_otherwise_are_told(saved, opts, told):
    assert told in refused(DETR, "MODEL.WEIGHTS", str(saved[0]), *opts)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": ["DetrModel"]}, "is of DetrModel; expected a detector"),
        ({"id2label": ["circle"]}, "does not describe a detector"),
        ({"d_model": "wide"}, "cannot read its config: .*d_model"),
    ],
)
def test_a_folder_that_is_no_detector_is_told(copy, change, told):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=told):
        load_cfg(DETR, [*OPTS, "MODEL.WEIGHTS", str(copy)])


def test_a_folder_without_weights_or_with_others_is_told(copy):
    cfg = load_cfg(DETR, [*OPTS, "MODEL.WEIGHTS", str(copy)])
    model = build_detector(cfg)
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load_weights(model, cfg.MODEL.WEIGHTS)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds none of model.safetensors"):
        locate_weights(str(copy))
    assert find_published(str(copy.parent)) is None


def test_a_pickle_is_read_if_it_cannot_run_code(copy):
    """As older models have it; the library's own reader comes second."""
    cfg = load_cfg(DETR, [*OPTS, "MODEL.WEIGHTS", str(copy)])
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    _, extras = built(cfg)
    assert extras["class_names"][0] == "circle"
    torch.save({**state, "more": slice}, copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused: loading it could run code"):
        load_weights(build_detector(cfg), cfg.MODEL.WEIGHTS)


def test_offline_the_way_out_is_told(monkeypatch):
    """The error names the command to run elsewhere, and what to give here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = (
        r"hf://facebook/none: .*\.json could not be fetched .*hf download facebook/none "
        r"--local-dir FOLDER.*MODEL.WEIGHTS path/to/FOLDER"
    )
    with pytest.raises(CheckpointError, match=told):
        load_cfg(DETR, ["MODEL.WEIGHTS", f"{ADDRESS}facebook/none"])


@pytest.mark.parametrize("name", ["detr", "a/b/c", "/tmp/detr"])
def test_a_name_that_the_hub_cannot_have_is_told(name):
    with pytest.raises(CheckpointError, match="expected hf://OWNER/NAME"):
        load_cfg(DETR, ["MODEL.WEIGHTS", ADDRESS + name])


def test_an_address_takes_the_files_of_the_hub(saved, monkeypatch):
    """A revision is asked for; a model without a file for images takes ImageNet's pixels."""
    asked = []

    def download(name, file, revision=None):
        asked.append((name, file, revision))
        if file == "preprocessor_config.json":
            raise errors.RemoteEntryNotFoundError(file, response=Answer())
        return str(saved[0] / file)

    class Answer:
        headers, request, status_code = {}, None, 404

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    cfg = load_cfg(DETR, [*OPTS, "MODEL.WEIGHTS", "hf://facebook/detr@no_timm"])
    assert ("facebook/detr", "config.json", "no_timm") in asked
    _, extras = built(cfg)
    assert extras["class_names"][0] == "circle"


def test_without_transformers_an_address_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'onenet\[transformers\]'"):
        load_cfg(DETR, ["MODEL.WEIGHTS", "hf://facebook/detr-resnet-50"])
