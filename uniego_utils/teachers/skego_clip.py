"""Teacher on skeleton-guided crops of the exo video, without training: CLIP ViT-B/16 on each crop, averaged.

Inspired by the description of Sk-Ego (arXiv:2501.05711; UNIEGO, section 3), of which no public code exists.
Its 512 features, the width of CLIP's image embedding, are the only hint at the encoder: all this is inferred.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from uniego_utils.data.manifests import Manifest
from uniego_utils.data.video import sample_times
from uniego_utils.teachers import foundation
from uniego_utils.teachers.batches import Job
from uniego_utils.teachers.skego import Boxes, BoxSettings, crop


@dataclass(frozen=True)
class Settings(BoxSettings, foundation.Settings):
    """Which encoder, what it is shown, and the box's numbers."""

    name: str = "vit_base_patch16_clip_quickgelu_224.openai"  # CLIP was trained with this activation


build = foundation.build
encode = foundation.encode


class Crops(foundation.FrameClips):
    """Crops at the moments that FrameClips takes: item `row` is (T, 3, S, S) uint8."""

    def __init__(self, job: Job, manifest: Manifest):
        super().__init__(job, manifest)
        self.boxes = Boxes(job, manifest)

    def frames(self, row: int) -> Tensor:
        """Squares around head and hands (T, 3, S, S) uint8, already of the input's size."""
        frames = super().frames(row)
        boxes = self.boxes.of(row, *frames.shape[-2:])
        start_s, end_s = self.spans[row]
        times = sample_times(start_s, end_s, self.settings.num_frames, self.span_s)
        rows = torch.from_numpy((times - start_s) / (end_s - start_s) * len(boxes)).long()
        return crop(frames, boxes[rows], self.settings.image_size)


clips = Crops


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    made = foundation.notes(job)
    return made | {"preprocessing": f"crops around head and hands; {made['preprocessing']}"}
