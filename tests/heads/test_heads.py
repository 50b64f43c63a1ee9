"""Heads: what comes out, in which order, from which initial weights, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.heads import SIZES, centernet, fcos, maps_for, retinanet
from torch import nn

from onenet.heads.retinanet import RetinaNetHead
from onenet.ops.boxes import anchor_grid, cell_anchors, point_grid

close = torch.testing.assert_close


HEADS = {
    "plain": (centernet, {}, 8 * 16),
    "dcn": (centernet, {"dcn": True}, 8 * 16),
    "dcn_v1": (centernet, {"dcn": True, "modulated": False}, 8 * 16),
    "gelu": (centernet, {"activation": "gelu"}, 8 * 16),
    "fcos": (fcos, {}, 4 * 8 + 2 * 4),
    "fcos_bn": (fcos, {"norm": "BN"}, 4 * 8 + 2 * 4),
    "retinanet": (retinanet, {}, (4 * 8 + 2 * 4) * 6),
}


@pytest.fixture(params=HEADS)
def built(request):
    make, changes, count = HEADS[request.param]
    torch.manual_seed(0)
    return make(**changes), count


def test_shapes_and_types(built):
    head, count = built
    predictions = head(maps_for(head))
    assert predictions.logits.shape == (2, count, 3)
    assert predictions.boxes.shape == (2, count, 4)
    assert predictions.samples.shape == (count, 4)
    assert predictions.levels.shape == (count,) and predictions.levels.dtype == torch.int64
    for value in (predictions.logits, predictions.boxes, predictions.samples):
        assert value.dtype == torch.float32
    sizes = predictions.boxes[..., 2:] - predictions.boxes[..., :2]
    assert (sizes >= 0).all()


def test_batched_equals_single_images(built):
    head, _ = built
    maps = maps_for(head)
    together = head(maps)
    for i in range(2):
        alone = head([m[i : i + 1] for m in maps])
        close(together.logits[i], alone.logits[0], rtol=1e-4, atol=1e-5)
        close(together.boxes[i], alone.boxes[0], rtol=1e-4, atol=1e-4)


def test_every_parameter_is_trained(built):
    head, _ = built
    # Otherwise a ReLU may leave a box side without any gradient.
    box_layer = head.bbox_pred if isinstance(head, RetinaNetHead) else head.ltrb_pred
    nn.init.constant_(box_layer.bias, 5.0)
    predictions = head(maps_for(head))
    (predictions.logits.sum() + predictions.boxes.square().sum()).backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_an_untrained_head_gives_every_class_the_prior(built):
    head, _ = built
    nn.init.zeros_(head.cls_score.weight)
    close(head(maps_for(head)).logits.sigmoid(), torch.tensor(0.01).expand(2, built[1], 3))


def test_weights_are_xavier_uniform_and_other_biases_untouched(built):
    """Xavier's limit is sqrt(6 / (fan in + fan out)), fans times the kernel's area."""
    head, _ = built
    prior = -math.log(0.99 / 0.01)
    for name, parameter in head.named_parameters():
        if parameter.dim() > 1:
            area = parameter[0, 0].numel()
            limit = math.sqrt(6 / (area * (parameter.shape[0] + parameter.shape[1])))
            assert 0.8 * limit < parameter.abs().max() <= limit, name
        elif name == "cls_score.bias":
            close(parameter, torch.full_like(parameter, prior))
        else:
            assert not torch.isclose(parameter, torch.tensor(prior)).any(), name


def test_the_prior_can_be_chosen():
    assert fcos(prior_prob=0.5).cls_score.bias.abs().max() < 1e-6


def test_a_class_count_of_four_leaves_the_box_bias_alone():
    """Then the class and the box layer are of one shape."""
    for head in (centernet(num_classes=4), fcos(num_classes=4)):
        assert head.ltrb_pred.bias.abs().max() < 1 < head.cls_score.bias.abs().min()


def test_centernet_samples_and_box_decoding():
    """A point is at 4 · i + 2; with distances 1, 2, 3, 4 its box is known."""
    head = centernet()
    nn.init.zeros_(head.ltrb_pred.weight)
    head.ltrb_pred.bias.data = torch.tensor([1.0, 2.0, -3.0, 4.0])
    predictions = head(maps_for(head))
    points = point_grid(8, 16, 4)
    close(predictions.samples, points.repeat(1, 2))
    assert not predictions.levels.any()
    shift = torch.tensor([-1.0, -2.0, 0.0, 4.0])
    close(predictions.boxes[0], points.repeat(1, 2) + shift)


def test_fcos_samples_levels_and_box_decoding():
    """Distances are counted in strides, times the level's scale."""
    head = fcos()
    nn.init.zeros_(head.ltrb_pred.weight)
    nn.init.ones_(head.ltrb_pred.bias)
    nn.init.constant_(head.scales[1].scale, 0.5)
    predictions = head(maps_for(head))
    points = torch.cat((point_grid(4, 8, 8), point_grid(2, 4, 16)))
    close(predictions.samples, points.repeat(1, 2))
    assert predictions.levels.tolist() == [0] * 32 + [1] * 8
    # 1 · 8 px on the first level, 0.5 · 16 px on the second.
    close(predictions.boxes[0], torch.cat((points - 8, points + 8), dim=1))


