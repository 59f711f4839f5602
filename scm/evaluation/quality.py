"""How good a set of images is: all metrics against one data set, by name.

What the real images contribute is computed once and kept in a cache, under a hash of everything
it depends on.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from scm.config.metrics import SECOND, feature_weights
from scm.config.ranges import SMALLEST
from scm.core import rng
from scm.core.errors import UserError
from scm.core.files import CACHE
from scm.data.dataset import Dataset
from scm.data.images import ImageDataset
from scm.evaluation import features, metrics
from scm.evaluation.features import FeatureNetwork
from scm.storage import store

log = logging.getLogger(__name__)

VERSION = 1  # of what is cached: to be raised when its computation changes
K = 3  # of precision and recall (Kynkaanniemi 2019)
WIDE_K = 5  # of density and coverage (Naeem 2020)
MEMORISATION_IMAGES = 1000  # whose nearest training images are looked for
PIECE = 20_000  # training images that they are compared with at once


@dataclass(frozen=True)
class Reference:
    """What the metrics need of the real images; float64 but for the features."""

    test: Tensor  # (M, D) features, float32
    radii: Tensor  # (2, M) to the K-th and WIDE_K-th neighbour
    test_mean: Tensor  # (D,) of the features
    test_covariance: Tensor  # (D, D)
    train_mean: Tensor
    train_covariance: Tensor
    test_kernel: Tensor  # (), the test images' part of the kernel distance
    train_classes: Tensor  # (classes,)
    nearest: Tensor  # (), median pixel distance of test images to their nearest training images


@dataclass(frozen=True)
class Quality:
    """Judges images of one data set with one feature network. Building it costs nothing."""

    train: Tensor  # uint8 (N, C, H, W), on the CPU
    test: Tensor
    network: FeatureNetwork
    second: FeatureNetwork | None = None  # of another architecture, for one more metric
    cache: Path = CACHE

    @cached_property
    def data_sha256(self) -> str:
        """Of the training and test images."""
        return store.digest([self.train, self.test])

    @cached_property
    def reference(self) -> Reference:
        """Out of the cache, or computed (half a minute) and put there."""
        return Reference(**self._cached("reference", self._looked_at))

    def floor(self, n: int) -> dict[str, float]:
        """What n training images (all, if there are fewer) give: one draw of them.

        Their nearest training images are sought without themselves.
        """
        gen = rng.generator(0, "quality-floor", device="cpu")
        images = self.train[torch.randperm(len(self.train), generator=gen)[:n]]
        kept = self._cached(f"floor-{len(images)}", lambda: self._measured(images, rank=2))
        return {name: float(x) for name, x in kept.items()}

    def measure(self, images: Tensor) -> dict[str, float]:
        """`scm.config.metrics.QUALITY` of uint8 images (N, C, H, W).

        Raises UserError where they are too few or of another shape.
        """
        if images.shape[1:] != self.test.shape[1:] or images.dtype != torch.uint8:
            raise UserError(
                f"images {images.dtype} {tuple(images.shape[1:])}: the data's are uint8 "
                f"{tuple(self.test.shape[1:])}"
            )
        if len(images) < SMALLEST:
            raise UserError(f"{len(images)} images: {SMALLEST} at least can be judged")
        return self._measured(images, rank=1)

    def _measured(self, images: Tensor, *, rank: int) -> dict[str, float]:
        """`rank`: the nearest training image counts, or the next nearest."""
        real = self.reference
        x, probabilities = self.network(images)
        moments, classes = metrics.moments(x), metrics.class_histogram(probabilities)
        test = metrics.Moments(real.test_mean, real.test_covariance)
        train = metrics.Moments(real.train_mean, real.train_covariance)
        shares = metrics.neighbourhoods(
            x,
            real.test,
            fake_radii=metrics.radii(x, (K,))[0],
            real_radii=real.radii[0],
            wide_radii=real.radii[1],
            wide_k=WIDE_K,
        )
        return {
            "frechet_distance": metrics.frechet_distance(moments, test),
            "frechet_distance_train": metrics.frechet_distance(moments, train),
            **self._by_second(images),
            "kid": metrics.kernel_distance(x, real.test, real_kernel=float(real.test_kernel)),
            **vars(shares),
            "class_variation": metrics.total_variation(classes, real.train_classes),
            "confidence": metrics.mean_confidence(probabilities),
            "memorisation": self._nearest(images, rank) / float(real.nearest),
        }

    def _by_second(self, images: Tensor) -> dict[str, float]:
        """The Frechet distance in the second network's features, where there is one."""
        if self.second is None:
            return {}
        mine = metrics.moments(self.second(images).features)
        return {SECOND: metrics.frechet_distance(mine, self._second_reference)}

    @cached_property
    def _second_reference(self) -> metrics.Moments:
        second = self.second
        assert second is not None
        kept = self._cached("second", lambda: vars(metrics.moments(second(self.test).features)))
        return metrics.Moments(**kept)

    def _nearest(self, images: Tensor, rank: int) -> float:
        """Median distance over pixels in [0, 1] to the nearest training image.

        In pixels, since the feature network has seen the training images and not the test images.
        """
        x = images[:MEMORISATION_IMAGES].flatten(1).float().div_(255)
        found = [
            metrics.nearest_distances(x, part.flatten(1).float().div_(255), ranks=rank)
            for part in self.train.split(PIECE)  # a mapped set is not read whole
        ]
        return float(torch.cat(found, 1).sort().values[:, rank - 1].median())

    def _looked_at(self) -> dict[str, Tensor | float]:
        log.info("quality: looking at the real images, once")
        test, train = self.network(self.test), self.network(self.train)
        moments = {"test": metrics.moments(test.features), "train": metrics.moments(train.features)}
        return {
            "test": test.features,
            "radii": metrics.radii(test.features, (K, WIDE_K)),
            **{f"{part}_mean": found.mean for part, found in moments.items()},
            **{f"{part}_covariance": found.covariance for part, found in moments.items()},
            "test_kernel": metrics.own_kernel(test.features),
            "train_classes": metrics.class_histogram(train.probabilities),
            "nearest": self._nearest(self.test, rank=1),
        }

    def _cached(
        self, name: str, compute: Callable[[], Mapping[str, Tensor | float]]
    ) -> dict[str, Tensor]:
        """What is kept under this name; a cache that is damaged or full costs time alone."""
        depends_on = {
            "version": VERSION,
            "data": self.data_sha256,
            "features": self.network.sha256,
            "second": self.second and self.second.sha256,
            "constants": [K, WIDE_K, MEMORISATION_IMAGES],
        }
        key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
        file = self.cache / f"quality-{name}-{key[:24]}.safetensors"
        if file.exists():
            try:
                return store.read_weights(file)[0]
            except UserError as error:
                log.warning("%s: computed anew (%s)", file.name, error)
        found = {
            name: x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
            for name, x in compute().items()
        }
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            store.save_weights(file, found, depends_on)
        except OSError as error:
            log.warning("%s: cannot keep the real images' features (%s)", self.cache, error)
        return found


def quality_of(dataset: Dataset, device: torch.device | str) -> Quality:
    """What judges images of this data set, with its own feature network on `device`.

    Raises UserError where its samples are no images, or its feature network is missing or damaged.
    """
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"data={dataset.name}: its samples are no images, so no quality metrics")
    if lack := features.lacking(dataset):
        raise UserError(f"{feature_weights(dataset.name).name}: {lack}")
    network = features.load(feature_weights(dataset.name), device)
    second = feature_weights(dataset.name, second=True)
    return Quality(
        train=dataset.train.cpu(),
        test=dataset.test.cpu(),
        network=network,
        second=features.load(second, device) if second.exists() else None,
    )
