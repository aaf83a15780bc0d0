"""How many images a processor core makes ready in a second, counted in the time that cores were busy."""

import time
from dataclasses import dataclass

from maskperf.data.loader import TrainingLoader
from maskperf.structures import RawPictures


@dataclass(frozen=True, kw_only=True)
class FeedingRate:
    """What was measured."""

    images: int
    core_seconds: float  # of all threads of this process

    @property
    def images_per_core_second(self) -> float:
        return self.images / max(self.core_seconds, 1e-9)

    def cores_for(self, images_per_second: float) -> float:
        """Returns how many cores keep up with training at this speed."""
        return images_per_second / self.images_per_core_second


def measure_feeding(loader: TrainingLoader, num_steps: int, *, warm_up_steps: int = 2) -> FeedingRate:
    """Returns the rate over `num_steps` batches. Nothing else may be at work in this process.

    Pictures that the loader hands over as decoded are thrown away as they are: their resize is the device's work.
    Errors: DataError when an image cannot be used.
    """
    _drain(loader, warm_up_steps)
    start = time.process_time()
    images = _drain(loader, num_steps)
    return FeedingRate(images=images, core_seconds=time.process_time() - start)


def _drain(loader: TrainingLoader, num_steps: int) -> int:
    images = 0
    for batch in loader.batches(0, num_steps):
        images += len(batch.image_ids)
        if isinstance(batch.images, RawPictures):
            batch.images.release(None)
    return images
