"""The detector around a tiny backbone: batches, training, evaluation."""

from __future__ import annotations

import pytest
import torch
from helpers.small_detector import MEAN, image, model, targets

from onenet import Detections

close = torch.testing.assert_close


def test_a_batch_is_normalised_then_padded_with_zeros():
    """In normalised space, so that the padding has the mean colour."""
    white = torch.full((3, 2, 3), 40, dtype=torch.uint8)
    small = torch.full((3, 1, 33), 10, dtype=torch.uint8)
    batch = model().batch([white, small])
    assert batch.shape == (2, 3, 32, 64) and batch.dtype == torch.float32
    assert batch.is_contiguous()
    expected = torch.zeros(2, 3, 32, 64)
    for channel, value in enumerate((30.0, 10.0, 2.5)):
        expected[0, channel, :2, :3] = value
    for channel, value in enumerate((0.0, -5.0, -5.0)):
        expected[1, channel, :1, :33] = value
    assert torch.equal(batch, expected)


def test_the_given_order_of_the_mean_is_that_of_the_channels():
    """A BGR model has its values in BGR's order; nothing is turned round."""
    pixel = torch.tensor(MEAN).view(3, 1, 1)
    assert not model().batch([pixel]).any()
    assert model(pixel_mean=MEAN[::-1]).batch([pixel])[0, :, 0, 0].tolist() == [-20.0, 0.0, 5.0]


def test_uint8_and_float_images_agree():
    pixels = image(20, 30)
    assert torch.equal(model().batch([pixels]), model().batch([pixels.float()]))


def test_the_divisor_can_be_chosen():
    assert model(size_divisibility=8).batch([image(9, 8)]).shape == (1, 3, 16, 8)


def test_images_are_not_changed():
    pixels = image(20, 30).float()
    before = pixels.clone()
    model().batch([pixels])
    assert torch.equal(pixels, before)


def test_mean_and_std_are_not_in_the_state_dict():
    assert [name for name in model().state_dict() if "pixel" in name] == []


def test_evaluation_gives_detections_of_every_image():
    detector = model(max_detections=7).eval()
    with torch.inference_mode():
        found = detector([image(32, 32), image(20, 50, 1), image(64, 3, 2)])
    assert len(found) == 3
    for one in found:
        assert isinstance(one, Detections) and len(one) == 7
        assert one.boxes.shape == (7, 4) and one.scores.max() <= 1 and one.labels.max() <= 1
        assert (one.scores.diff() <= 0).all()


def test_a_batch_of_different_sizes_is_what_each_image_gives_at_the_batchs_size():
    """A padded image alone is the same as the image in a batch that pads it as far."""
    detector = model().eval()
    small, large = image(20, 30), image(40, 64, 1)
    together = detector.predict([small, large])
    mean = torch.tensor(MEAN).view(3, 1, 1)
    padded = mean.repeat(1, 64, 64)
    padded[:, :20, :30] = small
    for row, alone in enumerate((padded, large)):
        single = detector.predict([alone])
        close(together.logits[row], single.logits[0], rtol=1e-4, atol=1e-5)
        close(together.boxes[row], single.boxes[0], rtol=1e-4, atol=1e-4)


def test_nms_is_handed_on():
    images = [image(32, 32)]
    plain, sparse = (model(nms_iou=iou).eval()(images)[0] for iou in (None, 0.01))
    assert len(sparse) < len(plain) == 100


@pytest.mark.parametrize("given", [None, [], [targets()]])
def test_training_needs_targets_of_every_image(given):
    count = "none" if given is None else len(given)
    with pytest.raises(ValueError, match=f"targets for all 2 images, got {count}"):
        model()([image(32, 32)] * 2, given)


@pytest.mark.parametrize(
    "goals",
    [
        pytest.param([targets([2, 2, 20, 30]), targets()], id="half empty"),
        pytest.param([targets(), targets()], id="empty"),
        pytest.param([targets([0, 0, 9, 9], [4, 4, 9, 9]), targets([0, 0, 40, 32])], id="full"),
    ],
)
def test_training_gives_finite_losses_and_gradients(goals):
    detector = model()
    losses = detector([image(32, 40), image(30, 32, 1)], goals)
    assert set(losses) == {"loss_ce", "loss_giou", "loss_bbox"}
    total = sum(losses.values())
    assert total.isfinite() and total > 0
    total.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert detector.backbone.conv.weight.grad.any()
    trains_boxes = bool(detector.head.ltrb_pred.weight.grad.any())
    assert trains_boxes == any(len(goal) for goal in goals)
