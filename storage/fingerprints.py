"""Names and fingerprints of what artifacts are made from."""

import hashlib
import json
import re
from typing import Any


def fingerprint(description: Any) -> str:
    """First 16 hex digits of the SHA-256 of `description` as canonical JSON (sorted keys, no NaN)."""
    return hashlib.sha256(canonical_json(description)).hexdigest()[:16]


def canonical_json(description: Any) -> bytes:
    """`description` as JSON bytes that depend on its content alone, not on the order of its keys."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def file_stem(*parts: str) -> str:
    """A file name's stem: `parts` joined by `-`, with anything but letters, digits and `._-` replaced."""
    return re.sub(r"[^\w.-]+", "_", "-".join(parts)).lstrip(".")
