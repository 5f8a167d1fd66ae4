"""What a tokenizer imports, and when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from model_folders import write_model

from rlserve.engine.requests.folder_tokenizer import import_for_tokenizer

PROGRAM = """
import sys
from pathlib import Path
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer, import_for_tokenizer

folder = Path(sys.argv[1])
num_before = len(sys.modules)
import_for_tokenizer(folder)
known = set(sys.modules)
assert len(known) > num_before
tokenizer = FolderTokenizer(folder)
assert tokenizer.decode(tokenizer.encode("12+3")) == "12+3"
print(sorted(set(sys.modules) - known))
"""


def test_the_first_text_has_nothing_left_to_import(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_a_folder_without_a_tokenizer_is_no_error_before_a_request_needs_one(tmp_path: Path) -> None:
    import_for_tokenizer(tmp_path)
