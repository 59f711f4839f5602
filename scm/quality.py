"""How good a set of images is: the metrics of `scm.metrics` against one data set, by name.

What the real images contribute is computed once and kept in a cache, under a hash of everything
it depends on. Knows nothing of models, samplers or runs.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from scm import checkpoint, metrics, rng
from scm.data import IdxImages
from scm.errors import UserError
from scm.features import FeatureNetwork
from scm.files import REPOSITORY, write_json
from scm.tags import SMALLEST

log = logging.getLogger(__name__)

CACHE = REPOSITORY / "outputs" / ".cache"
VERSION = 1  # of what is cached: to be raised when its computation changes
K, WIDE_K = (
    3,
    5,
)  # of precision and recall (Kynkaanniemi 2019); of density and coverage (Naeem 2020)
MEMORISATION_IMAGES = 1000  # whose nearest training images are looked for


@dataclass(frozen=True)
class Reference:
    """What the metrics need of the real images; float64 but for the features."""

    test: Tensor  # (M, D) features, float32
    radii: Tensor  # (2, M) to the K-th and WIDE_K-th neighbour
    test_moments: metrics.Moments
    train_moments: metrics.Moments
    test_kernel: float
    train_classes: Tensor  # (classes,)
    nearest: float  # median pixel distance of test images to their nearest training images

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors, for a file."""
        return {
            "test": self.test,
            "radii": self.radii,
            "test_mean": self.test_moments.mean,
            "test_covariance": self.test_moments.covariance,
            "train_mean": self.train_moments.mean,
            "train_covariance": self.train_moments.covariance,
            "test_kernel": torch.tensor(self.test_kernel, dtype=torch.float64),
            "train_classes": self.train_classes,
            "nearest": torch.tensor(self.nearest, dtype=torch.float64),
        }

    @classmethod
    def of_tensors(cls, x: dict[str, Tensor]) -> "Reference":
        """Back from `tensors`."""
        return cls(
            test=x["test"],
            radii=x["radii"],
            test_moments=metrics.Moments(x["test_mean"], x["test_covariance"]),
            train_moments=metrics.Moments(x["train_mean"], x["train_covariance"]),
            test_kernel=float(x["test_kernel"]),
            train_classes=x["train_classes"],
            nearest=float(x["nearest"]),
        )


@dataclass(frozen=True)
class Quality:
    """Judges images of one data set with one feature network. Building it costs nothing."""

    train: Tensor  # uint8 (N, C, H, W), on the CPU
    test: Tensor
    network: FeatureNetwork
    cache: Path = CACHE

    @cached_property
    def data_sha256(self) -> str:
        """Of the training and test images."""
        return checkpoint.digest([self.train, self.test])

    @cached_property
    def reference(self) -> Reference:
        """Out of the cache, or computed (half a minute) and put there."""
        file = self._file("reference", ".safetensors")
        if file.exists():
            try:
                return Reference.of_tensors(checkpoint.read_weights(file)[0])
            except (UserError, KeyError) as error:
                log.warning("%s: computed anew (%s)", file.name, error)
        log.info("quality: looking at the real images, once")
        reference = self._looked_at()
        self._keep(lambda: checkpoint.save_weights(file, reference.tensors(), self._depends_on))
        return reference

    def floor(self, n: int) -> dict[str, float]:
        """What n training images (all, if there are fewer) give: one draw of them.

        Their nearest training images are sought without themselves.
        """
        n = min(n, len(self.train))
        file = self._file(f"floor-{n}", ".json")
        if file.exists():
            try:
                return json.loads(file.read_text())
            except ValueError as error:
                log.warning("%s: computed anew (%s)", file.name, error)
        order = torch.randperm(
            len(self.train), generator=rng.generator(0, "quality-floor", device="cpu")
        )
        floor = self._measured(self.train[order[:n]], rank=2)
        self._keep(lambda: write_json(file, floor))
        return floor

    def measure(self, images: Tensor) -> dict[str, float]:
        """`scm.tags.QUALITY` of uint8 images (N, C, H, W).

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
        moments = metrics.moments(x)
        shares = metrics.neighbourhoods(
            x,
            real.test,
            fake_radii=metrics.radii(x, (K,))[0],
            real_radii=real.radii[0],
            wide_radii=real.radii[1],
            wide_k=WIDE_K,
        )
        classes = metrics.class_histogram(probabilities)
        return {
            "frechet_distance": metrics.frechet_distance(moments, real.test_moments),
            "frechet_distance_train": metrics.frechet_distance(moments, real.train_moments),
            "kid": metrics.kernel_distance(x, real.test, real_kernel=real.test_kernel),
            **vars(shares),
            "class_variation": metrics.total_variation(classes, real.train_classes),
            "confidence": metrics.mean_confidence(probabilities),
            "memorisation": self._nearest(images, rank) / real.nearest,
        }

    def _nearest(self, images: Tensor, rank: int) -> float:
        """Median distance over pixels in [0, 1] to the nearest training image.

        In pixels, since the feature network has seen the training images and not the test images.
        """
        x = _pixels(images[:MEMORISATION_IMAGES])
        return float(metrics.nearest_distances(x, _pixels(self.train), rank=rank).median())

    def _looked_at(self) -> Reference:
        test, train = self.network(self.test), self.network(self.train)
        return Reference(
            test=test.features,
            radii=metrics.radii(test.features, (K, WIDE_K)),
            test_moments=metrics.moments(test.features),
            train_moments=metrics.moments(train.features),
            test_kernel=metrics.own_kernel(test.features),
            train_classes=metrics.class_histogram(train.probabilities),
            nearest=self._nearest(self.test, rank=1),
        )

    @property
    def _depends_on(self) -> dict[str, object]:
        return {
            "version": VERSION,
            "data": self.data_sha256,
            "features": self.network.sha256,
            "constants": [K, WIDE_K, MEMORISATION_IMAGES],
        }

    def _file(self, name: str, suffix: str) -> Path:
        key = hashlib.sha256(json.dumps(self._depends_on).encode()).hexdigest()
        return self.cache / f"quality-{name}-{key[:24]}{suffix}"

    def _keep(self, write: Callable[[], None]) -> None:
        """A cache that cannot be written costs time, not the result."""
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            write()
        except OSError as error:
            log.warning("%s: cannot keep the real images' features (%s)", self.cache, error)


def quality_of(dataset: IdxImages, network: FeatureNetwork) -> Quality:
    """For the images of `dataset`."""
    return Quality(train=dataset.train.cpu(), test=dataset.test.cpu(), network=network)


def _pixels(images: Tensor) -> Tensor:
    """float32 (N, C H W) in [0, 1]."""
    return images.flatten(1).float().div_(255)
