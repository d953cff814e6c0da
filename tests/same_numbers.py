"""Whether two trees of outputs hold the same numbers, bit by bit: for changes that should change none.

    python tests/same_numbers.py before/mocap after/mocap --renamed none=ego control=ego_longer

Compares every `metrics.json`, but for what was timed, and every safetensors file (weights, features and
outputs). Ends with 1 where something differs or is missing on one side.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

TIMED = ("seconds", "per_s")  # ends of keys that say how fast it was


def difference(before: Path, after: Path) -> str:
    """What differs between two files of one kind; empty where nothing does."""
    if before.suffix == ".json":
        one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
        keys = sorted(key for key in one.keys() | two.keys() if not key.endswith(TIMED))
        changed = [key for key in keys if one.get(key) != two.get(key)]
        return ", ".join(f"{key}: {one.get(key)} -> {two.get(key)}" for key in changed)
    one, two = load_file(before), load_file(after)
    if names := one.keys() ^ two.keys():
        return f"only on one side: {', '.join(sorted(names))}"
    changed = [name for name in one if not torch.equal(one[name], two[name])]
    largest = max((_distance(one[name], two[name]) for name in changed), default=0.0)
    return f"{len(changed)} of {len(one)} tensors, by at most {largest:.3g}" if changed else ""


def _distance(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest difference of two tensors; infinite where their shapes differ."""
    if one.shape != two.shape:
        return float("inf")
    return (one.double() - two.double()).abs().max().item()


def compare(before: Path, after: Path, renamed: dict[str, str]) -> list[str]:
    """A line per file that differs or is missing; prints how many were equal.

    Args:
        renamed: names of folders before -> after.
    """

    def files(root: Path) -> set[Path]:
        kinds = ("metrics.json", "*.safetensors")
        return {path.relative_to(root) for kind in kinds for path in root.rglob(kind)}

    ours = {Path(*(renamed.get(part, part) for part in path.parts)): path for path in files(before)}
    theirs = files(after)
    lines = [f"{path}: only before" for path in sorted(ours.keys() - theirs)]
    lines += [f"{path}: only after" for path in sorted(theirs - ours.keys())]
    both = sorted(ours.keys() & theirs)
    found = {path: difference(before / ours[path], after / path) for path in both}
    print(f"{sum(not text for text in found.values())} of {len(both)} files are equal")
    return [*lines, *(f"{path}: {text}" for path, text in found.items() if text)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW", help="folders renamed between")
    chosen = parser.parse_args()
    unequal = compare(chosen.before, chosen.after, dict(pair.split("=") for pair in chosen.renamed))
    print(*unequal, sep="\n")
    sys.exit(bool(unequal))
