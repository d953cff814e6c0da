"""Small trees in the official formats of the datasets, with real videos and pictures.

Each `build_*` writes three classes whose moving gratings differ, seen from the head and from outside, and
returns the classes' names. Takes last two seconds: three actions of 0.6 s at 30 frames a second.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pandas as pd
from PIL import Image

FPS, SECONDS = 30, 2.0
WIDTH, HEIGHT = 128, 96  # pixels; at widths that are no multiple of 64 decord pads rows
FIRST, LENGTH = 2, 18  # frames: the first action's start, and every action's length
FITNESS_CLASSES = ("Kneeling pushing-ups", "Push-ups", "Kneeling Torso Twist")
VERBS = ("pick up", "put down", "inspect")
STEPS = {20: "Cut the cucumber", 31: "Stir the pan", 47: "Remove the wheel"}  # gaps between the ids
EGO_VIEWS = ("HMC_84358933_mono10bit", "HMC_21179183_mono10bit")  # e4 under its two serial numbers


def spans(count: int = 3) -> list[tuple[int, int]]:
    """First frame and the frame after the last of a take's actions, counted from 0."""
    return [(FIRST + LENGTH * number, FIRST + LENGTH * (number + 1)) for number in range(count)]


def gratings(seed: int, seconds: float = SECONDS, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """(frames, H, W, 3) uint8: in each action's frames its class's grating moves; seeds change hue, noise."""
    random = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    tint = random.uniform(0.6, 1.0, 3)
    pictures = []
    for frame in range(round(seconds * FPS)):
        kind = min(max(frame - FIRST, 0) // LENGTH, 2)
        angle = kind * np.pi / 3 + 0.2
        wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * (0.15 + 0.1 * kind) + 0.3 * frame)
        grey = 128 + 90 * wave + random.normal(0, 6, wave.shape)
        pictures.append(np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8))
    return np.stack(pictures)


def write_video(path: Path, pictures: Iterable[np.ndarray], fps: int = FPS, rotation: int = 0) -> None:
    """Write an mp4 whose index stands first; `rotation`: degrees counter-clockwise, for its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = np.asarray(pictures)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": "10"})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def halve(path: Path) -> None:
    """Cut a file in half, as a broken download does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_pictures(folder: Path, pictures: Iterable[np.ndarray]) -> None:
    """Write a folder of JPGs numbered from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures, start=1):
        Image.fromarray(picture).save(folder / f"frame_{number:010d}.jpg", quality=80)


def write_json(path: Path, content: dict | list) -> None:
    """Write an annotation file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def build_fitness(root: Path, train: int = 4, test: int = 1) -> tuple[str, ...]:
    """EgoExo-Fitness: records of one sequence, three ego views, the middle exo view or only the left one.

    The second record lacks exo_m and is paired with exo_l, whose pictures lie on their side.
    """
    records, actions, database = [], {}, {}
    for number in range(train + test):
        record = f"Rec{number:03d}"
        sequence = f"b2-5-2-{number + 1}" if number < train else f"5-2-{number - train + 1}"
        views = ["ego_l", "ego_m", "ego_r", "exo_l" if number == 1 else "exo_m"]
        frames = {}
        for place, view in enumerate(views):
            pictures = gratings(100 * number + place)
            if view == "exo_l":
                pictures = np.rot90(pictures, -1, (1, 2))  # upright after PIL's rotate(90), counter-clockwise
            frames[view] = {"path": f"frames_open/{record}/{view}", "num_frames": len(pictures)}
            write_pictures(root / frames[view]["path"], pictures)
            database[f"{record}_{sequence}_{view}"] = {
                "subset": "train" if number < train else "test",
                "view": view,
                "seq_st": 1,
                "seq_ed": len(pictures),
                "annotations": [],
            }
        records.append({"record_id": record, "views": views, "frames": frames, "num_views": len(views)})
        actions[record] = {
            "num_actions": 3,
            "action_info": [[kind + 1, start + 1, end] for kind, (start, end) in enumerate(spans())],
        }
    index = {record["record_id"]: number for number, record in enumerate(records)}
    write_json(root / "meta_records.json", {"records": records, "record_index": index})
    write_json(root / "action_level_annotations.json", actions)
    substeps = {"classes": list(FITNESS_CLASSES), "database": database}
    write_json(root / "substep_level_annotations.json", substeps)
    return FITNESS_CLASSES


