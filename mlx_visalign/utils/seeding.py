"""Random keys derived from names.

What is drawn for a record depends on the seed and the record, never on order or batch.
"""

import hashlib

import mlx.core as mx


def number_for(*names: object) -> int:
    """63-bit seed from names, for NumPy's and Python's generators."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def key_for(*names: object) -> mx.array:
    """MLX random key from names: `key_for(seed, record.id, "noise")`."""
    return mx.random.key(number_for(*names))
