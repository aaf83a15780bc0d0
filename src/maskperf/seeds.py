"""Where every random number comes from: one run seed, and a key that says what the number is for."""

import hashlib
import secrets


def derive_seed(run_seed: int, purpose: str, *keys: int) -> int:
    """Return a 62-bit seed that depends on its arguments and on nothing else.

    `keys` are usually (epoch,) or (epoch, image id). The same arguments give the same seed on every machine,
    in every process, in whatever order they are asked for.
    """
    text = ":".join([str(run_seed), purpose, *(str(int(key)) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def entropy_seed() -> int:
    """Return a seed from the operating system's entropy, at most 2**62."""
    return secrets.randbits(62)
