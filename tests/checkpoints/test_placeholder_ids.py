"""Ids of tokens, looked up in the files of tokenizers."""

import json

import pytest

from dl_techniques.checkpoints.placeholder_ids import token_id_in

pytestmark = pytest.mark.no_backend


def test_a_tokenizer_of_many_pieces(tmp_path):
    vocabulary = {f"piece {number} of a large vocabulary": number for number in range(120_000)}
    added = [{"id": 120_000, "content": "<image>"}]
    text = json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added})
    assert len(text) > 4_000_000
    (tmp_path / "tokenizer.json").write_text(text)
    assert token_id_in(tmp_path, "<image>") == 120_000
    assert token_id_in(tmp_path, "<other>") is None
    (tmp_path / "added_tokens.json").write_text('{"<image>": 7}')
    with pytest.raises(ValueError, match="disagree about the id of '<image>'"):
        token_id_in(tmp_path, "<image>")