def sequence_name(number: int) -> str:
    """Name of the Assembly101 recording `number`."""
    return f"nusar-2021_action_both_{9011 + number}-a01_{9011 + number}_user_id_2021-02-01_15372{number}"


def build_assembly(root: Path, train: int = 9, test: int = 3) -> tuple[str, ...]:
    """Assembly101: recordings from e4 (grey) and v3, rows of a third view; hand poses at 60 a second."""
    rows = {"train": [], "validation": []}
    listed, coarse = [], root / "coarse-annotations"
    (coarse / "coarse_splits").mkdir(parents=True, exist_ok=True)
    (coarse / "coarse_labels").mkdir(exist_ok=True)
    halves = {(split, half): [] for split in ("train", "val") for half in ("assembly", "disassembly")}
    for number in range(train + test):
        split = "train" if number < train else "validation"
        sequence, ego = sequence_name(number), EGO_VIEWS[number % 2]
        folder = root / "recordings" / sequence
        pictures = gratings(100 * number).mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
        write_video(folder / f"{ego}.mp4", pictures)
        write_video(folder / "C10118_rgb.mp4", gratings(100 * number + 1))
        for kind, (start, end) in enumerate(spans()):
            for view in (ego, "C10118_rgb", "C10119_rgb"):
                rows[split].append(_fine_row(len(rows[split]), f"{sequence}/{view}.mp4", start, end, kind))
        write_json(root / "AssemblyPoses/landmarks3D" / f"{sequence}.json", _hand_poses(number))
        video = f"assembly_{sequence}"
        listed += [f"{video}/{ego}.mp4", f"{video}/C10118_rgb.mp4"]
        lines = "".join(
            f"{start:09d}\t{end:09d}\tattach wheel {i}\n" for i, (start, end) in enumerate(spans(2))
        )
        (coarse / "coarse_labels" / f"{video}.txt").write_text(lines)
        halves[split[:5] if split == "train" else "val", "assembly"].append(
            f"{video}.txt\tshared\ta01\tfire truck"
        )
    for (split, half), lines in halves.items():
        text = "".join(f"{line}\n" for line in lines)
        (coarse / "coarse_splits" / f"{split}_coarse_{half}.txt").write_text(text)
    (coarse / "coarse_seq_views.txt").write_text("\n".join(listed) + "\n")
    (root / "fine-grained-annotations").mkdir(exist_ok=True)
    for split, table in rows.items():
        pd.DataFrame(table).to_csv(root / "fine-grained-annotations" / f"{split}.csv", index=False)
    return VERBS


def _fine_row(number: int, video: str, start: int, end: int, kind: int) -> dict:
    return {
        "id": number,
        "video": video,
        "start_frame": start,
        "end_frame": end,
        "action_id": kind,
        "verb_id": kind,
        "noun_id": 0,
        "action_cls": f"{VERBS[kind]} wheel",
        "verb_cls": VERBS[kind],
        "noun_cls": "wheel",
        "toy_id": "a01",
        "toy_name": "fire truck",
        "is_shared": 1,
        "is_RGB": 0,
    }


