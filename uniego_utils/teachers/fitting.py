"""What the teachers that are fitted here share: batches over clips in memory, and one way to train."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from uniego_utils.data.video import EpochSampler
from uniego_utils.teachers.batches import Job
from uniego_utils.training import Learner, fit

# A batch of what is in memory, and its source of chance -> those entries that training changes
Augment = Callable[[dict[str, Tensor], Job, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class TensorBatches:
    """One epoch's shuffled batches over clips in memory.

    The job's seed and the epoch alone decide them, so that a resumed run sees the same.

    Args:
        tensors: by name, (N, ...) one entry a clip, in manifest order.
    """

    job: Job
    tensors: Mapping[str, Tensor]
    augment: Augment
    epoch: int

    @property
    def sampler(self) -> EpochSampler:
        """Rows and a seed for every batch."""
        clips = len(next(iter(self.tensors.values())))
        return EpochSampler(clips, self.job.settings.train.batch_size, self.job.seed, self.epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number, items in enumerate(self.sampler):
            rows = torch.tensor([row for row, _ in items])
            generator = torch.Generator().manual_seed(items[0][1] + number)
            batch = {name: values[rows] for name, values in self.tensors.items()}
            yield {**batch, **self.augment(batch, self.job, generator), "rows": rows}


def fit_batches(
    job: Job, model: nn.Module, objective: nn.Module, batches: Callable[[int], Iterable[dict]]
) -> list[dict]:
    """Train the job's model on each epoch's batches; the history, a record an epoch."""
    learners = {job.key: Learner(model, objective)}
    history = fit(
        learners, batches, job.settings.train, job.seed, job.checkpoint, job.device, describe=job.key,
        progress=job.progress,
    )  # fmt: skip
    return history[job.key]


def fit_tensors(
    job: Job, model: nn.Module, objective: nn.Module, tensors: Mapping[str, Tensor], augment: Augment
) -> list[dict]:
    """The same on clips in memory: see `TensorBatches`."""
    return fit_batches(job, model, objective, partial(TensorBatches, job, tensors, augment))
