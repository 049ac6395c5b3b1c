"""How answers are counted: the mean IoU against a count by hand and torchmetrics' own."""

import pickle

import numpy as np
import pytest
import torch

import fedact
from fedact.data import VOID, Augmented, center_crop
from fedact.measure import step as replay
from fedact.models.tasks import TASKS, loss_under, pixel_classes, task_loss

pytest.importorskip("torchmetrics")


def scores_for(masks, classes):
    """Return scores whose best class is the mask's."""
    return torch.nn.functional.one_hot(masks.clamp(max=classes - 1), classes).permute(0, 3, 1, 2).float()


def by_hand(found, truth, classes):
    both = [(found[truth != VOID] == c, truth[truth != VOID] == c) for c in range(classes)]
    return [None if not (a | b).any() else float((a & b).sum() / (a | b).sum()) for a, b in both]


def test_the_mean_iou_is_that_counted_by_hand_over_batches():
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (6, 8, 8), generator=random)
    found = torch.where(
        torch.rand(truth.shape, generator=random) < 0.6, truth, torch.randint(4, truth.shape, generator=random)
    )
    truth[torch.rand(truth.shape, generator=random) < 0.2] = VOID
    count = TASKS["segmentation"].count(6)
    for part in (slice(0, 4), slice(4, 6)):
        count.add(scores_for(found[part], 6), truth[part])
    outcome = count.outcome()
    expected = by_hand(found, truth, 6)
    assert expected[4:] == [None, None]
    assert outcome.class_iou[4:] == (None, None)
    assert outcome.class_iou[:4] == pytest.approx(expected[:4])
    assert outcome.score == pytest.approx(np.mean(expected[:4]))


def test_pixels_that_are_all_void_have_no_score():
    count = TASKS["segmentation"].count(3)
    count.add(torch.zeros(1, 3, 2, 2), torch.full((1, 4, 4), VOID))
    outcome = count.outcome()
    assert (outcome.score, outcome.loss, outcome.class_iou) == (None, 0.0, (None,) * 3)


def test_classes_are_counted_as_before():
    count = TASKS["classification"].count(3)
    count.add(torch.eye(3), torch.tensor([0, 1, 0]))
    outcome = count.outcome()
    assert outcome.score == pytest.approx(2 / 3)
    assert outcome.class_iou is None


def test_the_loss_follows_from_the_targets_and_is_lean_beside_lean_layers_alone():
    labels, masks = torch.tensor([1, 0]), torch.tensor([[[1, 0]], [[0, VOID]]])
    scores = torch.randn(2, 2)
    assert task_loss(scores, labels) == torch.nn.functional.cross_entropy(scores, labels)
    assert torch.allclose(task_loss(scores[..., None, None], masks), task_loss.lean(scores[..., None, None], masks))
    assert loss_under(True, task_loss) == task_loss.lean
    assert loss_under(False, task_loss) is task_loss
    plain = torch.nn.functional.cross_entropy
    assert loss_under(True, plain) is plain


@pytest.mark.parametrize(("method", "lean"), [("vanilla", False), ("exact", True)])
def test_a_replayed_step_takes_the_loss_as_training_does(method, lean, monkeypatch):
    taken = []
    monkeypatch.setattr("fedact.models.pixel_loss.PixelLoss.lean", lambda *given: taken.append(given) or given[1].mean())
    model = fedact.compress(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)), method, layers=1)
    replay.step(model, (torch.randn(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long)))
    assert len(taken) == lean


def test_pixels_are_predicted_at_the_masks_size():
    masks = torch.zeros(1, 4, 4, dtype=torch.long)
    masks[:, :, 2:] = 1
    assert (
        pixel_classes(scores_for(masks, 2), (8, 8)).tolist()
        == masks.repeat_interleave(2, 1).repeat_interleave(2, 2).tolist()
    )


def batches_of(images, targets):
    return lambda positions: (images[positions], targets[positions])


def test_a_mask_is_cropped_and_flipped_as_its_image_is():
    masks = torch.arange(2 * 12 * 16).reshape(2, 12, 16) % 251
    images = masks[:, None].float().expand(-1, 3, -1, -1)
    drawn = Augmented(batches_of(images, masks), 8, True, np.random.default_rng(0))
    crops = set()
    for _ in range(20):
        x, y = drawn(np.array([0, 1]))
        assert x.shape == (2, 3, 8, 8)
        assert torch.equal(x[:, 0].long(), y)
        crops.update((int(first[0, 0]), bool(first[0, 0] > first[0, 1])) for first in y)
    assert len(crops) > 20
    assert {flipped for _, flipped in crops} == {False, True}


def test_labels_stay_and_the_same_seed_draws_the_same():
    images, labels = torch.rand(5, 3, 9, 9), torch.arange(5)
    one, other = (Augmented(batches_of(images, labels), 6, True, np.random.default_rng(3))(np.arange(5)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], labels)


def test_the_middle_is_the_middle():
    x, y = torch.arange(2 * 6 * 8).reshape(2, 1, 6, 8), torch.arange(2 * 6 * 8).reshape(2, 6, 8)
    middle, mask = center_crop(x, y, 4)
    assert torch.equal(middle[:, 0], mask)
    assert torch.equal(mask, y[:, 1:5, 2:6])
    assert center_crop(x, y, None) == (x, y)


@pytest.mark.parametrize("task", TASKS)
def test_counts_of_portions_joined_are_the_count_of_all_batches_bit_for_bit(task):
    random = torch.Generator().manual_seed(1)
    size = (8, 8) if task == "segmentation" else ()
    batches = [
        (torch.randn((5, 6, *size), generator=random), torch.randint(6, (5, *size), generator=random)) for _ in range(5)
    ]
    whole, *parts = (TASKS[task].count(6) for _ in range(4))
    for place, batch in enumerate(batches):
        whole.add(*batch)
        parts[place // 2].add(*batch)
    first, *later = (pickle.loads(pickle.dumps(part)) for part in parts)
    for part in later:
        first.join(part)
    assert first.outcome() == whole.outcome()
