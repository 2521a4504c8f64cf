"""Sizes as a person reads them."""


def gib(size: float) -> str:
    """Bytes, as "1.5 GiB" or "300 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
