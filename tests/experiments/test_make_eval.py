"""Fixed evaluation texts."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.experiments.make_eval import choose, write_eval
from psann_jax.utils.errors import UserError

DOCUMENTS = [f"document {i} " + "word " * (i % 17) for i in range(400)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=40), st.integers(1, 400), st.integers(0, 3))
def test_a_choice_fits_and_keeps_the_order(documents, max_bytes, seed):
    chosen = choose(documents, max_bytes, seed)
    assert sum(len(text.encode()) for text in chosen) <= max_bytes
    rest = iter(documents)
    assert all(text in rest for text in chosen), "in the order of the source"
    assert choose(documents, max_bytes, seed) == chosen
    if sum(len(text.encode()) for text in documents) <= max_bytes:
        assert chosen == [text for text in documents if text.strip()]


def test_the_seed_decides_and_every_position_is_equally_likely():
    first, second = (choose(DOCUMENTS, 4000, seed) for seed in (0, 1))
    assert first != second
    positions = [DOCUMENTS.index(text) for seed in range(40) for text in choose(DOCUMENTS, 2000, seed)]
    assert 170 < sum(positions) / len(positions) < 230


def test_a_document_that_cannot_fit_displaces_no_other():
    for seed in range(4):
        assert choose([*DOCUMENTS, "x" * 4001, "é" * 2001], 4000, seed) == choose(DOCUMENTS, 4000, seed)


def test_the_file_is_written_once_with_its_hash(tmp_path):
    source, out = tmp_path / "source.txt", tmp_path / "eval.jsonl"
    source.write_text("\n".join(DOCUMENTS))
    command = [sys.executable, "-m", "psann_jax", "make_eval", f"--source={source}", f"--out={out}"]
    done = subprocess.run([*command, "--max_bytes=3000"], capture_output=True, text=True, check=True)
    content = out.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest in done.stdout
    assert (tmp_path / "eval.jsonl.sha256").read_text() == f"{digest}  eval.jsonl\n"
    texts = [json.loads(line)["text"] for line in content.decode().splitlines()]
    assert {text.strip() for text in texts} <= {text.strip() for text in DOCUMENTS}
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "exists already; name another file" in again.stderr
    assert out.read_bytes() == content


def test_a_source_without_documents_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="--source: has no document"):
        write_eval(tmp_path / "x.jsonl", [])
    assert not list(tmp_path.iterdir())
