"""What decides the embedded benchmark: its settings, and the random numbers drawn from their seed."""

import hashlib
from dataclasses import dataclass

import numpy as np

UNLABELLED = "unlabelled"  # pairs whose labels go into a file of their own
SPLITS = ("pool", "train", "val", "test", UNLABELLED)
EGO_ONLY = ("test",)  # splits that no teacher sees: the head camera alone is rendered
VIDEO_SPLITS = ("train", "val", "test")  # of the untrimmed videos


@dataclass(frozen=True)
class MocapSettings:
    """Everything that decides what the clips look like; equal settings give equal pictures."""

    pool: int = 96  # clips per class of the split that teachers are fitted on (1,440 clips)
    train: int = 30  # clips per class
    val: int = 30
    test: int = 240
    unlabelled: int = 60
    image_size: int = 112  # pixels, side of the square pictures: a multiple of 16
    frames: int = 16  # per clip
    fps: int = 12  # frames per second; with 16 frames a clip lasts 1.33 s
    seed: int = 0  # of everything random
    pool_subjects: int = 32  # people; no person is in two splits
    train_subjects: int = 16
    val_subjects: int = 8
    test_subjects: int = 32
    unlabelled_subjects: int = 32
    rooms: int = 12  # shared by all splits
    texture_contrast: float = 0.5  # of the patterns on floors and walls; 0 is plain
    joint_noise: float = 0.12  # radians; slow random bending of every joint
    subject_style: float = 0.06  # radians; standard deviation of a person's habitual bending of every joint
    speed_low: float = 0.8  # slowest and fastest replay, times the person's tempo
    speed_high: float = 1.25
    image_noise: float = 0.01  # standard deviation of the sensor noise, in units of full white
    ego_fov: float = 75.0  # degrees, +- 6 per clip
    ego_pitch: float = -25.0  # degrees; how far the head camera looks down, +- ego_jitter per clip
    ego_jitter: float = 6.0  # degrees; largest tilt of the head camera about each axis
    exo_swing: float = 50.0  # degrees; how far the side camera strays from looking at the person side-on
    crf: int = 20  # constant rate factor of the h264 files: higher is smaller and worse

    def __post_init__(self):
        for name in (*SPLITS, *(f"{split}_subjects" for split in SPLITS), "rooms", "fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"MocapSettings.{name} is {getattr(self, name)}; it must be at least 1")
        # At 40 pixels, the last columns of equal pictures came out differently from run to run.
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(
                f"MocapSettings.image_size is {self.image_size}; take a multiple of 16: other sizes are not "
                "reproducible as h264"
            )
        if self.frames < 2:
            raise ValueError(f"MocapSettings.frames is {self.frames}; a clip needs at least 2")

    @property
    def seconds(self) -> float:
        """Duration of a clip."""
        return self.frames / self.fps

    def clips_per_class(self, split: str) -> int:
        """Number of clips of every class. Raises ValueError for an unknown split."""
        return getattr(self, check_split(split))

    def subjects(self, split: str) -> int:
        """Number of people. Raises ValueError for an unknown split."""
        return getattr(self, f"{check_split(split)}_subjects")


@dataclass(frozen=True)
class UntrimmedSettings:
    """What decides the untrimmed videos, beside `MocapSettings` (people, rooms, pictures, cameras)."""

    train: int = 60  # videos
    val: int = 20
    test: int = 40
    shortest_s: float = 20.0
    longest_s: float = 60.0
    shortness: float = 4.5  # durations are shortest + (longest - shortest) Beta(1, this): a mean of 27 s
    bout_low_s: float = 1.5  # duration of an action whose recording may end anywhere
    bout_high_s: float = 4.0
    idle_share: float = 0.6  # of the gaps between actions in which the person stands idle
    idle_low_s: float = 0.6
    idle_high_s: float = 2.0
    blend_low_s: float = 0.4  # of a transition between upright poses; lying down takes longer
    blend_high_s: float = 0.9
    kin: float = 3.0  # how much likelier an action of the same family follows
    exo_size: int = 160  # pixels, side of the exo pictures, which hold a whole scene: a multiple of 16

    def __post_init__(self):
        for split in VIDEO_SPLITS:
            if getattr(self, split) < 1:
                raise ValueError(f"UntrimmedSettings.{split} is {getattr(self, split)}; at least 1 video")
        for low, high in (("shortest_s", "longest_s"), ("bout_low_s", "bout_high_s")):
            if not 0 < getattr(self, low) < getattr(self, high):
                raise ValueError(f"UntrimmedSettings: {low} should be above 0 and below {high}")
        if self.exo_size < 16 or self.exo_size % 16:  # see MocapSettings
            raise ValueError(f"UntrimmedSettings.exo_size is {self.exo_size}; take a multiple of 16")


def check_split(split: str) -> str:
    """The split, if it is one of `SPLITS`. Raises ValueError otherwise."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    return split


def stable_rng(*key) -> np.random.Generator:
    """A generator seeded by the words and numbers in `key`: the same on every machine and Python version."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
