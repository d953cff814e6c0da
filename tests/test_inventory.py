"""Looking at videos on disk: lengths, rates, turned pictures, every kind of damage, and the cache."""

import os
import shutil
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pytest
from trees import FPS, HEIGHT, WIDTH, gratings, halve, write_pictures, write_video

from uniego_utils.data.inventory import COLUMNS, inspect_videos
from uniego_utils.data.video import open_video


def look(root, *paths, **options):
    return inspect_videos(paths, root, root / "cache.csv", workers=1, progress=False, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A whole video, damaged ones, and folders of pictures."""
    root = tmp_path_factory.mktemp("files")
    pictures = gratings(0)
    write_video(root / "whole.mp4", pictures)
    for name in ("half", "text", "moov"):
        shutil.copy(root / "whole.mp4", root / f"{name}.mp4")
    halve(root / "half.mp4")
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("this is no video")
    (root / "moov.mp4").write_bytes((root / "whole.mp4").read_bytes()[:200])
    write_video(root / "slow.mp4", pictures[:50], fps=25)
    for name in ("pictures", "gap", "late", "broken"):
        write_pictures(root / name, pictures[:5])
    (root / "gap/frame_0000000003.jpg").unlink()
    (root / "late/frame_0000000001.jpg").unlink()
    (root / "broken/frame_0000000005.jpg").write_bytes(b"\xff\xd8 no picture")
    (root / "nothing").mkdir()
    return root


def test_a_whole_video_is_described(files):
    row = look(files, "whole.mp4").loc["whole.mp4"]
    assert row["fault"] is None
    assert (row["frames"], row["fps"], row["seconds"]) == (60, FPS, pytest.approx(2.0))
    assert (row["width"], row["height"], row["rotation"]) == (WIDTH, HEIGHT, 0)
    assert row["bytes"] == (files / "whole.mp4").stat().st_size
    slow = look(files, "slow.mp4").loc["slow.mp4"]
    assert slow["fps"] == 25 and slow["seconds"] == pytest.approx(2.0)


def test_a_folder_of_pictures_is_described(files):
    row = look(files, "pictures").loc["pictures"]
    assert row["fault"] is None and np.isnan(row["fps"]) and np.isnan(row["seconds"])
    assert (row["frames"], row["width"], row["height"]) == (5, WIDTH, HEIGHT)
    assert row["bytes"] == sum(file.stat().st_size for file in (files / "pictures").iterdir())


@pytest.mark.parametrize(
    "path, fault",
    [
        ("half.mp4", r"truncated: \d\d of 60 frames"),
        ("empty.mp4", "empty file"),
        ("text.mp4", "unreadable: Invalid data"),
        ("moov.mp4", "unreadable: "),
        ("absent.mp4", "absent"),
        ("whole.mp4/inside.mp4", "absent"),
        ("gap", "frame gap: no picture 3"),
        ("late", "frame gap: no picture 1"),
        ("broken", "unreadable: picture frame_0000000005.jpg"),
        ("nothing", "unreadable: no numbered pictures"),
    ],
)
def test_every_fault_has_a_name(files, path, fault):
    told = look(files, path).loc[path, "fault"]
    assert pd.Series([told]).str.match(fault).all(), told
    assert str(files) not in told  # the same words for all files alike


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_decord_turns_pictures_as_their_header_says(tmp_path, rotation):
    pictures = gratings(0, seconds=0.2)
    pictures[:, : HEIGHT // 4] = 255  # a bright edge on top
    write_video(tmp_path / "turned.mp4", pictures, rotation=rotation)
    row = look(tmp_path, "turned.mp4").loc["turned.mp4"]
    upright = np.rot90(pictures, rotation // 90, (1, 2))
    assert row["fault"] is None and row["rotation"] == 360 - rotation
    assert (row["height"], row["width"]) == upright.shape[1:3]
    seen = open_video(tmp_path / "turned.mp4").read([0, 3])
    assert seen.shape == upright[[0, 3]].shape
    assert np.abs(seen.astype(float) - upright[[0, 3]]).mean() < 12


def test_only_new_and_changed_files_are_looked_at_again(tmp_path):
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", gratings(0, seconds=0.5))
    first = look(tmp_path, "a.mp4", "b.mp4")
    cache = tmp_path / "cache.csv"
    cache.write_text(cache.read_text().replace(",15,", ",77,"))  # so that kept rows can be told from new ones
    write_video(tmp_path / "b.mp4", gratings(1, seconds=1.0))
    write_video(tmp_path / "c.mp4", gratings(2, seconds=0.5))
    second = look(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    assert list(first["frames"]) == [15, 15]
    assert list(second["frames"]) == [77, 30, 15]
    (tmp_path / "a.mp4").unlink()
    assert look(tmp_path, "a.mp4").loc["a.mp4", "fault"] == "absent"


def test_a_folder_is_looked_at_again_when_pictures_come(tmp_path):
    write_pictures(tmp_path / "pictures", gratings(0)[:3])
    os.utime(tmp_path / "pictures", ns=(0, 0))
    assert look(tmp_path, "pictures")["frames"].tolist() == [3]
    write_pictures(tmp_path / "pictures", gratings(0)[:4])
    assert look(tmp_path, "pictures")["frames"].tolist() == [4]


def test_kept_rows_equal_fresh_ones(files):
    paths = ["whole.mp4", "half.mp4", "empty.mp4", "pictures", "gap"]
    fresh = look(files, *paths)
    assert list(fresh) == list(COLUMNS)
    pd.testing.assert_frame_equal(look(files, *paths), fresh)


def test_an_older_cache_is_not_trusted(tmp_path):
    write_video(tmp_path / "a.mp4", gratings(0, seconds=0.2))
    (tmp_path / "cache.csv").write_text("path,frames\na.mp4,99\n")
    assert look(tmp_path, "a.mp4").loc["a.mp4", "frames"] == 6


def test_a_truncated_picture_in_the_middle_is_found(tmp_path):
    write_pictures(tmp_path / "frames", gratings(0)[:9])
    picture = tmp_path / "frames" / "frame_0000000005.jpg"
    picture.write_bytes(picture.read_bytes()[:-80])
    table = look(tmp_path, "frames")
    assert table.loc["frames", "fault"] == "unreadable: picture frame_0000000005.jpg"


def test_pictures_written_anew_in_their_place_are_looked_at_again(tmp_path):
    write_pictures(tmp_path / "frames", gratings(0)[:5])
    before = look(tmp_path, "frames")
    write_pictures(tmp_path / "frames", gratings(1)[:5])
    assert look(tmp_path, "frames").loc["frames", "bytes"] != before.loc["frames", "bytes"]


def test_a_variable_frame_rate_is_told(tmp_path):
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 60)
        for number, picture in enumerate(gratings(0)[:40]):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = 6 * number if number < 30 else 180 + number - 30  # 3 s at 10, then at 60 a second
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert look(tmp_path, "phone.mp4").loc["phone.mp4", "fault"].startswith("variable frame rate")


def test_decord_is_loaded_after_torch():
    """Before it, decord's wheel would take over torch's BLAS calls and end the process."""
    code = "import uniego_utils.data.inventory, torch; print(torch.randn(64, 64) @ torch.randn(64, 64))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
