"""Files that are written whole or not at all."""

import pytest

from bayesmerge.files import whole


def test_a_file_takes_its_place_once_it_is_written(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with whole(path) as unfinished:
        unfinished.write_text("new")
        assert unfinished.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


def interrupted(path, content, error):
    with whole(path) as unfinished:
        if content:
            unfinished.write_text(content)
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("content", [None, "ne"])
def test_an_error_leaves_what_there_was(tmp_path, error, old, content):
    path = tmp_path / "page.html"
    if old:
        path.write_text(old)
    with pytest.raises(error):
        interrupted(path, content, error)
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_what_cannot_be_replaced_stays(tmp_path):
    folder = tmp_path / "page.html"
    folder.mkdir()
    with pytest.raises(OSError, match=r"page\.html"), whole(folder) as unfinished:
        unfinished.write_text("new")
    assert [*tmp_path.iterdir()] == [folder]