def _hand_poses(seed: int) -> dict:
    """Frame number -> hand -> 21 points in millimetres; hands move in a way that tells the action."""
    random = np.random.default_rng(seed)
    shape = random.normal(0, 30, (2, 21, 3)) + [[[-100, 0, 400]], [[100, 0, 400]]]
    poses = {}
    for number in range(round(SECONDS * 2 * FPS)):
        kind = min(max(number // 2 - FIRST, 0) // LENGTH, 2)
        moved = shape + 40 * np.sin(number / (4 + 6 * kind)) * np.eye(3)[kind]
        poses[str(number)] = {str(hand): moved[hand].round(3).tolist() for hand in range(2)}
    return poses


def build_egoexo4d(root: Path, train: int = 9, test: int = 3) -> tuple[str, ...]:
    """Ego-Exo4D: takes with an Aria rgb stream and two exo cameras, of which cam02 is on disk.

    The second take has no best_exo; atomic descriptions name cam02 for it, before its first step cam01.
    """
    takes, keysteps, described = [], {"train": {}, "val": {}}, {"train": {}, "val": {}}
    for number in range(train + test):
        split = "train" if number < train else "val"
        uid, name = f"uid-{number:04d}", f"cmu_bike{number:02d}_{number}"
        streams = {
            "aria01": {"et": "aria01_et", "slam-left": "aria01_1201-1", "rgb": "aria01_214-1"},
            "cam01": {"0": "cam01"},
            "cam02": {"0": "cam02"},
        }
        takes.append(
            {
                "take_uid": uid,
                "take_name": name,
                "root_dir": f"takes/{name}",
                "participant_uid": 500 + number,
                "best_exo": None if number == 1 else "cam02",
                "frame_aligned_videos": {
                    camera: {
                        stream: {"relative_path": f"frame_aligned_videos/{file}.mp4"}
                        for stream, file in files.items()
                    }
                    for camera, files in streams.items()
                },
            }
        )
        folder = root / "takes" / name / "frame_aligned_videos/downscaled/448"
        write_video(folder / "aria01_214-1.mp4", gratings(100 * number, size=(HEIGHT, HEIGHT)))
        write_video(folder / "cam02.mp4", gratings(100 * number + 1))
        keysteps[split][uid] = {
            "take_name": name,
            "scenario": "Bike repair",
            "segments": [_step(step, *span) for step, span in zip(STEPS, spans(), strict=True)],
        }
        described[split][uid] = [
            {
                "descriptions": [
                    {"timestamp": 0.1, "text": "C looks around.", "best_exo": {"cam_id": "cam01"}},
                    {"timestamp": 0.5, "text": "C cuts it.", "best_exo": {"cam_id": "cam02"}},
                    {"timestamp": 0.9, "text": "C stirs.", "best_exo": {"cam_id": "cam02"}},
                    {"timestamp": 1.5, "text": "C pulls.", "best_exo": {"cam_id": "cam02"}},
                    {"timestamp": 0.6, "text": "C waits.", "best_exo": {"cam_id": "cam02"}},
                    {"timestamp": 1.6, "text": "C waits.", "best_exo": None},
                ]
            }
        ]
    write_json(root / "takes.json", takes)
    for split in keysteps:
        write_json(root / f"annotations/keystep_{split}.json", {"annotations": keysteps[split]})
        write_json(root / f"annotations/atomic_descriptions_{split}.json", {"annotations": described[split]})
    mapping = pd.DataFrame(
        {"step_unique_id": list(STEPS), "step_name": list(STEPS.values()), "label_id": range(3)}
    )
    (root / "annotations/keystep_benchmark").mkdir(exist_ok=True)
    mapping.to_csv(root / "annotations/keystep_benchmark/label_mapping.csv", index=False)
    return tuple(STEPS.values())


def _step(step: int, start: int, end: int) -> dict:
    return {
        "start_time": start / FPS,
        "end_time": end / FPS,
        "step_id": step,
        "step_unique_id": step,
        "step_name": STEPS[step],
        "step_description": f"{STEPS[step]} carefully",
        "is_essential": True,
    }


def build_folder(root: Path, subjects: int = 12, exo: bool = True) -> tuple[str, ...]:
    """Own videos: one per person, three clips in each, listed in labels.csv."""
    rows = []
    for number in range(subjects):
        names = {"ego_video": f"head/{number:02d}.mp4"} | (
            {"exo_video": f"room/{number:02d}.mp4"} if exo else {}
        )
        for place, name in enumerate(names.values()):
            write_video(root / name, gratings(100 * number + place))
        for label, (start, end) in zip("abc", spans(), strict=True):
            times = {"start_s": start / FPS, "end_s": end / FPS}
            rows.append({**names, "label": label, **times, "subject": f"person {number}"})
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    return ("a", "b", "c")
