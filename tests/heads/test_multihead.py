"""Multi-head training: the stages, their losses, which one detects, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.configs import CONFIGS
from helpers.heads import centernet, maps_for
from helpers.runs import metrics, train, trained, write_config
from helpers.small_detector import image, model, targets
from torch import nn

from onenet.backbones.resnet import Shape
from onenet.checkpoints.weights import load_weights
from onenet.config.build import build_head
from onenet.errors import CheckpointError, ConfigError
from onenet.heads.deconv import PairConv
from onenet.inference.postprocess import best_detections
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

close = torch.testing.assert_close
HEADS3 = {"MODEL__OneNet__NUM_HEADS": 3}
NAMES = ["loss_ce", "loss_giou", "loss_bbox"]


def detector(**changes):
    """The tiny detector of three stages."""
    head = centernet(in_channels=[4] * 4, deconv_channels=[4] * 4, num_classes=2, **changes)
    nn.init.constant_(head.ltrb_pred.bias, 4.0)
    return model(head=head)


def test_a_map_that_counts_twice_is_a_map_behind_itself():
    torch.manual_seed(0)
    conv, x = PairConv(6), torch.randn(2, 6, 5, 7)
    twice = F.conv2d(torch.cat((x, x), dim=1), conv.weight, conv.bias, padding=1)
    close(conv(x), twice, rtol=0, atol=1e-6)
    close(conv(x, x), twice, rtol=0, atol=0)
    slope = torch.randn_like(twice)
    (once,), (plain,) = (torch.autograd.grad(y, conv.weight, slope) for y in (conv(x), twice))
    close(once, plain, rtol=1e-5, atol=1e-5)


def test_the_stages_are_the_papers():
    torch.manual_seed(0)
    head = centernet(num_stages=3)
    maps = maps_for(head)
    neck = previous = head.deconv(maps)
    stages = head.stages(maps)
    assert len(stages) == 3
    for number, found in enumerate(stages, start=1):
        conv = getattr(head, f"feat{number}")
        assert conv.weight.shape == (4, 8, 3, 3)
        both = torch.cat((neck, previous), dim=1)
        previous = F.conv2d(both, conv.weight, conv.bias, padding=1).relu()
        scores, sides = head.cls_score(previous), head.ltrb_pred(previous).relu()
        close(found.logits, scores.flatten(2).transpose(1, 2))
        left, top, right, bottom = sides.flatten(2).unbind(dim=1)
        x, y = found.samples[:, 0], found.samples[:, 1]
        close(found.boxes, torch.stack((x - left, y - top, x + right, y + bottom), dim=2))
    names = {name.split(".")[0] for name, _ in head.named_parameters()}
    assert names == {"deconv", "feat1", "feat2", "feat3", "cls_score", "ltrb_pred"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_inference_runs_the_stages_that_it_needs(count):
    head = centernet(num_stages=3, inference_stages=count)
    maps = maps_for(head)
    ran = []
    for number in (1, 2, 3):
        conv = getattr(head, f"feat{number}")
        conv.register_forward_hook(lambda *_, number=number: ran.append(number))
    found = head(maps)
    assert ran == list(range(1, count + 1))
    expected = head.stages(maps)[count - 1]
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)


def test_one_stage_sees_the_map_once():
    head = centernet(num_stages=1)
    assert type(head.feat1) is nn.Conv2d and head.feat1.weight.shape == (4, 4, 3, 3)
    maps = maps_for(head)
    (only,) = head.stages(maps)
    assert torch.equal(only.logits, head(maps).logits)


def test_every_stage_is_matched_and_adds_its_losses():
    tiny = detector(num_stages=3).train()
    images = [image(32, 40), image(32, 40, 1)]
    goals = [targets([2, 2, 20, 30], [5, 9, 33, 28]), targets()]
    statistics = tiny.state_dict()
    losses = tiny(images, goals)
    tiny.load_state_dict(statistics)
    assert list(losses) == [*NAMES, *(f"{n}_2" for n in NAMES), *(f"{n}_3" for n in NAMES)]
    maps = tiny.backbone(tiny.batch(images))
    stages = tiny.head.stages([maps[name] for name in tiny.in_features])
    for ending, predictions in zip(("", "_2", "_3"), stages, strict=True):
        for name, loss in tiny.criterion(predictions, goals).items():
            close(losses[name + ending], loss)
    assert len({losses[name].item() for name in ("loss_ce", "loss_ce_2", "loss_ce_3")}) == 3


def test_a_stages_loss_trains_its_convolution_and_those_before():
    tiny = detector(num_stages=3).train()
    losses = tiny([image(32, 40)], [targets([2, 2, 20, 30])])
    weights = [getattr(tiny.head, f"feat{number}").weight for number in (1, 2, 3)]
    for stage, name in enumerate(("loss_ce", "loss_ce_2", "loss_ce_3"), start=1):
        found = torch.autograd.grad(losses[name], weights, retain_graph=True, allow_unused=True)
        reached = [gradient is not None and bool(gradient.any()) for gradient in found]
        assert reached == [number <= stage for number in (1, 2, 3)], name


def test_fused_and_bfloat16_stages_are_those_of_training():
    tiny = detector(num_stages=3, inference_stages=2).eval()
    tiny.load_state_dict(
        {n: v.uniform_(0.5, 2) if "running_var" in n else v for n, v in tiny.state_dict().items()}
    )
    images = [image(32, 40)]
    with torch.no_grad():
        expected = tiny.predict(images)
        fused = tiny.prepare_inference().predict(images)
        close(fused.logits, expected.logits, rtol=1e-4, atol=1e-5)
        close(fused.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
        half = tiny.prepare_inference(precision="bfloat16").predict(images)
    assert half.logits.dtype == torch.bfloat16 and half.boxes.dtype == torch.float32
    assert (half.logits - expected.logits).norm() < 0.02 * expected.logits.norm()


def changed(name: str, **values):
    cfg = load_cfg(CONFIGS / f"{name}.yaml").clone()
    cfg.defrost()
    cfg.MODEL.OneNet.update(values)
    return cfg


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("res18.nodcn", {"NUM_HEADS": 0}, r"OneNet.NUM_HEADS\) must be 1 or more, got 0"),
        ("res18.nodcn", {"INFERENCE_HEADS": 2}, r"INFERENCE_HEADS\) must be from 1 to 1 .*got 2"),
        ("res18.nodcn", {"NUM_HEADS": 3, "INFERENCE_HEADS": 4}, r"from 1 to 3 .*NUM_HEADS.*got 4"),
        ("res18.nodcn", {"NUM_HEADS": 3, "INFERENCE_HEADS": 0}, "from 1 to 3 .*got 0"),
        ("fcos.res50", {"NUM_HEADS": 3}, "NUM_HEADS is 3, but the head 'FCOS' has 1; .*CenterNet"),
        ("fcos.res50", {"INFERENCE_HEADS": 2}, "OneNet.INFERENCE_HEADS is 2, .*'FCOS' has 1"),
        ("retinanet.res50", {"NUM_HEADS": 2}, "NUM_HEADS is 2, but the head 'RetinaNet' has 1"),
    ],
)
def test_wrong_numbers_of_stages_are_named_with_their_key(name, values, message):
    plain = {f"res{i + 2}": Shape(64 * 2**i, 4 * 2**i) for i in range(4)}
    pyramid = {f"p{i}": Shape(256, 2**i) for i in range(3, 8)}
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_head(changed(f"onenet.{name}", **values), plain if "18" in name else pyramid)


def test_the_config_refuses_them_too(shapes, tmp_path):
    config = write_config(tmp_path, shapes, **HEADS3)
    with pytest.raises(ConfigError, match="INFERENCE_HEADS is 0; expected a whole number above 0"):
        load_cfg(config, ["MODEL.OneNet.INFERENCE_HEADS", "0"])
    with pytest.raises(ConfigError, match="MODEL.OneNet.INFERENCE_HEADS.*got 4"):
        build_detector(load_cfg(config, ["MODEL.OneNet.INFERENCE_HEADS", "4"]))


def test_the_shipped_config_has_the_papers_values():
    cfg = load_cfg(CONFIGS / "onenet.multihead.res50.dcn.yaml")
    assert (cfg.MODEL.OneNet.NUM_HEADS, cfg.MODEL.OneNet.INFERENCE_HEADS) == (3, 1)
    assert cfg.SOLVER.BASE_LR == 1e-4 and cfg.SOLVER.IMS_PER_BATCH == 64


def test_a_training_and_its_checkpoint(shapes, tmp_path):
    """In parts, with an average; any stage can be chosen afterwards."""
    changes = {"SOLVER__ACCUMULATE": 2, "SOLVER__MAX_ITER": 2, "MODEL_EMA__ENABLED": True}
    config = write_config(tmp_path, shapes, **HEADS3, **changes)
    train(config)
    (line,) = (line for line in metrics(tmp_path / "run") if "loss_ce" in line)
    terms = [n + ending for ending in ("", "_2", "_3") for n in NAMES]
    assert line["total_loss"] == pytest.approx(sum(line[name] for name in terms))
    assert "ce_3" in (tmp_path / "run" / "log.txt").read_text()

    weights = str(tmp_path / "run" / "model_final.pth")
    pixels, found = torch.rand(3, 64, 64) * 255, []
    for count in ("1", "3"):
        tuned = build_detector(load_cfg(config, ["MODEL.OneNet.INFERENCE_HEADS", count])).eval()
        load_weights(tuned, weights, detector=True)
        with torch.no_grad():
            found.append(tuned([pixels])[0])
            maps = tuned.backbone(tuned.batch([pixels]))
            stage = tuned.head.stages([maps[name] for name in tuned.in_features])[int(count) - 1]
            boxes, scores, _ = best_detections(stage, tuned.max_detections)
        close(found[-1].scores, scores[0])
        close(found[-1].boxes, boxes[0])
    assert not torch.equal(found[0].scores, found[1].scores)


def test_a_checkpoint_of_another_number_of_stages_is_refused(shapes, tmp_path):
    _, weights = trained(tmp_path, shapes)
    three = build_detector(load_cfg(write_config(tmp_path / "three", shapes, **HEADS3)))
    with pytest.raises(CheckpointError) as error:
        load_weights(three, str(weights), detector=True)
    message = str(error.value)
    assert "NUM_HEADS" in message and "4 missing: head.feat2.weight; " in message
    assert "head.feat1.weight (16, 16, 3, 3), the model has (16, 32, 3, 3)" in message
