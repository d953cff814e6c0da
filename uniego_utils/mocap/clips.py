"""The embedded benchmark `mocap`: recorded human motions, rendered from the head and from the side.

Fifteen motion-capture recordings drive a person of capsules through furnished rooms. Every clip varies the
subject, the moment and speed of the motion, the room, the light and both cameras, and comes with depth,
skeleton and caption. Where the motions come from: data_manifests/mocap/README.md.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from uniego_utils.cards import VIEWS
from uniego_utils.data.manifests import HIDDEN_LABELS
from uniego_utils.mocap.cameras import ego_camera, exo_camera
from uniego_utils.mocap.files import build_missing, claim, complete_folder, write_mp4
from uniego_utils.mocap.motions import Motion, load_motions
from uniego_utils.mocap.people import Subject, body_capsules, make_subject, perform
from uniego_utils.mocap.render import Camera, render
from uniego_utils.mocap.rooms import FurnishedRoom, make_room
from uniego_utils.mocap.settings import EGO_ONLY, SPLITS, UNLABELLED, MocapSettings, stable_rng
from uniego_utils.runs import write_text

COLUMNS = (
    *("clip_id", "take", "subject", "label", "ego_video", "exo_video", "start_s", "end_s"),
    *("skeleton", "ego_depth", "exo_depth", "caption"),
)
GENERATOR = 1  # raise it when the same settings no longer give the same clips
ACTIONS = {  # what captions call them
    "backflip": ("does a backflip", "flips over backwards in the air", "jumps into a back somersault"),
    "cartwheel": ("does a cartwheel", "wheels sideways over the hands", "turns a cartwheel"),
    "crawl": ("crawls on hands and knees", "crawls across the floor", "moves forwards on all fours"),
    "dance_a": ("dances with swaying steps", "dances, stepping and turning", "performs a swinging dance"),
    "dance_b": ("dances with bouncing arms", "dances on the spot", "performs a lively dance"),
    "getup_facedown": (
        "gets up from lying face down",
        "pushes up from the belly",
        "rises from a prone position",
    ),
    "getup_faceup": (
        "gets up from lying on the back",
        "rises from a supine position",
        "sits up and stands up",
    ),
    "jump": ("jumps forwards", "leaps with both feet", "makes a jump"),
    "kick": ("kicks with one leg", "throws a high kick", "swings a leg in a kick"),
    "punch": ("throws a punch", "punches the air", "strikes out with a fist"),
    "roll": ("rolls over the floor", "does a forward roll", "tumbles over one shoulder"),
    "run": ("runs", "runs across the room", "sprints forwards"),
    "spin": ("spins around", "turns around in circles", "twirls on the spot"),
    "spinkick": ("does a spinning kick", "spins in the air and kicks", "throws a jumping roundhouse kick"),
    "walk": ("walks", "walks forwards", "strolls across the room"),
}


@dataclass(frozen=True)
class Clip:
    """One clip in memory; the dictionaries are by view, "ego" and, where it is rendered, "exo"."""

    pictures: dict[str, np.ndarray]  # (frames, size, size, 3) uint8
    depths: dict[str, np.ndarray]  # (frames, size, size) float32 metres
    cameras: dict[str, Camera]
    joints: np.ndarray  # (frames, 16, 3) metres
    subject: str
    caption: str


def make_clip(
    motions: dict[str, Motion],
    settings: MocapSettings,
    split: str,
    label: str,
    index: int,
    views: tuple[str, ...] = VIEWS,
) -> Clip:
    """Clip `index` of a class in a split; the same whatever else is generated.

    Args:
        views: ego alone, or ego and exo; the ego view is the same either way.
    """
    rng = stable_rng(settings.seed, "clip", split, label, index)
    # Starting at another person for every class keeps person and class unrelated.
    person = (index + list(motions).index(label)) % settings.subjects(split)
    subject = make_subject(settings, split, person)
    furnished = make_room(settings.seed, int(rng.integers(settings.rooms)), settings.texture_contrast)
    brightness = rng.uniform(0.75, 1.15)
    room = replace(furnished.room, gain=brightness)
    performance = perform(motions[label], subject, room, settings, rng)
    cameras = {
        "ego": ego_camera(performance, room, settings, rng),
        "exo": exo_camera(performance, room, settings, rng),
    }
    pictures, depths = {}, {}
    cameras = {view: cameras[view] for view in views}
    for view, camera in cameras.items():
        body = body_capsules(performance, subject, with_head=view == "exo")
        pictures[view], depths[view] = render(
            camera, room, body, performance.shadow_casters, settings.image_noise, rng
        )
    caption = describe(label, subject, furnished, brightness, rng)
    return Clip(pictures, depths, cameras, performance.joints, subject.name, caption)


def describe(
    label: str, subject: Subject, furnished: FurnishedRoom, brightness: float, rng: np.random.Generator
) -> str:
    """A sentence on what the clip shows: the action, the clothes and the room."""
    shirt, trousers = f"{_with_article(subject.shirt)} shirt", f"{subject.trousers} trousers"
    clothes = (shirt, trousers, f"{shirt} and {trousers}")[rng.integers(3)]
    light = "bright " if brightness > 1.02 else "dim " if brightness < 0.86 else ""
    floor, walls = f"{_with_article(furnished.floor)} floor", f"{furnished.walls} walls"
    place = f"a {light}room with " + (floor, walls, f"{walls} and {floor}")[rng.integers(3)]
    action = ACTIONS.get(label, (f"does a {label.replace('_', ' ')}",))
    return f"a person in {clothes} {action[rng.integers(len(action))]} in {place}"


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def relative_inverse_depth(depth: np.ndarray) -> np.ndarray:
    """Depth (frames, n, n) in metres as 8 bit inverse depth, near is white, as a monocular estimator gives.

    Such an estimator knows neither scale nor offset, so each clip is stretched to its own 1st and 99.5th
    percentile.
    """
    inverse = 1 / np.maximum(depth, 0.25)  # metres: a hand before the eyes must not blacken the room
    low, high = np.percentile(inverse[:, ::4, ::4], (1, 99.5))
    return np.clip((inverse - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def write_clip(clip: Clip, folder: Path, settings: MocapSettings) -> None:
    """Write a clip's files and what its manifest row needs; `folder` appears when all are complete."""
    with complete_folder(folder) as unfinished:
        about = {"subject": clip.subject, "caption": clip.caption}
        (unfinished / "clip.json").write_text(json.dumps(about))
        for view, pictures in clip.pictures.items():
            write_mp4(unfinished / f"{view}.mp4", pictures, settings.fps, settings.crf)
        if "exo" not in clip.cameras:
            return  # depth, skeleton and caption are for teachers
        skeleton = {"joints_3d": clip.joints.astype(np.float32)}
        for view, camera in clip.cameras.items():
            grey = np.repeat(relative_inverse_depth(clip.depths[view])[..., None], 3, -1)
            write_mp4(unfinished / f"{view}_depth.mp4", grey, settings.fps, settings.crf)
            pixels, depth = camera.project(clip.joints)
            inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels < camera.size).all(-1)
            skeleton[f"{view}_joints_2d"] = pixels.astype(np.float32)
            skeleton[f"{view}_visible"] = inside.astype(np.uint8)
        save_file(
            {key: np.ascontiguousarray(value) for key, value in skeleton.items()},
            unfinished / "skeleton.safetensors",
        )


