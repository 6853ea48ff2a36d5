"""All randomness is a function of a key, never of a worker, a rank or a global generator's past.

A key is (seed, purpose, ...counters), for example (seed, SAMPLE, epoch, sample index). The same key
gives the same numbers at any worker count and after any resume.
"""

import numpy as np

# Purposes keep streams apart that share a seed. Their values are part of every run's identity:
# never renumber them.
ORDER = 1  # the order of the samples in an epoch
SAMPLE = 2  # clip start, crops and flips of one sample
STEP = 3  # dropout and other layers that draw while training
MIX = 4  # mixup and cutmix
INIT = 5  # initial weights
AUGMENT = 6  # augmentation of one clip on the device
REPLACE = 7  # the sample that stands in for an unreadable one
STATISTICS = 8  # the clips that batch-norm statistics are taken over


def generator(seed: int, purpose: int, *counters: int) -> np.random.Generator:
    """Returns a counter-based generator for one key.

    Args:
        seed: The run's seed, >= 0.
        purpose: One of the constants of this module.
        counters: What is being drawn for, for example (epoch, sample index); each >= 0.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose, *counters])))


def derive(seed: int, purpose: int, *counters: int) -> int:
    """Returns a 63-bit seed for libraries that take one number, such as `torch.manual_seed`."""
    state = np.random.SeedSequence([seed, purpose, *counters]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
