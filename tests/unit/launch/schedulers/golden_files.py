"""Files that a person has read: what is rendered must be them, to the letter."""

from __future__ import annotations

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    """Compare with the file of that name. A file that is not there is written, and fails for someone to read it."""
    path = GOLDEN / name
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        raise AssertionError(f"{path} is new: read it, and run the test again")
    assert text == path.read_text(encoding="utf-8"), f"not as in {path}: if it is meant, delete that and run twice"