def build(
    root: Path,
    motions: Path,
    settings: MocapSettings,
    workers: int = 2,
    progress: bool = True,
    manifests: Path | None = None,
) -> dict[str, Path]:
    """Generate what is missing below `root` and return the manifest of every split.

    Clips land in `clips/<split>/<clip_id>/`, settings in `settings.json`, manifests in `<split>.csv`. An
    interrupted build resumes when called again: a clip's folder exists only once it is complete, and the
    manifests come last.

    Args:
        root: folder to fill; made if need be.
        motions: the recordings, data_manifests/mocap/humanoid_motions.npz.
        settings: what to generate.
        workers: processes; 1 stays in this one.
        progress: show a bar.
        manifests: folder of the manifests; `root` unless it is given.

    Raises:
        ValueError: `root` holds clips of other settings or other motions, or `workers` is not positive.
        FileNotFoundError: there is no file `motions`.
    """
    root, motions = Path(root), Path(motions)
    labels = list(load_motions(motions))
    claim(root, motions, asdict(settings) | {"generator": GENERATOR})
    clips = {split: _list_clips(split, labels, settings) for split in SPLITS}
    tasks = [
        (root / "clips" / split / clip_id, motions, settings, split, *chosen)
        for split, listed in clips.items()
        for clip_id, chosen in listed.items()
    ]
    build_missing(_build_clip, tasks, workers, progress, "clip")
    folder = Path(manifests or root)
    return {split: _write_manifest(root, folder, split, clips[split], settings) for split in SPLITS}


def _list_clips(split: str, labels: list[str], settings: MocapSettings) -> dict[str, tuple[str, int]]:
    """Clip id -> (label, number within its class), in manifest order.

    Ids and order of the split `unlabelled` say nothing about labels.
    """
    clips = [(label, index) for index in range(settings.clips_per_class(split)) for label in labels]
    if split != UNLABELLED:
        return {f"{split}_{label}_{index:03d}": (label, index) for label, index in clips}
    order = stable_rng(settings.seed, "order", split).permutation(len(clips))
    return {f"{split}_{number:04d}": clips[place] for number, place in enumerate(order)}


def _build_clip(
    folder: Path, motions: Path, settings: MocapSettings, split: str, label: str, index: int
) -> None:
    clip = make_clip(load_motions(motions), settings, split, label, index, views_of(split))
    write_clip(clip, folder, settings)


def views_of(split: str) -> tuple[str, ...]:
    """The views that are rendered of a split."""
    return VIEWS[:1] if split in EGO_ONLY else VIEWS


def _write_manifest(
    root: Path, manifests: Path, split: str, clips: dict[str, tuple[str, int]], settings: MocapSettings
) -> Path:
    """Write `<split>.csv` into `manifests`: a line a clip, in the order of `clips`, its paths below `root`.

    The labels of the split `unlabelled` go into a file of their own.
    """
    lines = []
    for clip_id, (label, _) in clips.items():
        folder = root / "clips" / split / clip_id
        about = json.loads((folder / "clip.json").read_text())
        place = folder.relative_to(root).as_posix()
        line = {
            "clip_id": clip_id,
            "take": clip_id,
            "subject": about["subject"],
            "label": label,
            "ego_video": f"{place}/ego.mp4",
            "start_s": 0.0,
            "end_s": round(settings.seconds, 6),
        }
        if split not in EGO_ONLY:
            line |= {
                "exo_video": f"{place}/exo.mp4",
                "skeleton": f"{place}/skeleton.safetensors",
                "ego_depth": f"{place}/ego_depth.mp4",
                "exo_depth": f"{place}/exo_depth.mp4",
                "caption": about["caption"],
            }
        lines.append(line)
    path, table = manifests / f"{split}.csv", pd.DataFrame(lines, columns=COLUMNS)
    if split == UNLABELLED:
        hidden = table[["clip_id", "label"]].to_csv(index=False, lineterminator="\n")
        write_text(manifests / HIDDEN_LABELS.format(split=split), hidden)
        table = table.assign(label="", caption="")
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    return path
