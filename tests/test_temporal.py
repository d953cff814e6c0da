"""Temporal heads: what they may see, what they minimise, that they learn what one step cannot tell."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from uniego_utils.cards import HeadConfig
from uniego_utils.segmentation.heads import (
    HEADS,
    BiMamba,
    Dilated,
    Scale,
    TemporalHead,
    predict_head,
    single_label_loss,
    train_head,
)
from uniego_utils.segmentation.metrics import segment_metrics

CPU = torch.device("cpu")
SMALL = HeadConfig(epochs=2, batch_size=2, widths=(8, 12, 16), maps=8)
METRICS = ("F1@10", "F1@25", "F1@50", "edit", "accuracy")


def drawn(*lengths, width=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, width, generator=generator) for length in lengths]


def numbers(*lengths, classes=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(classes, (length,), generator=generator) for length in lengths]


def model(head, inputs=5, classes=3, config=SMALL):
    torch.manual_seed(0)
    return TemporalHead(inputs, classes, 0, head, config).eval()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_what_is_behind_a_videos_end_changes_nothing(head, length):
    (video,) = drawn(length)
    padded = torch.cat([video, torch.full((11, 5), 50.0)])[None]
    mask = torch.arange(length + 11)[None] < length
    made = model(head)
    outputs, term = made(padded, mask)
    alone, term_alone = made(video[None], mask[:, :length])
    assert len(outputs) == len(made.head.output_weights) == 4
    for output, own in zip(outputs, alone, strict=True):
        assert own.shape == (1, length, 3)
        torch.testing.assert_close(output[:, :length], own)
    torch.testing.assert_close(term, term_alone)


@pytest.mark.parametrize("head", HEADS)
def test_a_videos_labels_do_not_depend_on_the_batch(head):
    videos = drawn(30, 7, 18, 1, 25)
    made = model(head)
    together = predict_head(made, videos)
    assert [len(row) for row in together] == [30, 7, 18, 1, 25]
    for video, row in zip(videos, together, strict=True):
        assert torch.equal(predict_head(made, [video])[0], row)


def test_turned_around_it_is_the_other_direction():
    torch.manual_seed(0)
    block, turned = BiMamba(6), BiMamba(6)
    own = block.state_dict()
    names = {"ahead": "back", "back": "ahead"}
    turned.load_state_dict(
        {
            ".".join([names.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]]): tensor
            for name, tensor in own.items()
        }
    )
    tokens, mask = torch.randn(2, 15, 6), torch.ones(2, 15, 1)
    expected, C = block(tokens, mask)
    found, C_turned = turned(tokens.flip(1), mask)
    torch.testing.assert_close(found.flip(1), expected)
    torch.testing.assert_close(torch.cat(C_turned.flip(1).chunk(2, -1)[::-1], -1), C)
    assert not torch.allclose(block(tokens.flip(1), mask)[0].flip(1), expected)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_scale_sees_every_kth_token(dilation):
    torch.manual_seed(0)
    scale = Scale(4, 6, dilation)
    tokens, mask = torch.randn(1, 12, 4), torch.ones(1, 12, 1)
    changed = tokens.clone()
    changed[:, 4] += 1
    differs = (scale(tokens, mask)[0] != scale(changed, mask)[0]).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [t for t in range(12) if (t - 4) % dilation == 0]


def test_disagreement_is_of_what_blocks_read():
    torch.manual_seed(0)
    scale = Scale(4, 6, 3)
    tokens, mask = torch.randn(1, 12, 4), torch.ones(1, 12, 1)
    embedded = scale.embed(tokens)
    read = [block(embedded[:, i::3], mask[:, i::3])[1] for i, block in enumerate(scale.blocks)]
    C = [part[0].detach().numpy() for part in read]
    apart = [
        1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        for i in range(3)
        for j in range(i)
        for a, b in zip(C[i], C[j], strict=True)
    ]
    assert scale(tokens, mask)[1].item() == pytest.approx(np.mean(apart), rel=1e-5)
    twins = Scale(4, 6, 2)
    twins.blocks[1] = twins.blocks[0]
    same = tokens[:, :1].expand(1, 2, 4)
    assert twins(same, mask[:, :2])[1].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dilations", [(2,), (1, 4)])
def test_a_layer_looks_as_far_as_its_dilations(dilations):
    torch.manual_seed(0)
    layer = Dilated(6, dilations, 0.0)
    x, mask = torch.randn(1, 6, 21), torch.ones(1, 1, 21)
    changed = x.clone()
    changed[..., 10] += 1
    differs = (layer(x, mask) != layer(changed, mask)).any(1)[0]
    around = [10 + side * dilation for dilation in dilations for side in (-1, 0, 1)]
    assert set(differs.nonzero().flatten().tolist()) == set(around)


def slow_single(logits, labels, lengths):
    """Step by step, class by class."""
    entropy, jumps = [], []
    for own, truth, length in zip(logits, labels, lengths, strict=True):
        rows = [[math.log(math.exp(v) / sum(map(math.exp, row))) for v in row] for row in own[:length]]
        entropy += [-row[label] for row, label in zip(rows, truth, strict=False)]
        for before, now in zip(rows, rows[1:], strict=False):
            jumps += [min(abs(b - a), 4.0) ** 2 for a, b in zip(before, now, strict=True)]
    return np.mean(entropy) + 0.15 * np.mean(jumps)


def test_single_label_loss_equals_its_definition():
    logits = 5 * torch.stack(drawn(8, 8, width=3))
    labels = torch.stack(numbers(8, 8))
    mask = torch.arange(8) < torch.tensor([[8], [5]])
    expected = slow_single(logits.tolist(), labels.tolist(), (8, 5))
    assert single_label_loss(logits, labels, mask).item() == pytest.approx(expected, rel=1e-5)
    one = single_label_loss(logits[:, :1], labels[:, :1], mask[:, :1])
    assert one.item() == pytest.approx(F.cross_entropy(logits[:, 0], labels[:, 0]).item(), rel=1e-5)


def test_the_earlier_step_is_a_constant_to_the_loss():
    """The gradient of a jump reaches its later step alone."""
    logits = torch.stack(drawn(2, width=3)).requires_grad_()
    labels, mask = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)
    (found,) = torch.autograd.grad(single_label_loss(logits, labels, mask), logits)
    (entropy,) = torch.autograd.grad(F.cross_entropy(logits[0], labels[0]), logits)
    torch.testing.assert_close(found[0, 0], entropy[0, 0])
    assert not torch.allclose(found[0, 1], entropy[0, 1])


@pytest.mark.parametrize("head", HEADS)
def test_losses_sum_over_outputs(head):
    features, labels = torch.stack(drawn(9, 9)), torch.stack(numbers(9, 9))
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    weights = {"ms_temba": (0.3, 0.3, 0.3, 1.0), "ms_tcn": (1.0, 1.0, 1.0, 1.0)}[head]
    made = model(head)
    outputs, _ = made(features, mask)
    expected = sum(
        weight * slow_single(output.tolist(), labels.tolist(), (9, 4))
        for weight, output in zip(weights, outputs, strict=True)
    )
    assert made.loss(features, labels, mask).item() == pytest.approx(expected, rel=1e-4)

    made = model(head, config=HeadConfig(loss="multi", widths=(8, 12, 16), maps=8))
    outputs, term = made(features, mask)
    truth = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])[(labels - 1).numpy()]  # class 0 is background: none
    expected = 100 * term.item()
    for weight, output in zip(weights, outputs, strict=True):
        p = 1 / (1 + np.exp(-output.detach().double().numpy()))
        losses = -(truth * np.log(p) + (1 - truth) * np.log(1 - p))
        expected += weight * losses[mask.numpy()].mean()
    assert made.loss(features, labels, mask).item() == pytest.approx(expected, rel=1e-4)
    assert (term.item() > 0) == (head == "ms_temba")


def test_with_several_labels_background_is_what_no_action_beats():
    made = model("ms_tcn", config=HeadConfig(loss="multi", maps=8))
    logits = torch.tensor([[9.0, 0.5, 2.0], [9.0, -0.5, -0.1], [-9.0, 0.1, -3.0]])
    assert made.decide(logits).tolist() == [2, 0, 1]
    assert model("ms_tcn").decide(logits).tolist() == [0, 0, 1]


def remembered(videos, seed):
    """Segments whose class only their first step tells; in between, noise."""
    random = np.random.default_rng(seed)
    features, labels = [], []
    for _ in range(videos):
        rows, names = [], []
        for _ in range(random.integers(3, 6)):
            label, length = random.integers(1, 3), random.integers(3, 6)
            part = 0.3 * random.normal(size=(length, 4))
            part[0, label] += 3
            rest = 0.3 * random.normal(size=(1, 4))
            rest[:, 3] += 2
            rows += [part, rest]
            names += [np.full(length, label), np.zeros(1, int)]
        features.append(torch.from_numpy(np.concatenate(rows)).float())
        labels.append(torch.from_numpy(np.concatenate(names)))
    return features, labels


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", ["single", "multi"])
def test_heads_remember_what_one_step_does_not_tell(head, loss):
    config = HeadConfig(epochs=8, batch_size=3, lr=2e-2, widths=(8, 12, 16), maps=16, dropout=0.0, loss=loss)
    test, truth = remembered(12, 2)
    trained, history = train_head(*remembered(30, 0), *remembered(4, 1), 3, head, config, 0, CPU, 0)
    scores = segment_metrics(predict_head(trained, test), truth, 0)
    assert scores["accuracy"] > 85  # about 70 without memory, which has to guess three of five steps
    assert history[-1]["loss"] < history[0]["loss"]
    means = [sum(record[name] for name in METRICS) for record in history]
    val = segment_metrics(predict_head(trained, remembered(4, 1)[0]), remembered(4, 1)[1], 0)
    assert sum(val.values()) == pytest.approx(max(means)), "the best epoch is the one that is kept"
    assert [record["epoch"] for record in history] == list(range(1, 9))


@pytest.mark.parametrize("head", HEADS)
def test_a_seed_decides_everything(head):
    def weights(seed):
        trained, _ = train_head(*remembered(5, 0), *remembered(2, 1), 3, head, SMALL, seed, CPU, 0)
        return torch.cat([tensor.flatten() for tensor in trained.state_dict().values()])

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("head", HEADS)
def test_scale_and_place_of_features_do_not_matter(head):
    (train, labels), (val, truth) = remembered(5, 0), remembered(2, 1)
    moved = [[100 * video + 7 for video in videos] for videos in (train, val)]
    found = [train_head(a, labels, b, truth, 3, head, SMALL, 0, CPU, 0)[1] for a, b in ((train, val), moved)]
    assert found[0][0]["loss"] == pytest.approx(found[1][0]["loss"], rel=1e-3)


def train(features=None, labels=None, val=None, val_labels=None, head="ms_tcn", background=0, **changes):
    config = HeadConfig(**{"epochs": 1, "maps": 8} | changes)
    given = [
        drawn(8, 9) if features is None else features,
        numbers(8, 9) if labels is None else labels,
        drawn(7) if val is None else val,
        numbers(7) if val_labels is None else val_labels,
    ]
    return train_head(*given, 3, head, config, 0, CPU, background)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": [], "labels": []}, "train: features of 0 videos, labels of 0"),
        ({"labels": numbers(8)}, "train: features of 2 videos, labels of 1"),
        ({"labels": numbers(8, 10)}, r"train video 1: expected features \(steps, 5\) and a label a step"),
        ({"val": drawn(7, width=4)}, r"val video 0: expected features \(steps, 5\)"),
        ({"features": [*drawn(8), torch.full((9, 5), math.nan)]}, "train video 1: features that are not fin"),
        ({"val_labels": numbers(7, classes=9)}, "val video 0: labels that are no class numbers below 3"),
        ({"labels": [row.float() for row in numbers(8, 9)]}, "train video 0: labels that are no class"),
        ({"val_labels": [torch.zeros(7, dtype=torch.int64)]}, "val: no video has an action"),
        ({"background": 3}, "background is number 3 of 3 classes"),
        ({"head": "lstm"}, "unknown temporal head 'lstm'; choose one of ms_temba, ms_tcn"),
        ({"epochs": 0}, "a head needs epochs and videos a batch, not 0 and 1"),
        ({"loss": "mse"}, "unknown loss 'mse'; choose single or multi"),
        ({"lr": 1e30, "epochs": 3}, "the loss of ms_tcn is (nan|inf) in epoch [12]; lower its lr"),
    ],
)
def test_unusable_input_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        train(**wrong)


def test_videos_without_an_action_beside_others_and_of_one_step_are_fine():
    labels = [torch.zeros(8, dtype=torch.int64), torch.tensor([1])]
    _, history = train(drawn(8, 1), labels, batch_size=1)
    assert math.isfinite(history[0]["loss"])
