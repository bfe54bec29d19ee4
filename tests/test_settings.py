"""Settings files of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from softjaccard.errors import InputError
from softjaccard.settings import read_yaml


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1\nb: [2\n", r"file\.yaml, line 3 is no YAML: .*\(while parsing a flow sequence in line 2\)\.$"),
        ("a: 1\nb: c: 2\n", r"file\.yaml, line 2 is no YAML: mapping values are not allowed here\.$"),
        ("a: \x00", r"file\.yaml is no YAML: "),
        (b"a: \xff", r"file\.yaml is no YAML: .*utf-8"),
        (None, r"file\.yaml cannot be read: No such file"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, content: str | bytes | None, words: str) -> None:
    path = tmp_path / "file.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("a: [1]\n", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "file.yaml") == {"a": [1]}
