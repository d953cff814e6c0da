"""Pictures of a clip at some of its moments, and the skeleton that is drawn into them."""

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from uniego_utils.data.manifests import Manifest
from uniego_utils.data.preparation import skeleton_columns
from uniego_utils.data.skeletons import Layout, layout_of, read_skeleton
from uniego_utils.data.video import frame_indices, open_clip, sample_times
from uniego_utils.experiment import Experiment
from uniego_utils.runs import read_tensors


def joints_in_picture(experiment: Experiment, manifest: Manifest, row: int) -> tuple[Tensor, Layout] | None:
    """Joints (T, V, 2) of a clip's first person in pixels of the exo picture, and their layout; None where no
    skeleton of the clip is in pixels."""
    for column, name in skeleton_columns(experiment).items():
        if column in manifest.rows and pd.notna(manifest.rows[column][row]):
            path = manifest.path(row, column)
            if "exo_joints_2d" in read_tensors(path):
                return read_skeleton(path, "exo_joints_2d", layout_of(name)).joints[0], layout_of(name)
    return None


def read_moments(manifest: Manifest, row: int, column: str, count: int = 8) -> np.ndarray:
    """`count` pictures over a clip from one of its videos, e.g. `ego_video`: (count, H, W, 3) uint8."""
    video = open_clip(manifest, row, column.partition("_")[0], column)
    times = sample_times(*manifest.rows.loc[row, ["start_s", "end_s"]], count)
    return video.read(frame_indices(times, video.fps, video.frames))


def middle_picture(manifest: Manifest, row: int, view: str) -> np.ndarray:
    """The picture in the middle of a clip, (H, W, 3) uint8."""
    return read_moments(manifest, row, f"{view}_video", 1)[0]


def clip_strips(experiment: Experiment, manifest: Manifest, row: int, count: int = 8) -> dict[str, Any]:
    """All that there is to see of a clip, as `pictures.plot_strips` takes it: its views, depths, and the
    skeleton drawn into the exo view, each where the manifest has it.

    Returns:
        `strips`: what it is -> (count, H, W, 3); `overlays`: the same -> joints (count, V, 2); `bones`.
    """
    columns = [f"{view}_video" for view in experiment.card.views]
    columns += [
        name for name in manifest.rows if name.endswith("_depth") and pd.notna(manifest.rows[name][row])
    ]
    strips = {
        name.removesuffix("_video").replace("_", " "): read_moments(manifest, row, name, count)
        for name in columns
    }
    overlays, bones = {}, ()
    if "exo" in strips and (skeleton := joints_in_picture(experiment, manifest, row)):
        joints, layout = skeleton
        strips["exo + skeleton"], bones = strips["exo"], layout.bones
        overlays["exo + skeleton"] = joints[(2 * np.arange(count) + 1) * len(joints) // (2 * count)].numpy()
    return {"strips": strips, "overlays": overlays, "bones": bones}