def test_retinanet_samples_run_over_levels_rows_columns_and_anchors():
    head = retinanet(anchor_offset=0.5)
    nn.init.zeros_(head.bbox_pred.weight)
    nn.init.zeros_(head.bbox_pred.bias)
    predictions = head(maps_for(head))
    cells = [cell_anchors(sizes, (0.5, 1.0, 2.0)) for sizes in SIZES]
    anchors = [anchor_grid(cells[0], 4, 8, 8, 0.5), anchor_grid(cells[1], 2, 4, 16, 0.5)]
    close(predictions.samples, torch.cat(anchors))
    close(predictions.boxes[0], torch.cat(anchors))
    assert predictions.levels.tolist() == [0] * (32 * 6) + [1] * (8 * 6)


def test_retinanet_gives_every_anchor_its_own_channels():
    """Channel a · K + k is class k of anchor a, in every cell."""
    head = retinanet(anchor_sizes=[[16], [32]], aspect_ratios=(1.0, 2.0))
    nn.init.zeros_(head.cls_score.weight)
    head.cls_score.bias.data = torch.arange(6.0)
    logits = head(maps_for(head)).logits
    assert logits[1, :4].tolist() == [[0, 1, 2], [3, 4, 5]] * 2


@pytest.mark.parametrize("dcn", [False, True])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_deconvolutions_double_the_map(kernel, dcn):
    head = centernet(deconv_kernels=[kernel] * 3, dcn=dcn)
    assert head(maps_for(head)).logits.shape == (2, 128, 3)


@pytest.mark.parametrize(("modulated", "channels"), [(True, 27), (False, 18)])
def test_deformable_convolution_1_has_no_mask(modulated, channels):
    head = centernet(dcn=True, modulated=modulated)
    assert head.deconv.deconv1.dcn_offset.out_channels == channels


def test_deformable_convolution_without_offsets_is_a_convolution():
    """v1 with offsets 0; v2 with mask sigmoid(0) halves it."""
    x = torch.randn(1, 10, 4, 4, generator=torch.Generator().manual_seed(0))
    for modulated, factor in ((False, 1.0), (True, 0.5)):
        layer = centernet(dcn=True, modulated=modulated).deconv.deconv1
        nn.init.zeros_(layer.dcn_offset.weight)
        plain = nn.functional.conv2d(x, layer.dcn.weight, padding=1) * factor
        expected = layer.up_bn(layer.up_sample(layer.dcn_bn(plain).relu())).relu()
        close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_heads_run_under_bfloat16_autocast(name, training):
    """Boxes are float32, since bfloat16 has no 257 px."""
    make, changes, _ = HEADS[name]
    head = make(**changes).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        predictions = head(maps_for(head))
    assert predictions.logits.dtype == torch.bfloat16
    assert predictions.boxes.dtype == predictions.samples.dtype == torch.float32


@pytest.mark.parametrize("stride", [1.0, 8.0])
def test_box_sides_are_not_rounded_to_bfloat16(stride):
    """257.3 px would be 258."""
    head = fcos(strides=[8, 16]) if stride > 1 else centernet()
    nn.init.zeros_(head.ltrb_pred.weight)
    nn.init.constant_(head.ltrb_pred.bias, 257.3 / stride)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(maps_for(head))
    sides = (found.boxes - found.samples)[0, 0].abs()
    close(sides, torch.full((4,), 257.3), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (centernet, {"activation": "swish"}, "activation must be one of gelu, relu, got 'swish'"),
        (centernet, {"deconv_kernels": [4, 5, 4]}, r"kernel must be one of \[2, 3, 4\], got 5"),
        (centernet, {"in_channels": [4, 6, 10]}, r"4 feature maps.*\[4, 6, 10\]"),
        (centernet, {"deconv_channels": [10, 8, 4]}, r"4 deconvolution channels.*\[10, 8, 4\]"),
        (centernet, {"deconv_kernels": [4, 4]}, r"3 kernels.*\[4, 4\]"),
        (centernet, {"deconv_channels": [12, 8, 6, 4]}, "DECONV_CHANNEL.* is 12.* has 10"),
        (fcos, {"norm": "LN"}, "one of GN, BN.*got 'LN'"),
        (fcos, {"channels": 20}, "multiple of 32.*got 20"),
        (retinanet, {"anchor_sizes": [[16]]}, r"2 levels, got \[\[16\]\]"),
        (retinanet, {"anchor_sizes": [[16], [32, 40]]}, r"same number.*\[\[16\], \[32, 40\]\]"),
        (fcos, {"num_convs": 0}, "num_convs must be at least 1, got 0"),
        (fcos, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (fcos, {"prior_prob": 1.0}, "prior_prob must lie between 0 and 1, got 1.0"),
    ],
)
def test_wrong_settings_are_named(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
