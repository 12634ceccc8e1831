"""Folders: natural order, links, what is left out."""

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import list_images


def test_list_images_is_recursive_ordered_and_filtered(tmp_path: Path) -> None:
    for name in ("10.png", "2.JPG", "b/1.tiff", ".hidden.png", ".cache/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["2.JPG", "10.png", "b/1.tiff"]


def test_list_images_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to(root)
    assert list_images(root) == [root / "linked" / "1.png"]


def test_folders_linked_into_each_other_end(tmp_path: Path) -> None:
    for folder, other in (("a", "b"), ("b", "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
        (tmp_path / folder / "other").symlink_to(tmp_path / other)
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a/1.png", "a/other/1.png", "b/1.png", "b/other/1.png"]
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path / "a")]
    assert found == ["a/1.png", "a/other/1.png"]


def test_list_images_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        list_images(tmp_path)
    with pytest.raises(UserError, match=r"absent.*no such folder"):
        list_images(tmp_path / "absent")
